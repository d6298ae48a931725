// SPDX-License-Identifier: MIT
#include "ops/product.h"

namespace sh::ops {

namespace {

/// The rows of x in every form that the weights want; the 8-bit rows live in ctx.activations until the next
/// product.
Activations prepare(OpContext& ctx, MatView<const float> x, std::span<const LinearOut> outs) {
  Activations a{.x = x.data, .stride = x.stride};
  if (std::none_of(outs.begin(), outs.end(), [&](const LinearOut& o) { return wants_q8(ctx, *o.weight); }))
    return a;
  a.q8_row_bytes = ctx.kernels->q8_row_bytes(x.cols);
  std::byte* q8 = ctx.activations.grow(static_cast<size_t>(x.rows * a.q8_row_bytes));
  ctx.pool->run(x.rows,
                [&](int64_t t, int) { ctx.kernels->quantize_q8(x.row(t), x.cols, q8 + t * a.q8_row_bytes); });
  a.q8 = q8;
  return a;
}

}  // namespace

void linear_many(OpContext& ctx, MatView<const float> x, std::span<const LinearOut> outs) {
  if (x.rows == 0) return;
  for (const LinearOut& o : outs) {
    SH_CHECK(o.weight->n_in == x.cols && o.weight->n_out == o.out.cols && o.out.rows == x.rows,
             "linear: shapes do not fit");
    SH_CHECK(o.weight->n_stack == 1, "linear: a stack of matrices goes through moe()");
  }
  const Activations a = prepare(ctx, x, outs);

  // One list of tasks over all products, so that a small one (k, v) does not leave cores idle.
  int64_t n_tasks = 0;
  for (const LinearOut& o : outs) {
    const int64_t step = rows_per_task(ctx, *o.weight, x.rows);
    n_tasks += (o.weight->n_out + step - 1) / step;
  }
  ctx.pool->run(n_tasks, [&](int64_t task, int) {
    for (const LinearOut& o : outs) {
      const int64_t step = rows_per_task(ctx, *o.weight, x.rows);
      const int64_t n_here = (o.weight->n_out + step - 1) / step;
      if (task >= n_here) {
        task -= n_here;
        continue;
      }
      const int64_t row_end = std::min(o.weight->n_out, (task + 1) * step);
      multiply_rows(ctx, *o.weight, 0, a, 0, x.rows, task * step, row_end, o.out.data, o.out.stride, o.bias);
      return;
    }
  });
}

void linear(OpContext& ctx, const Weight& w, MatView<const float> x, MatView<float> y, const float* bias) {
  const LinearOut out{&w, y, bias};
  linear_many(ctx, x, {&out, 1});
}

}  // namespace sh::ops
