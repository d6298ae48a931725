// SPDX-License-Identifier: MIT
// From problems to rows: score → budget → fit, parallel over heads. Pure numbers in, numbers out; the engine
// gathers the problems from a cache and swaps the result in.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <span>
#include <vector>

#include "base/result.h"
#include "base/thread_pool.h"
#include "compaction/method.h"
#include "compaction/problem.h"
#include "kernels/kernel_set.h"

namespace sh::compaction {

/// What may be kept, over all heads together. A limit of -1 does not bind; at least one must.
struct BudgetLimits {
  int64_t max_region_rows = -1;  // sum over heads of kept region rows
  int64_t max_blocks = -1;       // sum over heads of ceil((fixed + kept) / block_rows): real memory
  int32_t block_rows = 16;
};

/// Rows to keep of each head under the limits; a head keeps its best. `global` takes rows in the order of their
/// scores over all heads, `uniform` one row a head in turn. A head that needs a new block takes it from what all
/// share; when none is left, blocks that are paid for are filled. Ties go to the lower head, then the lower row. A
/// head may get 0. Under one limit, raising it never takes a row away. Rows of score -inf or NaN are never kept.
/// Shapes:  scores[h] is [T_h], higher is more wanted; fixed_rows [n_heads].
/// Cost:    O(N log N) for N rows of all heads.
/// Errors:  invalid_argument when even the fixed rows exceed max_blocks (says by how much), or no limit is given.
Result<std::vector<int64_t>> plan_budget(BudgetPolicy policy, std::span<const std::vector<float>> scores,
                                         std::span<const int64_t> fixed_rows, const BudgetLimits& limits);

struct SolveTimes {
  double select_seconds = 0, fit_seconds = 0;
};
struct Solution {
  std::vector<CompactHead> heads;  // one a problem, same order
  SolveTimes times;
};

struct SolveContext {
  ThreadPool* pool;
  const kernels::KernelSet* kernels;
  const std::atomic<bool>* cancel = nullptr;         // checked between heads and phases
  std::function<void(double fraction)> on_progress;  // called from the calling thread or workers, 0 to 1
};

/// Solves all heads under one method and budget. The result does not depend on the number of threads.
/// Errors: cancelled; invalid_argument (budget, shapes: a problem without queries for a method that needs them).
Result<Solution> solve(const CompactionMethod& method, std::span<const HeadProblem> problems,
                       const BudgetLimits& limits, const SolveOptions& options, const SolveContext& context);

/// Attention of the problem's queries over a set of rows next to the rest that they saw: what a report or a test
/// compares. Plain loops in double.
/// Shapes:  keys [t, d], bias [t] or empty, values [t, dv], pos [t] or empty (every query sees every row).
///          Result [n, dv]: the mixed output with the region replaced by these rows; 0 for a query that has
///          nothing to attend.
/// Cost:    n·(T + t)·(d + dv) scalar products: for reports on some queries, not for all of a solve.
Mat<float> mixed_output(const HeadProblem& problem, MatView<const float> keys, std::span<const float> bias,
                        MatView<const float> values, std::span<const int32_t> pos);

}  // namespace sh::compaction
