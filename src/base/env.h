// SPDX-License-Identifier: MIT
// The one place that reads the environment. Every variable is listed here with what it does (docs/environment.md repeats none).
#pragma once

#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace sh::env {

/// The value of any variable, or nothing when it is not set. LLAMA_ARG_* names come from the flag table.
std::optional<std::string> get(const std::string& name);

/// Names of all variables that begin so, sorted.
std::vector<std::string> names_with_prefix(std::string_view prefix);

/// SHORTHAND_KERNELS: force a kernel set by name (generic, avx2, avx512).
std::optional<std::string> kernels();
/// LLAMA_COMPACT_ALLOWED_METHODS: comma list of the methods that POST /compact accepts; all when unset.
std::optional<std::string> compact_allowed_methods();

}  // namespace sh::env
