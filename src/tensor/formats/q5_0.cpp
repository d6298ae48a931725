// SPDX-License-Identifier: MIT
#include "tensor/blocks.h"
#include "tensor/codec.h"
#include "tensor/dtype.h"

namespace sh {

namespace {
void dequantize(const std::byte* blocks, int64_t n, float* out) {
  codec::over_blocks<kSmallBlock, const BlockQ5_0>(blocks, n, out, [](const BlockQ5_0& block, float* y) {
    const float d = half_to_float(block.d);
    for (int j = 0; j < 16; ++j) {
      y[j] = static_cast<float>(codec::five_bit_code(block.qh, block.qs, j) - 16) * d;
      y[j + 16] = static_cast<float>(codec::five_bit_code(block.qh, block.qs, j + 16) - 16) * d;
    }
  });
}
// As in Q4_0 the element of largest magnitude gets code 0, the end that reaches further.
void quantize(const float* x, int64_t n, std::byte* blocks) {
  codec::over_blocks<kSmallBlock, BlockQ5_0>(blocks, n, x, [](BlockQ5_0& block, const float* v) {
    const float d = codec::finite_scale(codec::signed_largest(v, kSmallBlock) / -16.0f);
    const float inverse = codec::inverse_or_zero(d);
    block = {};
    block.d = float_to_half(d);
    for (int j = 0; j < kSmallBlock; ++j)
      codec::add_five_bit_code(block.qh, block.qs, j, codec::truncate_code(v[j] * inverse + 16.5f, 0, 31));
  });
}
}  // namespace

extern const TensorFormat formats_q5_0;
const TensorFormat formats_q5_0 = {DType::q5_0, "q5_0", kSmallBlock, sizeof(BlockQ5_0), dequantize, quantize};

}  // namespace sh
