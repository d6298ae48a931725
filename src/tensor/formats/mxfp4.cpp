// SPDX-License-Identifier: MIT
#include "tensor/blocks.h"
#include "tensor/codec.h"
#include "tensor/dtype.h"
#include "tensor/search.h"

namespace sh {

namespace {
void dequantize(const std::byte* blocks, int64_t n, float* out) {
  codec::over_blocks<kSmallBlock, const BlockMXFP4>(blocks, n, out, [](const BlockMXFP4& block, float* y) {
    const float d = mxfp4_scale(block.e);
    for (int j = 0; j < 16; ++j) {
      y[j] = kMxfp4Values[block.qs[j] & 15] * d;
      y[j + 16] = kMxfp4Values[block.qs[j] >> 4] * d;
    }
  });
}

/// The code whose value is nearest to v; the smaller magnitude of two equally near.
int nearest_code(float v) {
  const float magnitude = std::abs(v);
  int code = 0;
  while (code < 7 && magnitude > 0.5f * static_cast<float>(kMxfp4Values[static_cast<size_t>(code)] +
                                                           kMxfp4Values[static_cast<size_t>(code) + 1]))
    ++code;
  return v < 0 && code > 0 ? code + 8 : code;
}

double error_under(const std::array<float, kSmallBlock>& x, uint8_t e) {
  const float d = mxfp4_scale(e);
  double error = 0;
  for (const float v : x) {
    const double difference = v - static_cast<double>(d) * kMxfp4Values[static_cast<size_t>(nearest_code(v / d))];
    error += difference * difference;
  }
  return error;
}

/// The exponent that puts the largest magnitude at 6 (doubled: 12) or just below, or one of its neighbours,
/// whichever is nearer to x.
uint8_t best_exponent(const std::array<float, kSmallBlock>& x) {
  constexpr int kLargest = 252;  // 12 · 2^(252 - 128) is the largest that is finite
  const float largest = codec::largest_magnitude(x.data(), kSmallBlock);
  if (largest == 0.0f) return 0;
  const int middle = std::clamp(std::ilogb(largest) - 2 + 127, 0, kLargest);
  int best = middle;
  double best_error = error_under(x, static_cast<uint8_t>(middle));
  for (const int e : {middle - 1, middle + 1}) {
    if (e < 0 || e > kLargest) continue;
    const double error = error_under(x, static_cast<uint8_t>(e));
    if (error >= best_error) continue;
    best = e;
    best_error = error;
  }
  return static_cast<uint8_t>(best);
}

void quantize(const float* x, int64_t n, std::byte* blocks) {
  codec::over_blocks<kSmallBlock, BlockMXFP4>(blocks, n, x, [](BlockMXFP4& block, const float* v) {
    const auto finite = search::finite_block<kSmallBlock>(v);
    block.e = best_exponent(finite);
    const float d = mxfp4_scale(block.e);
    for (size_t j = 0; j < 16; ++j)
      block.qs[j] = static_cast<uint8_t>(nearest_code(finite[j] / d) | nearest_code(finite[j + 16] / d) << 4);
  });
}
}  // namespace

extern const TensorFormat formats_mxfp4;
const TensorFormat formats_mxfp4 = {DType::mxfp4, "mxfp4", kSmallBlock, sizeof(BlockMXFP4), dequantize, quantize};

}  // namespace sh
