// SPDX-License-Identifier: MIT
#include "tensor/blocks.h"
#include "tensor/codec.h"
#include "tensor/dtype.h"

namespace sh {

namespace {
void dequantize(const std::byte* blocks, int64_t n, float* out) {
  codec::over_blocks<kSmallBlock, const BlockQ4_0>(blocks, n, out, [](const BlockQ4_0& block, float* y) {
    const float d = half_to_float(block.d);
    for (int j = 0; j < 16; ++j) {
      y[j] = static_cast<float>((block.qs[j] & 15) - 8) * d;
      y[j + 16] = static_cast<float>((block.qs[j] >> 4) - 8) * d;
    }
  });
}
// The element of largest magnitude gets code 0, which reaches further (-8) than the other end (+7).
void quantize(const float* x, int64_t n, std::byte* blocks) {
  codec::over_blocks<kSmallBlock, BlockQ4_0>(blocks, n, x, [](BlockQ4_0& block, const float* v) {
    const float d = codec::finite_scale(codec::signed_largest(v, kSmallBlock) / -8.0f);
    const float inverse = codec::inverse_or_zero(d);
    block.d = float_to_half(d);
    for (int j = 0; j < 16; ++j) {
      const int low = codec::truncate_code(v[j] * inverse + 8.5f, 0, 15);
      const int high = codec::truncate_code(v[j + 16] * inverse + 8.5f, 0, 15);
      block.qs[j] = static_cast<uint8_t>(low | high << 4);
    }
  });
}
}  // namespace

extern const TensorFormat formats_q4_0;
const TensorFormat formats_q4_0 = {DType::q4_0, "q4_0", kSmallBlock, sizeof(BlockQ4_0), dequantize, quantize};

}  // namespace sh
