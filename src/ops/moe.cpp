// SPDX-License-Identifier: MIT
#include <cmath>
#include <cstring>
#include <limits>

#include "ops/product.h"
#include "ops/rows.h"

namespace sh::ops {

namespace {

/// The (token, slot) pairs of a batch ordered by expert, so that every expert's weights are read once.
struct Grouping {
  std::vector<int64_t> first;    // [n_expert + 1] pairs of expert e: [first[e], first[e + 1])
  std::vector<int64_t> token;    // [n_pairs] by pair
  std::vector<int64_t> pair_of;  // [n, n_used]
};

Grouping group_by_expert(MatView<const int32_t> expert_ids, int64_t n_expert) {
  const int64_t n_pairs = expert_ids.rows * expert_ids.cols;
  Grouping g{std::vector<int64_t>(static_cast<size_t>(n_expert) + 1),
             std::vector<int64_t>(static_cast<size_t>(n_pairs)),
             std::vector<int64_t>(static_cast<size_t>(n_pairs))};
  for (int64_t t = 0; t < expert_ids.rows; ++t)
    for (int64_t slot = 0; slot < expert_ids.cols; ++slot) {
      const int32_t id = expert_ids(t, slot);
      SH_CHECK(id >= 0 && id < n_expert, "moe: expert outside the stack");
      ++g.first[static_cast<size_t>(id) + 1];
    }
  for (size_t e = 0; e < static_cast<size_t>(n_expert); ++e) g.first[e + 1] += g.first[e];
  std::vector<int64_t> next(g.first.begin(), g.first.end() - 1);
  for (int64_t t = 0; t < expert_ids.rows; ++t)
    for (int64_t slot = 0; slot < expert_ids.cols; ++slot) {
      const int64_t pair = next[static_cast<size_t>(expert_ids(t, slot))]++;
      g.token[static_cast<size_t>(pair)] = t;
      g.pair_of[static_cast<size_t>(t * expert_ids.cols + slot)] = pair;
    }
  return g;
}

/// One product of every pair with its expert: rows of `a` are pairs, out[i] [n_pairs, n_out of weights[i]].
void multiply_experts(OpContext& ctx, const Grouping& g, const Activations& a, std::span<const LinearOut> outs) {
  struct Task {
    const LinearOut* out;
    int64_t expert, row_begin, row_end;
  };
  std::vector<Task> tasks;
  for (const LinearOut& o : outs)
    for (int64_t e = 0; e < o.weight->n_stack; ++e) {
      const int64_t n = g.first[static_cast<size_t>(e) + 1] - g.first[static_cast<size_t>(e)];
      if (n == 0) continue;
      const int64_t step = rows_per_task(ctx, *o.weight, n);
      for (int64_t row = 0; row < o.weight->n_out; row += step)
        tasks.push_back({&o, e, row, std::min(o.weight->n_out, row + step)});
    }
  ctx.pool->run(static_cast<int64_t>(tasks.size()), [&](int64_t index, int) {
    const Task& task = tasks[static_cast<size_t>(index)];
    const int64_t first = g.first[static_cast<size_t>(task.expert)];
    const int64_t n = g.first[static_cast<size_t>(task.expert) + 1] - first;
    multiply_rows(ctx, *task.out->weight, task.expert, a, first, n, task.row_begin, task.row_end,
                  task.out->out.data, task.out->out.stride, nullptr);
  });
}

/// Rows of floats, with their 8-bit form if a weight wants it.
Activations with_q8(OpContext& ctx, const float* x, int64_t n, int64_t n_in, bool needs_q8) {
  Activations a{.x = x, .stride = n_in};
  if (!needs_q8) return a;
  a.q8_row_bytes = ctx.kernels->q8_row_bytes(n_in);
  std::byte* q8 = ctx.activations.grow(static_cast<size_t>(n * a.q8_row_bytes));
  for_rows(ctx, n, n_in,
           [&](int64_t row) { ctx.kernels->quantize_q8(x + row * n_in, n_in, q8 + row * a.q8_row_bytes); });
  a.q8 = q8;
  return a;
}

}  // namespace

void moe(OpContext& ctx, const MoeArgs& args) {
  const Weight &gate = *args.gate, &up = *args.up, &down = *args.down;
  const int64_t n = args.x.rows, n_embd = args.x.cols, n_used = args.expert_ids.cols, n_ff = gate.n_out;
  SH_CHECK(gate.n_in == n_embd && up.n_in == n_embd && up.n_out == n_ff, "moe: gate and up do not fit the input");
  SH_CHECK(down.n_in == n_ff && down.n_out == args.y.cols, "moe: down does not fit");
  SH_CHECK(gate.n_stack == up.n_stack && up.n_stack == down.n_stack, "moe: stacks of different heights");
  SH_CHECK(args.expert_ids.rows == n && args.expert_weights.rows == n && args.expert_weights.cols == n_used &&
               args.y.rows == n,
           "moe: routing is of another batch");
  if (n == 0) return;
  const Grouping g = group_by_expert(args.expert_ids, gate.n_stack);

  const int64_t n_pairs = n * n_used;
  float* inputs = ctx.experts.grow(static_cast<size_t>(n_pairs * (n_embd + 2 * n_ff + args.y.cols)));
  const MatView<float> gated(inputs + n_pairs * n_embd, n_pairs, n_ff);
  const MatView<float> upped(gated.data + n_pairs * n_ff, n_pairs, n_ff);
  const MatView<float> products(upped.data + n_pairs * n_ff, n_pairs, args.y.cols);

  for_rows(ctx, n_pairs, n_embd, [&](int64_t pair) {
    const float* x = args.x.row(g.token[static_cast<size_t>(pair)]);
    std::copy(x, x + n_embd, inputs + pair * n_embd);
  });
  const LinearOut first[] = {{&gate, gated, nullptr}, {&up, upped, nullptr}};
  multiply_experts(ctx, g, with_q8(ctx, inputs, n_pairs, n_embd, wants_q8(ctx, gate) || wants_q8(ctx, up)), first);
  swiglu(ctx, gated, upped, gated);
  const LinearOut second[] = {{&down, products, nullptr}};
  multiply_experts(ctx, g, with_q8(ctx, gated.data, n_pairs, n_ff, wants_q8(ctx, down)), second);

  // A token's experts are summed in the order of its own list, whatever else is in the batch.
  for_rows(ctx, n, n_used * args.y.cols, [&](int64_t t) {
    float* y = args.y.row(t);
    std::fill(y, y + args.y.cols, 0.0f);
    for (int64_t slot = 0; slot < n_used; ++slot)
      ctx.kernels->axpy(args.expert_weights(t, slot),
                        products.row(g.pair_of[static_cast<size_t>(t * n_used + slot)]), y, args.y.cols);
  });
}

void route_softmax(MatView<const float> logits, bool renormalise, MatView<int32_t> expert_ids,
                   MatView<float> expert_weights) {
  const int64_t n_expert = logits.cols, n_used = expert_ids.cols;
  SH_CHECK(n_used >= 1 && n_used <= n_expert, "route_softmax: more experts wanted than there are");
  SH_CHECK(expert_ids.rows == logits.rows && expert_weights.rows == logits.rows && expert_weights.cols == n_used,
           "route_softmax: shapes do not fit");
  std::vector<char> is_taken(static_cast<size_t>(n_expert));
  for (int64_t t = 0; t < logits.rows; ++t) {
    const float* row = logits.row(t);
    float largest = -std::numeric_limits<float>::infinity();
    for (int64_t e = 0; e < n_expert; ++e) largest = std::max(largest, row[e]);
    double sum = 0.0, sum_used = 0.0;
    for (int64_t e = 0; e < n_expert; ++e) sum += std::exp(double{row[e]} - largest);

    std::fill(is_taken.begin(), is_taken.end(), char{0});
    for (int64_t slot = 0; slot < n_used; ++slot) {
      int64_t best = -1;  // a row of NaN still routes somewhere: the comparison below is false for it, the first
                          // free expert stays
      for (int64_t e = 0; e < n_expert; ++e)
        if (!is_taken[static_cast<size_t>(e)] && (best < 0 || row[e] > row[best])) best = e;
      is_taken[static_cast<size_t>(best)] = 1;
      expert_ids(t, slot) = static_cast<int32_t>(best);
      sum_used += std::exp(double{row[best]} - largest);
    }
    for (int64_t slot = 0; slot < n_used; ++slot)
      expert_weights(t, slot) = static_cast<float>(std::exp(double{row[expert_ids(t, slot)]} - largest) /
                                                   (renormalise ? sum_used : sum));
  }
}

}  // namespace sh::ops
