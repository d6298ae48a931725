// SPDX-License-Identifier: MIT
#include <cmath>
#include <cstring>
#include <limits>

#include "ops/product.h"
#include "ops/rows.h"

namespace sh::ops {

namespace {

/// Orders the pairs: fills first, token and pair_of.
void group_by_expert(MatView<const int32_t> expert_ids, int64_t n_expert, ExpertScratch& s) {
  const auto n_pairs = static_cast<size_t>(expert_ids.rows * expert_ids.cols);
  s.first.assign(static_cast<size_t>(n_expert) + 1, 0);
  s.token.resize(n_pairs);
  s.pair_of.resize(n_pairs);
  for (int64_t t = 0; t < expert_ids.rows; ++t)
    for (int64_t slot = 0; slot < expert_ids.cols; ++slot) {
      const int32_t id = expert_ids(t, slot);
      SH_CHECK(id >= 0 && id < n_expert, "moe: expert outside the stack");
      ++s.first[static_cast<size_t>(id) + 1];
    }
  for (size_t e = 0; e < static_cast<size_t>(n_expert); ++e) s.first[e + 1] += s.first[e];
  s.next.assign(s.first.begin(), s.first.end() - 1);
  for (int64_t t = 0; t < expert_ids.rows; ++t)
    for (int64_t slot = 0; slot < expert_ids.cols; ++slot) {
      const int64_t pair = s.next[static_cast<size_t>(expert_ids(t, slot))]++;
      s.token[static_cast<size_t>(pair)] = t;
      s.pair_of[static_cast<size_t>(t * expert_ids.cols + slot)] = pair;
    }
}

/// The rows of x in the order of pairs.
Activations gather_inputs(OpContext& ctx, const Activations& x, Forms forms) {
  ExpertScratch& s = ctx.experts;
  const Activations inputs = make_rows(ctx, s.inputs, std::ssize(s.token), x.n_in, forms);
  SH_CHECK((!forms.f32 || x.x != nullptr) && (!forms.q8 || x.q8 != nullptr),
           "moe: the input was not made for gate and up");
  for_rows(ctx, inputs.n, x.n_in, [&](int64_t pair, int) {
    const int64_t t = s.token[static_cast<size_t>(pair)];
    if (forms.f32) std::copy_n(x.x + t * x.stride, x.n_in, s.inputs.x.data() + pair * inputs.stride);
    if (forms.q8)
      std::copy_n(x.q8 + t * x.q8_row_bytes, x.q8_row_bytes, s.inputs.q8.data() + pair * inputs.q8_row_bytes);
  });
  return inputs;
}

/// Lists the tasks of one product of every pair with its expert. `n_products`: of a row of `w` and a pair.
void list_tasks(OpContext& ctx, const Weight& w, int64_t n_products) {
  ExpertScratch& s = ctx.experts;
  s.tasks.clear();
  for (int64_t e = 0; e < w.n_stack; ++e) {
    const int64_t first = s.first[static_cast<size_t>(e)], n = s.first[static_cast<size_t>(e) + 1] - first;
    if (n == 0) continue;
    const int64_t step = rows_per_task(ctx, w, n_products * n);
    for (int64_t row = 0; row < w.n_out; row += step)
      s.tasks.push_back({&w, e, first, n, row, std::min(w.n_out, row + step)});
  }
}

}  // namespace

void moe(OpContext& ctx, const MoeArgs& args) {
  const Weight &gate = *args.gate, &up = *args.up, &down = *args.down;
  const int64_t n = args.x.n, n_used = args.expert_ids.cols, n_ff = gate.n_out;
  SH_CHECK(gate.n_in == args.x.n_in && up.n_in == args.x.n_in && up.n_out == n_ff,
           "moe: gate and up do not fit the input");
  SH_CHECK(down.n_in == n_ff && down.n_out == args.y.cols, "moe: down does not fit");
  SH_CHECK(gate.n_stack == up.n_stack && up.n_stack == down.n_stack, "moe: stacks of different heights");
  SH_CHECK(args.expert_ids.rows == n && args.expert_weights.rows == n && args.expert_weights.cols == n_used &&
               args.y.rows == n,
           "moe: routing is of another batch");
  if (n == 0) return;
  ExpertScratch& s = ctx.experts;
  group_by_expert(args.expert_ids, gate.n_stack, s);

  const int64_t n_pairs = n * n_used;
  const Activations inputs = gather_inputs(ctx, args.x, forms_of(ctx, {&gate, &up}));
  const Activations hidden = make_rows(ctx, ctx.hidden, n_pairs, n_ff, forms_of(ctx, {&down}));
  list_tasks(ctx, gate, 2);
  int64_t scratch_floats = 0;
  for (const ProductPart& part : s.tasks)
    scratch_floats = std::max(scratch_floats, gated_scratch_floats(part.row_end - part.row_begin, part.n));
  grow_worker_scratch(ctx, scratch_floats);
  const GatedWeights gated{.gate = &gate, .up = &up};
  ctx.pool->run(std::ssize(s.tasks), [&](int64_t task, int worker) {
    gated_part(ctx, s.tasks[static_cast<size_t>(task)], gated, inputs, ctx.hidden, hidden,
               worker_scratch(ctx, worker));
  });

  const MatView<float> products(s.products.grow(static_cast<size_t>(n_pairs * args.y.cols)), n_pairs, args.y.cols);
  list_tasks(ctx, down, 1);
  ctx.pool->run(std::ssize(s.tasks), [&](int64_t task, int) {
    const ProductPart& part = s.tasks[static_cast<size_t>(task)];
    multiply_part(ctx, part, hidden, products.row(part.first) + part.row_begin, products.stride, nullptr);
  });

  // A token's experts are summed in the order of its own list, whatever else is in the batch.
  for_rows(ctx, n, n_used * args.y.cols, [&](int64_t t, int) {
    float* y = args.y.row(t);
    std::fill(y, y + args.y.cols, 0.0f);
    for (int64_t slot = 0; slot < n_used; ++slot)
      ctx.kernels->axpy(args.expert_weights(t, slot),
                        products.row(s.pair_of[static_cast<size_t>(t * n_used + slot)]), y, args.y.cols);
  });
}

void route_softmax(MatView<const float> logits, bool renormalise, MatView<int32_t> expert_ids,
                   MatView<float> expert_weights) {
  const int64_t n_expert = logits.cols, n_used = expert_ids.cols;
  SH_CHECK(n_used >= 1 && n_used <= n_expert, "route_softmax: more experts wanted than there are");
  SH_CHECK(expert_ids.rows == logits.rows && expert_weights.rows == logits.rows && expert_weights.cols == n_used,
           "route_softmax: shapes do not fit");
  for (int64_t t = 0; t < logits.rows; ++t) {
    const float* row = logits.row(t);
    float largest = -std::numeric_limits<float>::infinity();
    for (int64_t e = 0; e < n_expert; ++e) largest = std::max(largest, row[e]);
    double sum = 0.0, sum_used = 0.0;
    for (int64_t e = 0; e < n_expert; ++e) sum += std::exp(double{row[e]} - largest);

    const int32_t* taken = expert_ids.row(t);
    for (int64_t slot = 0; slot < n_used; ++slot) {
      int64_t best = -1;  // a row of NaN still routes somewhere: the comparison below is false for it, the first
                          // free expert stays
      for (int64_t e = 0; e < n_expert; ++e)
        if ((best < 0 || row[e] > row[best]) && std::find(taken, taken + slot, e) == taken + slot) best = e;
      expert_ids(t, slot) = static_cast<int32_t>(best);
      sum_used += std::exp(double{row[best]} - largest);
    }
    for (int64_t slot = 0; slot < n_used; ++slot)
      expert_weights(t, slot) = static_cast<float>(std::exp(double{row[expert_ids(t, slot)]} - largest) /
                                                   (renormalise ? sum_used : sum));
  }
}

}  // namespace sh::ops
