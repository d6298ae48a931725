// SPDX-License-Identifier: MIT
#include "tensor/blocks.h"
#include "tensor/codec.h"
#include "tensor/dtype.h"
#include "tensor/search.h"

namespace sh {

namespace {
void dequantize(const std::byte* blocks, int64_t n, float* out) {
  codec::over_blocks<kSuperBlock, const BlockQ4_K>(blocks, n, out, [](const BlockQ4_K& block, float* y) {
    const float d = half_to_float(block.d), dmin = half_to_float(block.dmin);
    uint8_t scales[8], mins[8];
    unpack_k4_scales(block.scales, scales, mins);
    for (int g = 0; g < 8; ++g) {
      const float scale = d * static_cast<float>(scales[g]), min = dmin * static_cast<float>(mins[g]);
      for (int l = 0; l < 32; ++l)
        y[32 * g + l] = scale * static_cast<float>(codec::k_nibble(block.qs, g, l)) - min;
    }
  });
}
void quantize(const float* x, int64_t n, std::byte* blocks) {
  codec::over_blocks<kSuperBlock, BlockQ4_K>(blocks, n, x, [](BlockQ4_K& block, const float* v) {
    const auto finite = search::finite_block<kSuperBlock>(v);
    const search::GroupRanges ranges = search::fit_group_ranges(finite, 32, 63, 15);
    block = {};
    block.d = ranges.d;
    block.dmin = ranges.dmin;
    pack_k4_scales(ranges.scales.data(), ranges.mins.data(), block.scales);
    for (int i = 0; i < kSuperBlock; ++i) {
      const int g = i / 32;
      codec::add_k_nibble(block.qs, g, i % 32,
                          search::range_code(finite[static_cast<size_t>(i)], ranges.scale(g), ranges.min(g), 15));
    }
  });
}
}  // namespace

extern const TensorFormat formats_q4_k;
const TensorFormat formats_q4_k = {DType::q4_k, "q4_K", kSuperBlock, sizeof(BlockQ4_K), dequantize, quantize};

}  // namespace sh
