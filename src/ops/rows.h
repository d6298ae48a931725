// SPDX-License-Identifier: MIT
// Inside of the room: a parallel loop over rows of cheap work, and scratch for each worker.
#pragma once

#include <algorithm>
#include <cstdint>

#include "ops/ops.h"

namespace sh::ops {

/// Elements of one task: 16 K floats take some 5 us, ten times what handing out a task costs. Fewer rows run in
/// place.
inline constexpr int64_t kElementsPerTask = 1 << 14;

/// Calls fn(row, worker) for every row in [0, n_rows), several rows of `n_cols` elements a task.
template <typename Fn>
void for_rows(OpContext& ctx, int64_t n_rows, int64_t n_cols, Fn&& fn) {
  const int64_t step = std::max<int64_t>(1, kElementsPerTask / std::max<int64_t>(1, n_cols));
  ctx.pool->run((n_rows + step - 1) / step, [&](int64_t task, int worker) {
    const int64_t end = std::min(n_rows, (task + 1) * step);
    for (int64_t row = task * step; row < end; ++row) fn(row, worker);
  });
}

/// At least n_floats of ctx.worker_scratch for every worker.
inline void grow_worker_scratch(OpContext& ctx, int64_t n_floats) {
  const auto n_workers = static_cast<size_t>(ctx.pool->n_threads());
  if (ctx.worker_scratch.size() < n_workers) ctx.worker_scratch.resize(n_workers);
  for (AlignedBuffer<float>& scratch : ctx.worker_scratch) scratch.grow(static_cast<size_t>(n_floats));
}
inline float* worker_scratch(OpContext& ctx, int worker) {
  return ctx.worker_scratch[static_cast<size_t>(worker)].data();
}

}  // namespace sh::ops
