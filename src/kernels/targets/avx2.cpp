// SPDX-License-Identifier: MIT
// AVX2 with FMA and F16C: Intel from Haswell, AMD from Excavator.
#include <cstddef>
#include <cstdint>

#include "base/check.h"
#include "kernels/kernel_set.h"
#include "kernels/q8_row.h"
#include "kernels/scratch.h"
#include "kernels/target_region.h"
#include "tensor/blocks.h"
#include "tensor/packed.h"

namespace sh::kernels {

extern const KernelSet targets_avx2;

#if defined(__x86_64__)

namespace {
bool supported_avx2() {
  return x86_has({.ecx_1 = kCpuFma | kCpuF16c, .ebx_7 = kCpuAvx2}, kSavedAvx);
}
}  // namespace

SH_TARGET_BEGIN("avx2,fma,f16c")
namespace avx2 {
namespace {
// Each body builds on those before it.
// clang-format off
#include "kernels/bodies/avx2_primitives.inl"
#include "kernels/bodies/x86_primitives.inl"
#include "kernels/bodies/elementwise.inl"
#include "kernels/bodies/quant_formats.inl"
#include "kernels/bodies/codecs.inl"
#include "kernels/bodies/matmul_float.inl"
#include "kernels/bodies/matmul_quant.inl"
#include "kernels/bodies/gemm.inl"
#include "kernels/bodies/key_rows.inl"
#include "kernels/bodies/float_keys.inl"
#include "kernels/bodies/attend.inl"
#include "kernels/bodies/set.inl"
// clang-format on
}  // namespace
}  // namespace avx2
SH_TARGET_END

constexpr KernelSet targets_avx2 = avx2::shared_set("avx2", 10, "avx2 fma f16c", supported_avx2);
#else
constexpr KernelSet targets_avx2 = absent_set("avx2", 10, "an x86-64 CPU with avx2 fma f16c");
#endif

}  // namespace sh::kernels
