// SPDX-License-Identifier: MIT
#include "tensor/blocks.h"
#include "tensor/codec.h"
#include "tensor/dtype.h"

namespace sh {

namespace {
void dequantize(const std::byte* blocks, int64_t n, float* out) {
  codec::over_blocks<kSmallBlock, const BlockQ5_1>(blocks, n, out, [](const BlockQ5_1& block, float* y) {
    const float d = half_to_float(block.d), m = half_to_float(block.m);
    for (int j = 0; j < kSmallBlock; ++j)
      y[j] = static_cast<float>(codec::five_bit_code(block.qh, block.qs, j)) * d + m;
  });
}
void quantize(const float* x, int64_t n, std::byte* blocks) {
  codec::over_blocks<kSmallBlock, BlockQ5_1>(blocks, n, x, [](BlockQ5_1& block, const float* v) {
    const codec::Range range = codec::value_range(v, kSmallBlock);
    const float d = codec::finite_scale((range.high - range.low) / 31.0f);
    const float m = codec::finite_scale(range.low);
    const float inverse = codec::inverse_or_zero(d);
    block = {};
    block.d = float_to_half(d);
    block.m = float_to_half(m);
    for (int j = 0; j < kSmallBlock; ++j)
      codec::add_five_bit_code(block.qh, block.qs, j, codec::truncate_code((v[j] - m) * inverse + 0.5f, 0, 31));
  });
}
}  // namespace

extern const TensorFormat formats_q5_1;
const TensorFormat formats_q5_1 = {DType::q5_1, "q5_1", kSmallBlock, sizeof(BlockQ5_1), dequantize, quantize};

}  // namespace sh
