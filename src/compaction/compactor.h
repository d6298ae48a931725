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
#include "compaction/region_summary.h"
#include "kernels/kernel_set.h"

namespace sh::compaction {

struct SolveContext {
  ThreadPool* pool;
  const kernels::KernelSet* kernels;
  const std::atomic<bool>* cancel = nullptr;         // checked between heads and phases
  std::function<void(double fraction)> on_progress;  // called from the calling thread or workers, 0 to 1
  /// [threads] Decoded heads, which the phases of one solve can share the memory of; null: each phase has its own.
  std::vector<HeadStorage>* storage = nullptr;
};

// The phases of a solve. None depends on the number of threads.

/// How much every region row of every head is wanted.
struct HeadScores {
  std::vector<std::vector<float>> rows;  // [n_heads][T_h]
  /// [n_heads] What the pass over the rows leaves for fit_heads(), so that it need not make another. Without
  /// queries where there is none: for scores that read no keys, schedules that fit to other queries or other rows,
  /// more queries than one fit takes, and where it would be larger than a sixteenth of the head's rows in 16 bits.
  std::vector<RegionSummary> regions;
};
/// Memory:  beyond the scores and summaries, one decoded head and 1 MiB of scores a thread.
/// Errors: cancelled; invalid_argument (options, shapes, a head without queries for a method that needs them).
Result<HeadScores> score_heads(const CompactionMethod& method, const ProblemSource& source,
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
/// What replaces each head's region, from the rows kept. `regions` are those of the same problems' score_heads(),
/// or none.
/// Errors: as score_heads().
Result<std::vector<CompactHead>> fit_heads(const CompactionMethod& method, const ProblemSource& source,
                                           std::span<const std::vector<float>> scores,
                                           std::span<const RegionSummary> regions,
                                           std::span<const std::vector<int32_t>> rows, const SolveOptions& options,
                                           const SolveContext& context);

/// Attention of the problem's queries over a set of rows next to the rest that they saw: what a report or a test
/// compares. Plain loops in double.
/// Shapes:  keys [t, d], bias [t] or empty, values [t, dv], pos [t] or empty (every query sees every row).
///          Result [n, dv]: the mixed output with the region replaced by these rows; 0 for a query that has
///          nothing to attend.
/// Cost:    n·(T + t)·(d + dv) scalar products: for reports on some queries, not for all of a solve.
Mat<float> mixed_output(const HeadProblem& problem, MatView<const float> keys, std::span<const float> bias,
                        MatView<const float> values, std::span<const int32_t> pos);

}  // namespace sh::compaction
