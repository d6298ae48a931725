// SPDX-License-Identifier: MIT
// Opens and closes a stretch of a file that is compiled for more than the baseline CPU. Every file is built with
// the same flags, so code outside such a stretch (inline functions of standard headers above all) never holds an
// instruction that a CPU may lack: include all headers before the stretch, and keep its functions in a namespace
// of the target.
#pragma once

#if defined(__GNUC__) && !defined(__clang__)
// GCC 12 warns of its own intrinsics that start from an undefined vector (GCC bug 105593).
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif

#if defined(__x86_64__)
#include <cpuid.h>
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#include <sys/auxv.h>
#endif

#include <cstdint>

#include "kernels/kernel_set.h"

namespace sh::kernels {

/// The entry of a target that this processor family does not have, behind all that it has.
constexpr KernelSet absent_set(const char* name, int rank, const char* needs) {
  KernelSet set{};
  set.name = name;
  set.rank = -rank;
  set.needs = needs;
  set.supported = +[] { return false; };
  return set;
}

#if defined(__x86_64__)
// Source:  Intel 64 and IA-32 Architectures Software Developer's Manual, volume 2, CPUID; volume 1, chapter 13
// (XCR0).
inline constexpr uint32_t kCpuFma = 1u << 12, kCpuOsxsave = 1u << 27, kCpuF16c = 1u << 29;      // leaf 1, ECX
inline constexpr uint32_t kCpuAvx2 = 1u << 5, kCpuAvx512f = 1u << 16, kCpuAvx512dq = 1u << 17;  // leaf 7, EBX
inline constexpr uint32_t kCpuAvx512bw = 1u << 30, kCpuAvx512vl = 1u << 31;
inline constexpr uint32_t kCpuAvx512vnni = 1u << 11;  // leaf 7, ECX
// Register files in XCR0 that a context switch keeps.
inline constexpr uint32_t kSavedAvx = 0x06, kSavedAvx512 = 0xE6;

struct CpuidBits {
  uint32_t ecx_1 = 0, ebx_7 = 0, ecx_7 = 0;
};

/// Whether the CPU has all these features and the operating system saves their registers.
inline bool x86_has(const CpuidBits& needed, uint32_t saved) {
  uint32_t eax = 0, ebx = 0, ecx = 0, edx = 0;
  if (__get_cpuid(1, &eax, &ebx, &ecx, &edx) == 0 || (ecx & kCpuOsxsave) == 0) return false;
  if ((ecx & needed.ecx_1) != needed.ecx_1) return false;
  uint32_t xcr0 = 0, xcr0_high = 0;
  asm("xgetbv" : "=a"(xcr0), "=d"(xcr0_high) : "c"(0));
  if ((xcr0 & saved) != saved) return false;
  if (__get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx) == 0) return false;
  return (ebx & needed.ebx_7) == needed.ebx_7 && (ecx & needed.ecx_7) == needed.ecx_7;
}
#elif defined(__aarch64__)
/// Whether the CPU has all these features, HWCAP_...
/// Source:  Linux kernel, Documentation/arm64/elf_hwcaps.rst.
inline bool arm_has(unsigned long needed) {
  return (getauxval(AT_HWCAP) & needed) == needed;
}
#endif

}  // namespace sh::kernels

/// For bodies that must become part of their caller, so that what they are handed stays in registers.
#define SH_INLINE inline __attribute__((always_inline))

#define SH_PRAGMA(text) _Pragma(#text)
#if defined(__clang__)
#define SH_TARGET_BEGIN(features) \
  SH_PRAGMA(clang attribute push(__attribute__((target(features))), apply_to = function))
#define SH_TARGET_END SH_PRAGMA(clang attribute pop)
#else
#define SH_TARGET_BEGIN(features) SH_PRAGMA(GCC push_options) SH_PRAGMA(GCC target(features))
#define SH_TARGET_END SH_PRAGMA(GCC pop_options)
#endif
