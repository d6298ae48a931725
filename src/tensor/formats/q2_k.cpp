// SPDX-License-Identifier: MIT
#include "tensor/blocks.h"
#include "tensor/codec.h"
#include "tensor/dtype.h"
#include "tensor/search.h"

namespace sh {

namespace {
void dequantize(const std::byte* blocks, int64_t n, float* out) {
  codec::over_blocks<kSuperBlock, const BlockQ2_K>(blocks, n, out, [](const BlockQ2_K& block, float* y) {
    const float d = half_to_float(block.d), dmin = half_to_float(block.dmin);
    for (int g = 0; g < 16; ++g) {
      const float scale = d * static_cast<float>(block.scales[g] & 15);
      const float min = dmin * static_cast<float>(block.scales[g] >> 4);
      for (int i = 16 * g; i < 16 * g + 16; ++i)
        y[i] = scale * static_cast<float>(codec::two_bit_code(block.qs, i)) - min;
    }
  });
}
void quantize(const float* x, int64_t n, std::byte* blocks) {
  codec::over_blocks<kSuperBlock, BlockQ2_K>(blocks, n, x, [](BlockQ2_K& block, const float* v) {
    const auto finite = search::finite_block<kSuperBlock>(v);
    const search::GroupRanges ranges = search::fit_group_ranges(finite, 16, 15, 3);
    block = {};
    block.d = ranges.d;
    block.dmin = ranges.dmin;
    for (int g = 0; g < 16; ++g) {
      const auto at = static_cast<size_t>(g);
      block.scales[g] = static_cast<uint8_t>(ranges.scales[at] | ranges.mins[at] << 4);
      for (int i = 16 * g; i < 16 * g + 16; ++i)
        codec::add_two_bit_code(
            block.qs, i, search::range_code(finite[static_cast<size_t>(i)], ranges.scale(g), ranges.min(g), 3));
    }
  });
}
}  // namespace

extern const TensorFormat formats_q2_k;
const TensorFormat formats_q2_k = {DType::q2_k, "q2_K", kSuperBlock, sizeof(BlockQ2_K), dequantize, quantize};

}  // namespace sh
