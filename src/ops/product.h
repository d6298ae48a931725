// SPDX-License-Identifier: MIT
// Inside of the room: activations in the forms that weights want, and what one task multiplies. linear(),
// gated_linear() and moe() are made of it.
#pragma once

#include <algorithm>
#include <cstdint>

#include "kernels/q8_row.h"
#include "ops/ops.h"

namespace sh::ops {

/// Weight rows of one task: the rows that a kernel unpacks before the tokens pass, where there are enough of them
/// for all threads, so that the activations are fetched less often; else one panel.
inline constexpr int64_t kRowsPerTask = 128;
static_assert(kRowsPerTask % kPackedRows == 0 && kPackedRows % kernels::kQ8Group == 0);
/// Tokens multiplied before the next ones. Of 8-bit rows a kernel works on 512 elements at a time, which are some
/// 350 KB of 512 tokens, a part of a second cache; 32 rows of 4096 floats are 512 KB.
inline constexpr int64_t kQ8TokensPerTile = 512, kFloatTokensPerTile = 32;
/// Tasks smaller than this cost more to hand out than to run: some 5 us of multiplying, as much as waking a
/// worker.
inline constexpr int64_t kMinTaskProducts = 1 << 17;

/// Forms in which the readers of some activations want them.
struct Forms {
  bool f32 = false, q8 = false;
};
Forms forms_of(const OpContext& ctx, std::initializer_list<const Weight*> readers);

/// n rows in the buffer, to be filled by whoever has it, as products get them.
Activations make_rows(const OpContext& ctx, ActivationBuffer& buffer, int64_t n, int64_t n_in, Forms forms);

/// Weight rows that one task of a product with n tokens takes, whole panels. Results do not depend on it: kernels
/// sum over the inner dimension only.
inline int64_t rows_per_task(const OpContext& ctx, const Weight& w, int64_t n) {
  const int64_t row_products = std::max<int64_t>(1, w.n_in * n);
  const int64_t fewest = (kMinTaskProducts + row_products - 1) / row_products;
  const bool has_many = w.n_out >= 4 * kRowsPerTask * ctx.pool->n_threads();
  return std::max(has_many ? kRowsPerTask : kPackedRows, (fewest + kPackedRows - 1) / kPackedRows * kPackedRows);
}

/// The part's rows of its weight times its tokens, plus the bias [n_out], if any. `out`: where the part's first
/// row of its first token goes, tokens `out_stride` floats apart.
void multiply_part(const OpContext& ctx, const ProductPart& part, const Activations& x, float* out,
                   int64_t out_stride, const float* bias);

/// Floats that gated_part() needs for a part of so many rows and tokens.
int64_t gated_scratch_floats(int64_t n_rows, int64_t n);
/// silu(gate x) · up x of one part, whose weight is the gate: its elements of `rows` ([tokens, n_out], in
/// `buffer`), in the forms that they have. Needs: whole panels of rows, so that a group of codes has all of its
/// elements.
void gated_part(const OpContext& ctx, const ProductPart& part, const GatedWeights& w, const Activations& x,
                ActivationBuffer& buffer, const Activations& rows, float* scratch);

}  // namespace sh::ops
