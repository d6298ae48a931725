// SPDX-License-Identifier: MIT
// The few things that differ between processors and compilers, outside the kernel targets.
#pragma once

#include <cstdint>

namespace sh {

inline constexpr int64_t kCacheLine = 64;  // bytes

/// Tells the core that this is a spin loop.
inline void cpu_pause() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

}  // namespace sh
