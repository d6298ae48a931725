// SPDX-License-Identifier: MIT
// The AVX-512 kernel set for a CPU with AVX2: the target's own file, with every AVX-512 intrinsic replaced by a
// function of SIMDe or of this file (one that neither has does not compile). A program that holds this file takes
// nothing from the library's avx512.cpp, which defines the same name.
#include <cfenv>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <type_traits>

#include "base/check.h"
#include "kernels/kernel_set.h"
#include "kernels/q8_row.h"
#include "kernels/scratch.h"
#include "kernels/target_region.h"
#include "tensor/blocks.h"
#include "tensor/packed.h"

// From here on only kernels are compiled, all headers of the target's file being above.
SH_TARGET_BEGIN("avx2,fma,f16c")
#define SIMDE_ENABLE_NATIVE_ALIASES
// SIMDe asks the compiler's macros, which g++ 12 does not change for a stretch of a file.
#define SIMDE_X86_AVX2_NATIVE
#define SIMDE_X86_FMA_NATIVE
#include <simde/x86/avx512.h>

// Kept out of the kernels, whose size is what this file takes its time to compile for.
#define SH_CALLED __attribute__((noinline))

namespace sh::kernels::avx512 {
namespace {
// What SIMDe 0.7.4 lacks or has unfit: found here, in the kernels' namespace, before the compiler's intrinsics.
// Source:  Intel 64 and IA-32 Architectures Software Developer's Manual, volume 2.
SH_INLINE __m256 low(__m512 x) {
  return simde__m512_to_private(x).m256[0];
}
SH_INLINE __m256 high(__m512 x) {
  return simde__m512_to_private(x).m256[1];
}
SH_INLINE __m256i low(__m512i x) {
  return simde__m512i_to_private(x).m256i[0];
}
SH_INLINE __m256i high(__m512i x) {
  return simde__m512i_to_private(x).m256i[1];
}
SH_INLINE __m512 join(__m256 low_half, __m256 high_half) {
  simde__m512_private x;
  x.m256[0] = low_half;
  x.m256[1] = high_half;
  return simde__m512_from_private(x);
}
SH_INLINE __m512i join(__m256i low_half, __m256i high_half) {
  simde__m512i_private x;
  x.m256i[0] = low_half;
  x.m256i[1] = high_half;
  return simde__m512i_from_private(x);
}
SH_INLINE __m128i high(__m256i x) {
  return _mm256_extracti128_si256(x, 1);
}
SH_INLINE __m128i low(__m256i x) {
  return _mm256_castsi256_si128(x);
}

SH_INLINE float _mm512_cvtss_f32(__m512 x) {
  return _mm256_cvtss_f32(low(x));
}
SH_INLINE __m256 _mm512_extractf32x8_ps(__m512 x, int half) {
  return half == 0 ? low(x) : high(x);
}
// SIMDe's macro reads the rounding a | b as a | (b >> 4). Needs: the high four bits, digits after the point, 0.
#undef _mm512_roundscale_ps
SH_INLINE __m512 _mm512_roundscale_ps(__m512 x, const int rounding) {
  return join(_mm256_round_ps(low(x), rounding), _mm256_round_ps(high(x), rounding));
}
SH_INLINE __m512 _mm512_permute_ps(__m512 x, const int order) {
  return join(_mm256_permute_ps(low(x), order), _mm256_permute_ps(high(x), order));
}
SH_INLINE __m512 _mm512_shuffle_f32x4(__m512 a, __m512 b, const int order) {
  return simde_mm512_shuffle_f32x4(a, b, order);
}
SH_INLINE __m512 _mm512_fmaddsub_ps(__m512 a, __m512 b, __m512 c) {
  return join(_mm256_fmaddsub_ps(low(a), low(b), low(c)), _mm256_fmaddsub_ps(high(a), high(b), high(c)));
}
SH_INLINE __m512i _mm512_srai_epi32(__m512i x, const int n) {
  return join(_mm256_srai_epi32(low(x), n), _mm256_srai_epi32(high(x), n));
}

SH_INLINE __m512 _mm512_cvtepi32_ps(__m512i x) {
  return join(_mm256_cvtepi32_ps(low(x)), _mm256_cvtepi32_ps(high(x)));
}
SH_INLINE __m512i _mm512_cvtps_epi32(__m512 x) {
  return join(_mm256_cvtps_epi32(low(x)), _mm256_cvtps_epi32(high(x)));
}
SH_INLINE __m512 _mm512_cvtph_ps(__m256i x) {
  return join(_mm256_cvtph_ps(low(x)), _mm256_cvtph_ps(high(x)));
}
SH_INLINE __m256i _mm512_cvtps_ph(__m512 x, const int rounding) {
  return _mm256_setr_m128i(_mm256_cvtps_ph(low(x), rounding), _mm256_cvtps_ph(high(x), rounding));
}
SH_INLINE __m512i _mm512_cvtepi8_epi32(__m128i x) {
  return join(_mm256_cvtepi8_epi32(x), _mm256_cvtepi8_epi32(_mm_srli_si128(x, 8)));
}
SH_INLINE __m512i _mm512_cvtepu8_epi32(__m128i x) {
  return join(_mm256_cvtepu8_epi32(x), _mm256_cvtepu8_epi32(_mm_srli_si128(x, 8)));
}
SH_INLINE __m512i _mm512_cvtepu16_epi32(__m256i x) {
  return join(_mm256_cvtepu16_epi32(low(x)), _mm256_cvtepu16_epi32(high(x)));
}
// SIMDe's goes byte by byte: with it this file took more than ten minutes to compile.
#undef _mm512_dpbusd_epi32
SH_CALLED __m512i _mm512_dpbusd_epi32(__m512i acc, __m512i unsigned_bytes, __m512i signed_bytes) {
  simde__m512i_private sum = simde__m512i_to_private(acc);
  const simde__m512i_private a = simde__m512i_to_private(unsigned_bytes),
                             b = simde__m512i_to_private(signed_bytes);
  for (int i = 0; i < 2; ++i) {
    const __m256i even = _mm256_madd_epi16(_mm256_and_si256(a.m256i[i], _mm256_set1_epi16(0xFF)),
                                           _mm256_srai_epi16(_mm256_slli_epi16(b.m256i[i], 8), 8));
    const __m256i odd = _mm256_madd_epi16(_mm256_srli_epi16(a.m256i[i], 8), _mm256_srai_epi16(b.m256i[i], 8));
    sum.m256i[i] = _mm256_add_epi32(sum.m256i[i], _mm256_add_epi32(even, odd));
  }
  return simde__m512i_from_private(sum);
}
// The two that drop high bits do not saturate.
SH_CALLED __m256i _mm512_cvtepi32_epi16(__m512i x) {
  const simde__m512i_private from = simde__m512i_to_private(x);
  simde__m256i_private to;
  for (int i = 0; i < 16; ++i) to.u16[i] = static_cast<uint16_t>(from.u32[i]);
  return simde__m256i_from_private(to);
}
SH_CALLED __m128i _mm512_cvtepi32_epi8(__m512i x) {
  const simde__m512i_private from = simde__m512i_to_private(x);
  simde__m128i_private to;
  for (int i = 0; i < 16; ++i) to.u8[i] = static_cast<uint8_t>(from.u32[i]);
  return simde__m128i_from_private(to);
}

// Lanes whose bit of the mask is 0 are neither read nor written.
SH_CALLED __m512 _mm512_maskz_loadu_ps(__mmask16 mask, const void* p) {
  simde__m512_private x{};
  for (int i = 0; i < 16; ++i)
    if ((mask >> i & 1) != 0) x.f32[i] = static_cast<const float*>(p)[i];
  return simde__m512_from_private(x);
}
SH_CALLED void _mm512_mask_storeu_ps(void* p, __mmask16 mask, __m512 x) {
  for (int i = 0; i < 16; ++i)
    if ((mask >> i & 1) != 0) static_cast<float*>(p)[i] = simde__m512_to_private(x).f32[i];
}
SH_CALLED __m256i _mm256_maskz_loadu_epi16(__mmask16 mask, const void* p) {
  simde__m256i_private x{};
  for (int i = 0; i < 16; ++i)
    if ((mask >> i & 1) != 0) x.u16[i] = static_cast<const uint16_t*>(p)[i];
  return simde__m256i_from_private(x);
}
}  // namespace
}  // namespace sh::kernels::avx512
SH_TARGET_END

#undef SH_TARGET_BEGIN
#define SH_TARGET_BEGIN(features) SH_PRAGMA(GCC push_options) SH_PRAGMA(GCC target("avx2,fma,f16c"))
#define x86_has(...) x86_has({.ecx_1 = kCpuFma | kCpuF16c, .ebx_7 = kCpuAvx2}, kSavedAvx)
// The target's assembly is empty and names a 512-bit register, to keep a compiler from fusing a multiplication
// with an addition (here -ffp-contract=off does that) and from replacing one.
#define asm(...)
#include "kernels/targets/avx512.cpp"
