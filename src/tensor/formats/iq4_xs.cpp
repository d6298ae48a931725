// SPDX-License-Identifier: MIT
#include "tensor/blocks.h"
#include "tensor/codec.h"
#include "tensor/dtype.h"
#include "tensor/search.h"

namespace sh {

namespace {
constexpr search::TableCodes kCodes{kIq4Values};

void dequantize(const std::byte* blocks, int64_t n, float* out) {
  codec::over_blocks<kSuperBlock, const BlockIQ4_XS>(blocks, n, out, [](const BlockIQ4_XS& block, float* y) {
    const float d = half_to_float(block.d);
    for (int g = 0; g < 8; ++g) {
      const int low = (block.scales_l[g / 2] >> (4 * (g % 2))) & 15;
      const int high = (block.scales_h >> (2 * g)) & 3;
      const float scale = d * static_cast<float>((low | high << 4) - 32);
      for (int j = 0; j < 16; ++j) {
        const uint8_t pair = block.qs[16 * g + j];
        y[32 * g + j] = scale * kIq4Values[pair & 15];
        y[32 * g + j + 16] = scale * kIq4Values[pair >> 4];
      }
    }
  });
}
void quantize(const float* x, int64_t n, std::byte* blocks) {
  codec::over_blocks<kSuperBlock, BlockIQ4_XS>(blocks, n, x, [](BlockIQ4_XS& block, const float* v) {
    const auto finite = search::finite_block<kSuperBlock>(v);
    const search::GroupScales fitted = search::fit_group_scales(finite, 32, 32, 127.0f, kCodes);
    block = {};
    block.d = fitted.d;
    for (int g = 0; g < 8; ++g) {
      const int scale = fitted.scales[static_cast<size_t>(g)] + 32;
      block.scales_l[g / 2] |= static_cast<uint8_t>((scale & 15) << (4 * (g % 2)));
      block.scales_h = static_cast<uint16_t>(block.scales_h | (scale >> 4) << (2 * g));
      const float inverse = codec::inverse_or_zero(fitted.of(g));
      const float* group = finite.data() + 32 * g;
      for (int j = 0; j < 16; ++j)
        block.qs[16 * g + j] =
            static_cast<uint8_t>(kCodes.code(group[j] * inverse) | kCodes.code(group[j + 16] * inverse) << 4);
    }
  });
}
}  // namespace

extern const TensorFormat formats_iq4_xs;
const TensorFormat formats_iq4_xs = {DType::iq4_xs,       "iq4_xs",   kSuperBlock,
                                     sizeof(BlockIQ4_XS), dequantize, quantize};

}  // namespace sh
