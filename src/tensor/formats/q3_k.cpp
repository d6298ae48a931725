// SPDX-License-Identifier: MIT
#include "tensor/blocks.h"
#include "tensor/codec.h"
#include "tensor/dtype.h"
#include "tensor/search.h"

namespace sh {

namespace {
constexpr search::IntegerCodes kCodes{-4, 3};

void dequantize(const std::byte* blocks, int64_t n, float* out) {
  codec::over_blocks<kSuperBlock, const BlockQ3_K>(blocks, n, out, [](const BlockQ3_K& block, float* y) {
    const float d = half_to_float(block.d);
    int8_t scales[16];
    unpack_q3_k_scales(block.scales, scales);
    for (int i = 0; i < kSuperBlock; ++i) {
      const int top = (block.hmask[i % 32] >> (i / 32)) & 1;
      y[i] = d * scales[i / 16] * static_cast<float>(codec::two_bit_code(block.qs, i) + 4 * top - 4);
    }
  });
}
void pack_scales(const search::GroupScales& fitted, BlockQ3_K& block) {
  for (int g = 0; g < 16; ++g) {
    const int scale = fitted.scales[static_cast<size_t>(g)] + 32;
    block.scales[g % 8] |= static_cast<uint8_t>((scale & 15) << (4 * (g / 8)));
    block.scales[8 + g % 4] |= static_cast<uint8_t>((scale >> 4) << (2 * (g / 4)));
  }
}
void quantize(const float* x, int64_t n, std::byte* blocks) {
  codec::over_blocks<kSuperBlock, BlockQ3_K>(blocks, n, x, [](BlockQ3_K& block, const float* v) {
    const auto finite = search::finite_block<kSuperBlock>(v);
    const search::GroupScales fitted = search::fit_group_scales(finite, 16, 32, 4.0f, kCodes);
    block = {};
    block.d = fitted.d;
    pack_scales(fitted, block);
    for (int i = 0; i < kSuperBlock; ++i) {
      const int code = kCodes.code(finite[static_cast<size_t>(i)] * codec::inverse_or_zero(fitted.of(i / 16))) + 4;
      codec::add_two_bit_code(block.qs, i, code & 3);
      block.hmask[i % 32] |= static_cast<uint8_t>((code >> 2) << (i / 32));
    }
  });
}
}  // namespace

extern const TensorFormat formats_q3_k;
const TensorFormat formats_q3_k = {
    DType::q3_k,  "q3_K",   kSuperBlock, sizeof(BlockQ3_K), dequantize, quantize, kOddBytesAt<BlockQ3_K>};

}  // namespace sh
