// SPDX-License-Identifier: MIT
// Inside of the room: a parallel loop over rows of cheap work.
#pragma once

#include <algorithm>
#include <cstdint>

#include "ops/ops.h"

namespace sh::ops {

/// Elements of one task: 16 K floats take some 5 us, ten times what handing out a task costs. Fewer rows run in
/// place.
inline constexpr int64_t kElementsPerTask = 1 << 14;

/// Calls fn(row) for every row in [0, n_rows), several rows of `n_cols` elements a task.
template <typename Fn>
void for_rows(OpContext& ctx, int64_t n_rows, int64_t n_cols, Fn&& fn) {
  const int64_t step = std::max<int64_t>(1, kElementsPerTask / std::max<int64_t>(1, n_cols));
  ctx.pool->run((n_rows + step - 1) / step, [&](int64_t task, int) {
    const int64_t end = std::min(n_rows, (task + 1) * step);
    for (int64_t row = task * step; row < end; ++row) fn(row);
  });
}

}  // namespace sh::ops
