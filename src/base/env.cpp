// SPDX-License-Identifier: MIT
#include "base/env.h"

#include <unistd.h>

#include <algorithm>
#include <cstdlib>

namespace sh::env {

std::optional<std::string> get(const std::string& name) {
  const char* value = std::getenv(name.c_str());
  if (value == nullptr) return std::nullopt;
  return std::string(value);
}

std::vector<std::string> names_with_prefix(std::string_view prefix) {
  std::vector<std::string> names;
  for (char** entry = environ; *entry != nullptr; ++entry) {
    const std::string_view variable = *entry;
    if (variable.starts_with(prefix)) names.emplace_back(variable.substr(0, variable.find('=')));
  }
  std::sort(names.begin(), names.end());
  return names;
}

std::optional<std::string> kernels() { return get("SHORTHAND_KERNELS"); }
std::optional<std::string> compact_allowed_methods() { return get("LLAMA_COMPACT_ALLOWED_METHODS"); }

}  // namespace sh::env
