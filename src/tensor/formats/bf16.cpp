// SPDX-License-Identifier: MIT
#include <cstring>

#include "tensor/dtype.h"
#include "tensor/half.h"

namespace sh {

namespace {
void dequantize(const std::byte* blocks, int64_t n, float* out) {
  for (int64_t i = 0; i < n; ++i) {
    uint16_t bits;
    std::memcpy(&bits, blocks + 2 * i, 2);
    out[i] = bf16_to_float(bits);
  }
}
void quantize(const float* x, int64_t n, std::byte* blocks) {
  for (int64_t i = 0; i < n; ++i) {
    const uint16_t bits = float_to_bf16(x[i]);
    std::memcpy(blocks + 2 * i, &bits, 2);
  }
}
}  // namespace

extern const TensorFormat formats_bf16;
const TensorFormat formats_bf16 = {DType::bf16, "bf16", 1, 2, dequantize, quantize};

}  // namespace sh
