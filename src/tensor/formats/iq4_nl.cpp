// SPDX-License-Identifier: MIT
#include "tensor/blocks.h"
#include "tensor/codec.h"
#include "tensor/dtype.h"
#include "tensor/search.h"

namespace sh {

namespace {
constexpr search::TableCodes kCodes{kIq4Values};

void dequantize(const std::byte* blocks, int64_t n, float* out) {
  codec::over_blocks<kSmallBlock, const BlockIQ4_NL>(blocks, n, out, [](const BlockIQ4_NL& block, float* y) {
    const float d = half_to_float(block.d);
    for (int j = 0; j < 16; ++j) {
      y[j] = d * kIq4Values[block.qs[j] & 15];
      y[j + 16] = d * kIq4Values[block.qs[j] >> 4];
    }
  });
}
void quantize(const float* x, int64_t n, std::byte* blocks) {
  codec::over_blocks<kSmallBlock, BlockIQ4_NL>(blocks, n, x, [](BlockIQ4_NL& block, const float* v) {
    const auto finite = search::finite_block<kSmallBlock>(v);
    block.d = float_to_half(codec::finite_scale(search::best_scale(finite, 127.0f, kCodes)));
    const float inverse = codec::inverse_or_zero(half_to_float(block.d));
    for (size_t j = 0; j < 16; ++j)
      block.qs[j] =
          static_cast<uint8_t>(kCodes.code(finite[j] * inverse) | kCodes.code(finite[j + 16] * inverse) << 4);
  });
}
}  // namespace

extern const TensorFormat formats_iq4_nl;
const TensorFormat formats_iq4_nl = {DType::iq4_nl,       "iq4_nl",   kSmallBlock,
                                     sizeof(BlockIQ4_NL), dequantize, quantize};

}  // namespace sh
