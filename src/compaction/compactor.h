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
#include "compaction/budget.h"
#include "compaction/method.h"
#include "compaction/problem.h"
#include "compaction/problem_source.h"
#include "kernels/kernel_set.h"

namespace sh::compaction {

struct SolveContext {
  ThreadPool* pool;
  const kernels::KernelSet* kernels;
  const std::atomic<bool>* cancel = nullptr;         // checked between heads and phases
  std::function<void(double fraction)> on_progress;  // called from the calling thread or workers, 0 to 1
};

// The phases of a solve. None depends on the number of threads.

/// How much every region row of every head is wanted.
/// Shapes: result [n_heads][T_h].
/// Errors: cancelled; invalid_argument (options, shapes, a head without queries for a method that needs them).
Result<std::vector<std::vector<float>>> score_heads(const CompactionMethod& method, const ProblemSource& source,
                                                    const SolveOptions& options, const SolveContext& context);
/// Error of every head against its size, for budgets by sensitivity or to a target.
/// Errors: as score_heads().
Result<std::vector<ErrorCurve>> measure_curves(const CompactionMethod& method, const ProblemSource& source,
                                               std::span<const std::vector<float>> scores,
                                               const SolveOptions& options, const SolveContext& context);
/// The rows of each head that the method keeps, `budget` of them, increasing.
/// Shapes: result [n_heads][budget].
/// Errors: as score_heads().
Result<std::vector<std::vector<int32_t>>> select_heads(const CompactionMethod& method, const ProblemSource& source,
                                                       std::span<const std::vector<float>> scores,
                                                       std::span<const int64_t> budget,
                                                       const SolveOptions& options, const SolveContext& context);
/// What replaces each head's region, from the rows kept.
/// Errors: as score_heads().
Result<std::vector<CompactHead>> fit_heads(const CompactionMethod& method, const ProblemSource& source,
                                           std::span<const std::vector<float>> scores,
                                           std::span<const std::vector<int32_t>> rows, const SolveOptions& options,
                                           const SolveContext& context);

struct SolveTimes {
  double select_seconds = 0, fit_seconds = 0;
};
struct Solution {
  std::vector<CompactHead> heads;  // one a problem, same order
  SolveTimes times;
};
/// All phases under one method and budget.
/// Errors: as score_heads(), and what plan_budget() says.
Result<Solution> solve(const CompactionMethod& method, const ProblemSource& source, const BudgetLimits& limits,
                       const SolveOptions& options, const SolveContext& context);

/// Attention of the problem's queries over a set of rows next to the rest that they saw: what a report or a test
/// compares. Plain loops in double.
/// Shapes:  keys [t, d], bias [t] or empty, values [t, dv], pos [t] or empty (every query sees every row).
///          Result [n, dv]: the mixed output with the region replaced by these rows; 0 for a query that has
///          nothing to attend.
/// Cost:    n·(T + t)·(d + dv) scalar products: for reports on some queries, not for all of a solve.
Mat<float> mixed_output(const HeadProblem& problem, MatView<const float> keys, std::span<const float> bias,
                        MatView<const float> values, std::span<const int32_t> pos);

}  // namespace sh::compaction
