// SPDX-License-Identifier: MIT
#include "tensor/blocks.h"
#include "tensor/codec.h"
#include "tensor/dtype.h"

namespace sh {

namespace {
void dequantize(const std::byte* blocks, int64_t n, float* out) {
  codec::over_blocks<kSmallBlock, const BlockQ4_1>(blocks, n, out, [](const BlockQ4_1& block, float* y) {
    const float d = half_to_float(block.d), m = half_to_float(block.m);
    for (int j = 0; j < 16; ++j) {
      y[j] = static_cast<float>(block.qs[j] & 15) * d + m;
      y[j + 16] = static_cast<float>(block.qs[j] >> 4) * d + m;
    }
  });
}
void quantize(const float* x, int64_t n, std::byte* blocks) {
  codec::over_blocks<kSmallBlock, BlockQ4_1>(blocks, n, x, [](BlockQ4_1& block, const float* v) {
    const codec::Range range = codec::value_range(v, kSmallBlock);
    const float d = codec::finite_scale((range.high - range.low) / 15.0f);
    const float m = codec::finite_scale(range.low);
    const float inverse = codec::inverse_or_zero(d);
    block.d = float_to_half(d);
    block.m = float_to_half(m);
    for (int j = 0; j < 16; ++j) {
      const int low = codec::truncate_code((v[j] - m) * inverse + 0.5f, 0, 15);
      const int high = codec::truncate_code((v[j + 16] - m) * inverse + 0.5f, 0, 15);
      block.qs[j] = static_cast<uint8_t>(low | high << 4);
    }
  });
}
}  // namespace

extern const TensorFormat formats_q4_1;
const TensorFormat formats_q4_1 = {DType::q4_1, "q4_1", kSmallBlock, sizeof(BlockQ4_1), dequantize, quantize};

}  // namespace sh
