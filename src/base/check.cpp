// SPDX-License-Identifier: MIT
#include "base/check.h"

#include <cstdio>
#include <cstdlib>

namespace sh {

void check_failed(const char* expression, const char* file, int line, const char* message) {
  std::fprintf(stderr, "shorthand: internal check failed: %s at %s:%d %s\n", expression, file, line, message);
  std::abort();
}

}  // namespace sh
