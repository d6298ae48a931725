// SPDX-License-Identifier: MIT
// Inside of the room: activations in the form that a weight format wants, and one tile of W x. linear() and moe()
// are made of it.
#pragma once

#include <algorithm>
#include <cstdint>

#include "ops/ops.h"

namespace sh::ops {

/// Weight rows of one task. 32 rows of 4096 4-bit weights are 74 KB: with a column tile they stay in a private L2
/// cache.
inline constexpr int64_t kRowsPerTask = 32;
/// Tokens multiplied before the next ones: 32 rows of 4096 8-bit activations are 140 KB.
inline constexpr int64_t kTokensPerTile = 32;
/// Tasks smaller than this cost more to hand out than to run: some 5 us of multiplying, as much as waking a worker.
inline constexpr int64_t kMinTaskProducts = 1 << 16;

/// Input rows of a product: as they are, and rounded to 8 bits if some weight wants that.
struct Activations {
  const float* x = nullptr;  // [n, n_in], `stride` floats apart
  int64_t stride = 0;
  const std::byte* q8 = nullptr;  // [n] rows of `q8_row_bytes`
  int64_t q8_row_bytes = 0;
};

inline bool wants_q8(const OpContext& ctx, const Weight& w) {
  return ctx.kernels->weight_kernel(w.dtype).form == kernels::ActivationForm::q8;
}

/// Weight rows that one task of a product with n tokens takes. Results do not depend on it: kernels sum over the
/// inner dimension only.
inline int64_t rows_per_task(const Weight& w, int64_t n) {
  const int64_t row_products = std::max<int64_t>(1, w.n_in * n);
  return std::max(kRowsPerTask, (kMinTaskProducts + row_products - 1) / row_products);
}

/// Rows [row_begin, row_end) of expert `stack_index` times n tokens starting at token `first`, plus the bias.
inline void multiply_rows(const OpContext& ctx, const Weight& w, int64_t stack_index, const Activations& a,
                          int64_t first, int64_t n, int64_t row_begin, int64_t row_end, float* out,
                          int64_t out_stride, const float* bias) {
  const kernels::WeightKernel kernel = ctx.kernels->weight_kernel(w.dtype);
  const bool is_q8 = kernel.form == kernels::ActivationForm::q8;
  const int64_t activation_bytes = is_q8 ? a.q8_row_bytes : a.stride * static_cast<int64_t>(sizeof(float));
  const std::byte* activations = is_q8 ? a.q8 : reinterpret_cast<const std::byte*>(a.x);
  for (int64_t tile = 0; tile < n; tile += kTokensPerTile) {
    const int64_t n_cols = std::min(kTokensPerTile, n - tile);
    kernel.matmul({.weights = w.expert(stack_index),
                   .weight_row_bytes = w.row_bytes(),
                   .n_inner = w.n_in,
                   .row_begin = row_begin,
                   .row_end = row_end,
                   .activations = activations + (first + tile) * activation_bytes,
                   .activation_row_bytes = activation_bytes,
                   .n_cols = n_cols,
                   .out = out + (first + tile) * out_stride,
                   .out_stride = out_stride});
    if (bias == nullptr) continue;
    for (int64_t c = 0; c < n_cols; ++c) {
      float* y = out + (first + tile + c) * out_stride + row_begin;
      ctx.kernels->add(y, bias + row_begin, y, row_end - row_begin);
    }
  }
}

}  // namespace sh::ops
