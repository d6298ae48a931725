// SPDX-License-Identifier: MIT
#pragma once

#include <chrono>
#include <cstdint>

namespace sh {

/// Monotonic time in microseconds.
inline int64_t now_us() {
  return std::chrono::duration_cast<std::chrono::microseconds>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

/// Seconds since it was made.
class Stopwatch {
 public:
  double seconds() const { return static_cast<double>(now_us() - start_us_) * 1e-6; }

 private:
  int64_t start_us_ = now_us();
};

}  // namespace sh
