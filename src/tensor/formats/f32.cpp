// SPDX-License-Identifier: MIT
#include <cstring>

#include "tensor/dtype.h"

namespace sh {

namespace {
void dequantize(const std::byte* blocks, int64_t n, float* out) {
  if (n > 0) std::memcpy(out, blocks, static_cast<size_t>(n) * sizeof(float));
}
void quantize(const float* x, int64_t n, std::byte* blocks) {
  if (n > 0) std::memcpy(blocks, x, static_cast<size_t>(n) * sizeof(float));
}
}  // namespace

extern const TensorFormat formats_f32;
const TensorFormat formats_f32 = {DType::f32, "f32", 1, 4, dequantize, quantize};

}  // namespace sh
