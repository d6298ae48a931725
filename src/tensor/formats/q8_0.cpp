// SPDX-License-Identifier: MIT
#include "tensor/blocks.h"
#include "tensor/codec.h"
#include "tensor/dtype.h"

namespace sh {

namespace {
void dequantize(const std::byte* blocks, int64_t n, float* out) {
  codec::over_blocks<kSmallBlock, const BlockQ8_0>(blocks, n, out, [](const BlockQ8_0& block, float* y) {
    const float d = half_to_float(block.d);
    for (int i = 0; i < kSmallBlock; ++i) y[i] = static_cast<float>(block.qs[i]) * d;
  });
}
void quantize(const float* x, int64_t n, std::byte* blocks) {
  codec::over_blocks<kSmallBlock, BlockQ8_0>(blocks, n, x, [](BlockQ8_0& block, const float* v) {
    const float d = codec::finite_scale(codec::largest_magnitude(v, kSmallBlock) / 127.0f);
    const float inverse = codec::inverse_or_zero(d);
    block.d = float_to_half(d);
    for (int i = 0; i < kSmallBlock; ++i)
      block.qs[i] = static_cast<int8_t>(codec::round_code(v[i] * inverse, -127, 127));
  });
}
}  // namespace

extern const TensorFormat formats_q8_0;
const TensorFormat formats_q8_0 = {DType::q8_0, "q8_0", kSmallBlock, sizeof(BlockQ8_0), dequantize, quantize};

}  // namespace sh
