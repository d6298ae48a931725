// SPDX-License-Identifier: MIT
// Inside of the room: activations in the form that a weight format wants, and one tile of W x. linear() and moe()
// are made of it.
#pragma once

#include <algorithm>
#include <cstdint>

#include "ops/ops.h"

namespace sh::ops {

/// Weight rows of one task: the rows that a kernel unpacks before the tokens pass, where there are enough of them
/// for all threads, so that the activations are fetched less often; else one panel.
inline constexpr int64_t kRowsPerTask = 128;
static_assert(kRowsPerTask % kPackedRows == 0);
/// Tokens multiplied before the next ones. Of 8-bit rows a kernel works on 512 elements at a time, which are some
/// 350 KB of 512 tokens, a part of a second cache; 32 rows of 4096 floats are 512 KB.
inline constexpr int64_t kQ8TokensPerTile = 512, kFloatTokensPerTile = 32;
/// Tasks smaller than this cost more to hand out than to run: some 5 us of multiplying, as much as waking a
/// worker.
inline constexpr int64_t kMinTaskProducts = 1 << 17;

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

/// Weight rows that one task of a product with n tokens takes, whole panels. Results do not depend on it: kernels
/// sum over the inner dimension only.
inline int64_t rows_per_task(const OpContext& ctx, const Weight& w, int64_t n) {
  const int64_t row_products = std::max<int64_t>(1, w.n_in * n);
  const int64_t fewest = (kMinTaskProducts + row_products - 1) / row_products;
  const bool has_many = w.n_out >= 4 * kRowsPerTask * ctx.pool->n_threads();
  return std::max(has_many ? kRowsPerTask : kPackedRows, (fewest + kPackedRows - 1) / kPackedRows * kPackedRows);
}

/// Rows [row_begin, row_end) of expert `stack_index` times n tokens starting at token `first`, plus the bias.
inline void multiply_rows(const OpContext& ctx, const Weight& w, int64_t stack_index, const Activations& a,
                          int64_t first, int64_t n, int64_t row_begin, int64_t row_end, float* out,
                          int64_t out_stride, const float* bias) {
  const kernels::WeightKernel kernel = ctx.kernels->weight_kernel(w.dtype);
  const bool is_q8 = kernel.form == kernels::ActivationForm::q8;
  const int64_t activation_bytes = is_q8 ? a.q8_row_bytes : a.stride * static_cast<int64_t>(sizeof(float));
  const std::byte* activations = is_q8 ? a.q8 : reinterpret_cast<const std::byte*>(a.x);
  const int64_t step = is_q8 ? kQ8TokensPerTile : kFloatTokensPerTile;
  const auto product = w.is_packed ? kernel.matmul_packed : kernel.matmul;
  SH_CHECK(product != nullptr, "packed weights for a kernel set that does not read them");
  for (int64_t tile = 0; tile < n; tile += step) {
    const int64_t n_cols = std::min(step, n - tile);
    product({.weights = w.expert(stack_index),
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
