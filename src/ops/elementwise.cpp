// SPDX-License-Identifier: MIT
// Operations on single rows: embedding, norms of heads, sums.
#include <algorithm>

#include "kernels/scratch.h"
#include "ops/ops.h"
#include "ops/rows.h"

namespace sh::ops {

void embed(OpContext& ctx, const Weight& table, std::span<const int32_t> ids, MatView<float> y) {
  SH_CHECK(table.n_in == y.cols && static_cast<int64_t>(ids.size()) == y.rows, "embed: shapes do not fit");
  const TensorFormat& format = tensor_format(table.dtype);
  const int64_t n_bytes = table.row_bytes();
  for_rows(ctx, y.rows, y.cols, [&](int64_t t, int) {
    const int32_t id = ids[static_cast<size_t>(t)];
    SH_CHECK(id >= 0 && id < table.n_out, "embed: token id outside the vocabulary");
    if (table.is_packed) {
      std::byte* row = kernels::thread_scratch(static_cast<size_t>(n_bytes));
      unpack_row(table.dtype, table.data, id, table.n_in, row);
      format.dequantize(row, table.n_in, y.row(t));
    } else {
      format.dequantize(table.data + id * n_bytes, table.n_in, y.row(t));
    }
  });
}

void rms_norm_heads(OpContext& ctx, MatView<float> x, int64_t width, const float* weight, float eps) {
  SH_CHECK(width > 0 && x.cols % width == 0, "rms_norm_heads: rows are not whole heads");
  for_rows(ctx, x.rows, x.cols, [&](int64_t t, int) {
    for (float *head = x.row(t), *end = head + x.cols; head != end; head += width)
      ctx.kernels->rms_norm(head, weight, eps, head, width);
  });
}

void add(OpContext& ctx, MatView<const float> a, MatView<float> b) {
  SH_CHECK(a.rows == b.rows && a.cols == b.cols, "add: shapes do not fit");
  for_rows(ctx, a.rows, a.cols, [&](int64_t t, int) { ctx.kernels->add(a.row(t), b.row(t), b.row(t), a.cols); });
}

}  // namespace sh::ops
