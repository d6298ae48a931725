// SPDX-License-Identifier: MIT
#include "compaction/compactor.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <mutex>
#include <numeric>
#include <optional>

#include "base/cancel.h"
#include "compaction/fit.h"
#include "compaction/omp.h"
#include "compaction/region.h"
#include "compaction/score.h"
#include "compaction/targets.h"

namespace sh::compaction {
namespace {

// Where the phases of a solve end, as fractions of the whole, for progress only.
constexpr double kScorePart = 0.3, kSelectPart = 0.5;

Result<void> check_options(const SolveOptions& options) {
  const char* what = nullptr;
  if (options.max_queries_per_head < 1)
    what = "max_queries_per_head must be at least 1";
  else if (options.max_score_queries_per_head < 1)
    what = "max_score_queries_per_head must be at least 1";
  else if (options.max_report_queries_per_head < 1)
    what = "max_report_queries_per_head must be at least 1";
  else if (options.max_fit_rows < 1)
    what = "max_fit_rows must be at least 1";
  else if (options.holdout_every < 2)
    what = "holdout_every must be at least 2";
  else if (!(options.min_bias <= 0 && options.max_bias >= 0 && options.min_bias >= -50 && options.max_bias <= 50))
    what = "min_bias must be in [-50, 0] and max_bias in [0, 50]";
  else if (options.max_nnls_sweeps < 1)
    what = "max_nnls_sweeps must be at least 1";
  else if (!(options.accept_worst_factor > 0) || !std::isfinite(options.accept_worst_factor))
    what = "accept_worst_factor must be positive";
  else if (!(options.accept_max_regret >= 0))
    what = "accept_max_regret must not be negative";
  else if (options.chunk_tokens < 1)
    what = "chunk_tokens must be at least 1";
  if (what == nullptr) return {};
  return Error{ErrorKind::invalid_argument, fmt::format("compaction options: {}", what)};
}

Result<void> check_problem(const CompactionMethod& method, const HeadProblem& problem) {
  SH_RETURN_IF_ERROR(check_shapes(problem));
  if (method.needs_queries() && problem.queries.rows == 0 && problem.keys.rows > 0)
    return Error{ErrorKind::invalid_argument,
                 fmt::format("compaction method '{}' needs reference queries; layer {}, KV head {} has none",
                             method.name, problem.layer, problem.head)};
  return {};
}

// Of a head's rows in 16 bits, what a summary may take at most.
constexpr int64_t kMaxSummaryPart = 16;

// The queries that a later fit of the same rows will read, or none.
std::vector<int64_t> queries_to_summarise(const CompactionMethod& method, const HeadProblem& problem,
                                          const SolveOptions& options) {
  if (method.schedule != Schedule::one_shot || !method.scores_by_attention()) return {};
  if (method.queries.has(QuerySource::cache_keys)) return {};  // they change with the rows that are loaded
  // Thinned queries of a score need not be those of a fit.
  if (problem.queries.rows > std::min(options.max_queries_per_head, options.max_score_queries_per_head)) return {};
  std::vector<int64_t> queries = queries_of_fit(problem, method.fit, options).queries;
  const int64_t n_bytes = 4 * summary_floats(static_cast<int64_t>(queries.size()), problem.values.cols);
  const int64_t row_bytes = 2 * problem.keys.rows * (problem.keys.cols + problem.values.cols);
  if (n_bytes > row_bytes / kMaxSummaryPart) return {};
  std::sort(queries.begin(), queries.end());
  return queries;
}

// Runs one phase over all heads, the most expensive first so that no worker is left with a long one at the end.
class Phase {
 public:
  Phase(const CompactionMethod& method, const ProblemSource& source, const SolveContext& context, double begin,
        double end)
      : method_(method), source_(source), context_(context), begin_(begin), end_(end) {}

  /// Calls work(head, problem) for every head. The first head that is at fault, in their order, is the error.
  template <typename Cost, typename Work>
  Result<void> run(Cost&& cost, Work&& work) {
    return run_on(
        cost, [&](size_t head, HeadStorage& storage) { return source_.load(static_cast<int64_t>(head), storage); },
        work);
  }
  /// The same with problems that load(head, storage) gives.
  template <typename Cost, typename Load, typename Work>
  Result<void> run_on(Cost&& cost, Load&& load, Work&& work) {
    const auto n_heads = static_cast<size_t>(source_.n_heads());
    std::vector<size_t> order(n_heads);
    std::iota(order.begin(), order.end(), size_t{0});
    std::stable_sort(order.begin(), order.end(), [&](size_t a, size_t b) { return cost(a) > cost(b); });
    std::vector<HeadStorage> own_storage;
    std::vector<HeadStorage>& storage = context_.storage != nullptr ? *context_.storage : own_storage;
    storage.resize(static_cast<size_t>(context_.pool->n_threads()));
    std::vector<std::optional<Error>> errors(n_heads);
    context_.pool->run(static_cast<int64_t>(n_heads), [&](int64_t task, int worker) {
      if (is_cancelled(context_.cancel)) return;
      const size_t head = order[static_cast<size_t>(task)];
      const HeadProblem problem = load(head, storage[static_cast<size_t>(worker)]);
      if (const auto checked = check_problem(method_, problem); !checked.ok())
        errors[head] = checked.error();
      else
        work(head, problem);
      report(n_heads);
    });
    if (is_cancelled(context_.cancel))
      return Error{ErrorKind::cancelled, "compaction was cancelled; the cache is unchanged"};
    for (const std::optional<Error>& error : errors)
      if (error) return *error;
    return {};
  }

 private:
  void report(size_t n_heads) {
    if (!context_.on_progress) return;
    const std::lock_guard lock(mutex_);  // one report at a time, never decreasing
    ++n_done_;
    context_.on_progress(begin_ + (end_ - begin_) * static_cast<double>(n_done_) / static_cast<double>(n_heads));
  }

  const CompactionMethod& method_;
  const ProblemSource& source_;
  const SolveContext& context_;
  double begin_, end_;
  std::mutex mutex_;
  size_t n_done_ = 0;
};

}  // namespace

Result<HeadScores> score_heads(const CompactionMethod& method, const ProblemSource& source,
                               const SolveOptions& options, const SolveContext& context) {
  SH_CHECK(context.pool != nullptr && context.kernels != nullptr, "a solve needs threads and kernels");
  SH_RETURN_IF_ERROR(check_options(options));
  const auto n_heads = static_cast<size_t>(source.n_heads());
  HeadScores scores{std::vector<std::vector<float>>(n_heads), std::vector<RegionSummary>(n_heads)};
  Phase phase(method, source, context, 0.0, kScorePart);
  SH_RETURN_IF_ERROR(phase.run_on([&](size_t head) { return source.n_rows(static_cast<int64_t>(head)); },
                                  [&](size_t head, HeadStorage& storage) {
                                    return source.load_to_stream(static_cast<int64_t>(head), storage);
                                  },
                                  [&](size_t head, const HeadProblem& problem) {
                                    RegionSummary& region = scores.regions[head];
                                    region.queries = queries_to_summarise(method, problem, options);
                                    scores.rows[head] = score_rows(problem, method, options, *context.kernels,
                                                                   region.queries.empty() ? nullptr : &region);
                                  }));
  return scores;
}

Result<std::vector<ErrorCurve>> measure_curves(const CompactionMethod& method, const ProblemSource& source,
                                               std::span<const std::vector<float>> scores,
                                               const SolveOptions& options, const SolveContext& context) {
  SH_RETURN_IF_ERROR(check_options(options));
  std::vector<ErrorCurve> curves(static_cast<size_t>(source.n_heads()));
  Phase phase(method, source, context, kScorePart, kScorePart);
  SH_RETURN_IF_ERROR(phase.run([&](size_t head) { return source.n_rows(static_cast<int64_t>(head)); },
                               [&](size_t head, const HeadProblem& problem) {
                                 curves[head] = measure_error_curve(problem, scores[head], options, *context.kernels);
                               }));
  return curves;
}

Result<std::vector<std::vector<int32_t>>> select_heads(const CompactionMethod& method, const ProblemSource& source,
                                                       std::span<const std::vector<float>> scores,
                                                       std::span<const int64_t> budget,
                                                       const SolveOptions& options, const SolveContext& context) {
  SH_RETURN_IF_ERROR(check_options(options));
  std::vector<std::vector<int32_t>> rows(static_cast<size_t>(source.n_heads()));
  if (method.selection == Selection::attention) {
    context.pool->run(source.n_heads(), [&](int64_t task, int) {
      const auto head = static_cast<size_t>(task);
      rows[head] = top_rows(scores[head], budget[head]);
    });
    return rows;
  }
  Phase phase(method, source, context, kScorePart, kSelectPart);
  SH_RETURN_IF_ERROR(phase.run([&](size_t head) { return budget[head] * source.n_rows(static_cast<int64_t>(head)); },
                               [&](size_t head, const HeadProblem& problem) {
                                 OmpSelection selection =
                                     select_omp(problem, scores[head], budget[head], method.weighting, options.omp,
                                                options, context.cancel, *context.kernels);
                                 std::sort(selection.picks.begin(), selection.picks.end());
                                 rows[head] = std::move(selection.picks);
                               }));
  return rows;
}

Result<std::vector<CompactHead>> fit_heads(const CompactionMethod& method, const ProblemSource& source,
                                           std::span<const std::vector<float>> scores,
                                           std::span<const RegionSummary> regions,
                                           std::span<const std::vector<int32_t>> rows, const SolveOptions& options,
                                           const SolveContext& context) {
  SH_CHECK(context.pool != nullptr && context.kernels != nullptr, "a solve needs threads and kernels");
  SH_RETURN_IF_ERROR(check_options(options));
  std::vector<CompactHead> heads(static_cast<size_t>(source.n_heads()));
  const auto fit = method.schedule == Schedule::chunked ? fit_head_in_chunks : fit_head;
  const auto has_summary = [&](size_t head) { return !regions.empty() && !regions[head].queries.empty(); };
  Phase phase(method, source, context, kSelectPart, 1.0);
  SH_RETURN_IF_ERROR(phase.run_on(
      [&](size_t head) { return rows[head].size(); },
      [&](size_t head, HeadStorage& storage) {
        const auto index = static_cast<int64_t>(head);
        return has_summary(head) ? source.load_rows(index, rows[head], storage) : source.load(index, storage);
      },
      [&](size_t head, const HeadProblem& problem) {
        heads[head] = has_summary(head)
                          ? fit_kept_rows(problem, rows[head], scores[head], regions[head], method.fit, options,
                                          *context.kernels)
                          : fit(problem, rows[head], scores[head], method.fit, options, *context.kernels);
      }));
  return heads;
}

}  // namespace sh::compaction
