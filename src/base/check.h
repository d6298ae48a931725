// SPDX-License-Identifier: MIT
// Checks for our own bugs: they print the expression and stop. Bad input from outside is a Result (base/result.h).
#pragma once

namespace sh {
[[noreturn]] void check_failed(const char* expression, const char* file, int line, const char* message);
}

#define SH_CHECK(expression, message)                                                \
  do {                                                                               \
    if (!(expression)) ::sh::check_failed(#expression, __FILE__, __LINE__, message); \
  } while (false)

#ifdef NDEBUG
#define SH_DCHECK(expression) \
  do {                        \
  } while (false)
#else
#define SH_DCHECK(expression) SH_CHECK(expression, "")
#endif
