// SPDX-License-Identifier: MIT
#include "base/env.h"

#include <cstdlib>

namespace sh::env {

std::optional<std::string> get(const std::string& name) {
  const char* value = std::getenv(name.c_str());
  if (value == nullptr) return std::nullopt;
  return std::string(value);
}

std::optional<std::string> kernels() { return get("SHORTHAND_KERNELS"); }
std::optional<std::string> compact_allowed_methods() { return get("LLAMA_COMPACT_ALLOWED_METHODS"); }

}  // namespace sh::env
