// SPDX-License-Identifier: MIT
// AVX-512 with byte dot products (VNNI): Intel from Cascade Lake and Ice Lake, AMD from Zen 4. BF16 weights are
// widened to floats: the dot product of AVX-512 BF16 would round activations to 8 bits (what two of them, for
// halves of an activation, multiply a cycle is what the float multiply-add does).
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

extern const KernelSet targets_avx512;

#if defined(__x86_64__)

namespace {
bool supported_avx512() {
  return x86_has({.ecx_1 = kCpuFma | kCpuF16c,
                  .ebx_7 = kCpuAvx2 | kCpuAvx512f | kCpuAvx512dq | kCpuAvx512bw | kCpuAvx512vl,
                  .ecx_7 = kCpuAvx512vnni},
                 kSavedAvx512);
}
}  // namespace

SH_TARGET_BEGIN("avx2,fma,f16c,avx512f,avx512bw,avx512vl,avx512dq,avx512vnni")
namespace avx512 {
namespace {
// Each body builds on those before it.
// clang-format off
#include "kernels/bodies/avx512_primitives.inl"
#include "kernels/bodies/x86_primitives.inl"
#include "kernels/bodies/elementwise.inl"
#include "kernels/bodies/quant_formats.inl"
#include "kernels/bodies/codecs.inl"
#include "kernels/bodies/matmul_float.inl"
#include "kernels/bodies/matmul_quant.inl"
#include "kernels/bodies/gemm.inl"
#include "kernels/bodies/key_rows.inl"
#include "kernels/bodies/coded_keys.inl"
#include "kernels/bodies/turn_pairs.inl"
#include "kernels/bodies/attend.inl"
#include "kernels/bodies/set.inl"
// clang-format on
}  // namespace
}  // namespace avx512
SH_TARGET_END

constexpr KernelSet targets_avx512 = avx512::shared_set("avx512", 20, "avx512f bw vl dq vnni", supported_avx512);
#else
constexpr KernelSet targets_avx512 = absent_set("avx512", 20, "an x86-64 CPU with avx512f bw vl dq vnni");
#endif

}  // namespace sh::kernels
