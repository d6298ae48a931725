// SPDX-License-Identifier: MIT
#include "ops/product.h"
#include "ops/rows.h"

namespace sh::ops {

Activations activations_of(OpContext& ctx, MatView<const float> x, std::initializer_list<const Weight*> readers) {
  const Forms forms = forms_of(ctx, readers);
  Activations rows = make_rows(ctx, ctx.input, x.rows, x.cols, {.q8 = forms.q8});
  rows.x = x.data;
  rows.stride = x.stride;
  if (forms.q8)
    for_rows(ctx, x.rows, x.cols, [&](int64_t t, int) {
      ctx.kernels->quantize_q8(x.row(t), x.cols, ctx.input.q8.data() + t * rows.q8_row_bytes);
    });
  return rows;
}

Activations activations_of(OpContext& ctx, const Normed& input, std::initializer_list<const Weight*> readers) {
  const MatView<const float> x = input.x;
  const Forms forms = forms_of(ctx, readers);
  const Activations rows = make_rows(ctx, ctx.input, x.rows, x.cols, forms);
  if (!forms.f32) grow_worker_scratch(ctx, x.cols);
  for_rows(ctx, x.rows, x.cols, [&](int64_t t, int worker) {
    float* y = forms.f32 ? ctx.input.x.data() + t * x.cols : worker_scratch(ctx, worker);
    ctx.kernels->rms_norm(x.row(t), input.weight, input.eps, y, x.cols);
    if (forms.q8) ctx.kernels->quantize_q8(y, x.cols, ctx.input.q8.data() + t * rows.q8_row_bytes);
  });
  return rows;
}

void linear_many(OpContext& ctx, const Activations& x, std::span<const LinearOut> outs) {
  if (x.n == 0) return;
  for (const LinearOut& o : outs) {
    SH_CHECK(o.weight->n_in == x.n_in && o.weight->n_out == o.out.cols && o.out.rows == x.n,
             "linear: shapes do not fit");
    SH_CHECK(o.weight->n_stack == 1, "linear: a stack of matrices goes through moe()");
  }

  // One list of tasks over all products, so that a small one (k, v) does not leave cores idle.
  int64_t n_tasks = 0;
  for (const LinearOut& o : outs) {
    const int64_t step = rows_per_task(ctx, *o.weight, x.n);
    n_tasks += (o.weight->n_out + step - 1) / step;
  }
  ctx.pool->run(n_tasks, [&](int64_t task, int) {
    for (const LinearOut& o : outs) {
      const int64_t step = rows_per_task(ctx, *o.weight, x.n);
      const int64_t n_here = (o.weight->n_out + step - 1) / step;
      if (task >= n_here) {
        task -= n_here;
        continue;
      }
      const int64_t row = task * step, row_end = std::min(o.weight->n_out, row + step);
      multiply_part(ctx, {o.weight, 0, 0, x.n, row, row_end}, x, o.out.data + row, o.out.stride, o.bias);
      return;
    }
  });
}

void linear(OpContext& ctx, const Weight& w, const Activations& x, MatView<float> y, const float* bias) {
  const LinearOut out{&w, y, bias};
  linear_many(ctx, x, {&out, 1});
}

void linear(OpContext& ctx, const Weight& w, MatView<const float> x, MatView<float> y, const float* bias) {
  linear(ctx, w, activations_of(ctx, x, {&w}), y, bias);
}

Activations gated_linear(OpContext& ctx, const Activations& x, const GatedWeights& w,
                         std::initializer_list<const Weight*> readers) {
  const int64_t n_ff = w.gate->n_out;
  SH_CHECK(w.gate->n_in == x.n_in && w.up->n_in == x.n_in && w.up->n_out == n_ff,
           "gated_linear: shapes do not fit");
  SH_CHECK(w.gate->n_stack == 1 && w.up->n_stack == 1, "gated_linear: a stack of matrices goes through moe()");
  const Activations rows = make_rows(ctx, ctx.hidden, x.n, n_ff, forms_of(ctx, readers));
  if (x.n == 0) return rows;
  const int64_t step = rows_per_task(ctx, *w.gate, 2 * x.n);  // a row of each matrix
  grow_worker_scratch(ctx, gated_scratch_floats(step, x.n));
  ctx.pool->run((n_ff + step - 1) / step, [&](int64_t task, int worker) {
    const ProductPart part{w.gate, 0, 0, x.n, task * step, std::min(n_ff, (task + 1) * step)};
    gated_part(ctx, part, w, x, ctx.hidden, rows, worker_scratch(ctx, worker));
  });
  return rows;
}

}  // namespace sh::ops
