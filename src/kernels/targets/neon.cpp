// SPDX-License-Identifier: MIT
// NEON with byte dot products: Arm from Cortex-A76 and Neoverse N1. Conversions of binary16 are in every 64-bit
// Arm CPU; half arithmetic and i8mm are not used.
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

extern const KernelSet targets_neon;

#if defined(__aarch64__)

namespace {
bool supported_neon() {
  return arm_has(HWCAP_ASIMD | HWCAP_ASIMDDP);
}
}  // namespace

SH_TARGET_BEGIN("arch=armv8.2-a+dotprod")
namespace neon {
namespace {
// Each body builds on those before it.
// clang-format off
#include "kernels/bodies/neon_primitives.inl"
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
}  // namespace neon
SH_TARGET_END

constexpr KernelSet targets_neon = neon::shared_set("neon", 10, "neon dotprod", supported_neon);
#else
constexpr KernelSet targets_neon = absent_set("neon", 10, "a 64-bit Arm CPU with neon dotprod");
#endif

}  // namespace sh::kernels
