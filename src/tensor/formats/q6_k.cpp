// SPDX-License-Identifier: MIT
#include "tensor/blocks.h"
#include "tensor/codec.h"
#include "tensor/dtype.h"
#include "tensor/search.h"

namespace sh {

namespace {
constexpr search::IntegerCodes kCodes{-32, 31};

/// Where element i of a block lies: its nibble and its pair of bits.
struct Place {
  int low_byte, low_shift, high_byte, high_shift;
};
constexpr Place place_of(int i) {
  const int half = i / 128, quarter = i % 128 / 32, l = i % 32;
  return {64 * half + 32 * (quarter % 2) + l, 4 * (quarter / 2), 32 * half + l, 2 * quarter};
}

void dequantize(const std::byte* blocks, int64_t n, float* out) {
  codec::over_blocks<kSuperBlock, const BlockQ6_K>(blocks, n, out, [](const BlockQ6_K& block, float* y) {
    const float d = half_to_float(block.d);
    for (int i = 0; i < kSuperBlock; ++i) {
      const Place at = place_of(i);
      const int low = (block.ql[at.low_byte] >> at.low_shift) & 15;
      const int high = (block.qh[at.high_byte] >> at.high_shift) & 3;
      y[i] = d * block.scales[i / 16] * static_cast<float>((low | high << 4) - 32);
    }
  });
}
void quantize(const float* x, int64_t n, std::byte* blocks) {
  codec::over_blocks<kSuperBlock, BlockQ6_K>(blocks, n, x, [](BlockQ6_K& block, const float* v) {
    const auto finite = search::finite_block<kSuperBlock>(v);
    const search::GroupScales fitted = search::fit_group_scales(finite, 16, 128, 32.0f, kCodes);
    block = {};
    block.d = fitted.d;
    for (int g = 0; g < 16; ++g) block.scales[g] = static_cast<int8_t>(fitted.scales[static_cast<size_t>(g)]);
    for (int i = 0; i < kSuperBlock; ++i) {
      const Place at = place_of(i);
      const int code =
          kCodes.code(finite[static_cast<size_t>(i)] * codec::inverse_or_zero(fitted.of(i / 16))) + 32;
      block.ql[at.low_byte] |= static_cast<uint8_t>((code & 15) << at.low_shift);
      block.qh[at.high_byte] |= static_cast<uint8_t>((code >> 4) << at.high_shift);
    }
  });
}
}  // namespace

extern const TensorFormat formats_q6_k;
const TensorFormat formats_q6_k = {
    DType::q6_k,  "q6_K",   kSuperBlock, sizeof(BlockQ6_K), dequantize, quantize, kOddBytesAt<BlockQ6_K>};

}  // namespace sh
