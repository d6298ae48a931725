// SPDX-License-Identifier: MIT
#include "compaction/compactor.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <mutex>
#include <numeric>

#include "base/clock.h"
#include "compaction/fit.h"
#include "compaction/region.h"
#include "compaction/score.h"

namespace sh::compaction {
namespace {

// Fractions of the whole that a phase takes, for progress only.
constexpr double kSelectPart = 0.3;

Result<void> check_options(const SolveOptions& options) {
  const char* what = nullptr;
  if (options.max_queries_per_head < 1)
    what = "max_queries_per_head must be at least 1";
  else if (options.max_score_queries_per_head < 1)
    what = "max_score_queries_per_head must be at least 1";
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
  if (what == nullptr) return {};
  return Error{ErrorKind::invalid_argument, fmt::format("compaction options: {}", what)};
}

Result<void> check_problems(const CompactionMethod& method, std::span<const HeadProblem> problems) {
  const bool needs_queries = method.score != RowScore::recency || method.fit != Fit::none;
  for (const HeadProblem& problem : problems) {
    SH_RETURN_IF_ERROR(check_shapes(problem));
    if (needs_queries && problem.queries.rows == 0 && problem.keys.rows > 0)
      return Error{ErrorKind::invalid_argument,
                   fmt::format("compaction method '{}' needs reference queries; layer {}, KV head {} has none",
                               method.name, problem.layer, problem.head)};
  }
  return {};
}

// Runs one phase over all heads, the most expensive first so that no worker is left with a long one at the end.
class Phase {
 public:
  Phase(const SolveContext& context, double begin, double end) : context_(context), begin_(begin), end_(end) {}

  template <typename Cost, typename Work>
  Result<void> run(size_t n_heads, Cost&& cost, Work&& work) {
    std::vector<size_t> order(n_heads);
    std::iota(order.begin(), order.end(), size_t{0});
    std::stable_sort(order.begin(), order.end(), [&](size_t a, size_t b) { return cost(a) > cost(b); });
    context_.pool->run(static_cast<int64_t>(n_heads), [&](int64_t task, int) {
      if (is_cancelled()) return;
      work(order[static_cast<size_t>(task)]);
      report(n_heads);
    });
    if (is_cancelled()) return Error{ErrorKind::cancelled, "compaction was cancelled; the cache is unchanged"};
    return {};
  }

 private:
  bool is_cancelled() const {
    return context_.cancel != nullptr && context_.cancel->load(std::memory_order_relaxed);
  }
  void report(size_t n_heads) {
    if (!context_.on_progress) return;
    const std::lock_guard lock(mutex_);  // one report at a time, never decreasing
    ++n_done_;
    context_.on_progress(begin_ + (end_ - begin_) * static_cast<double>(n_done_) / static_cast<double>(n_heads));
  }

  const SolveContext& context_;
  double begin_, end_;
  std::mutex mutex_;
  size_t n_done_ = 0;
};

}  // namespace

Result<Solution> solve(const CompactionMethod& method, std::span<const HeadProblem> problems,
                       const BudgetLimits& limits, const SolveOptions& options, const SolveContext& context) {
  SH_CHECK(context.pool != nullptr && context.kernels != nullptr, "a solve needs threads and kernels");
  SH_RETURN_IF_ERROR(check_options(options));
  SH_RETURN_IF_ERROR(check_problems(method, problems));
  Solution solution;
  const Stopwatch select_time;
  std::vector<std::vector<float>> scores(problems.size());
  Phase select(context, 0.0, kSelectPart);
  SH_RETURN_IF_ERROR(select.run(
      problems.size(), [&](size_t head) { return problems[head].keys.rows; },
      [&](size_t head) {
        scores[head] = score_rows(problems[head], method.score, method.weighting, options, *context.kernels);
      }));
  std::vector<int64_t> fixed_rows;
  for (const HeadProblem& problem : problems) fixed_rows.push_back(problem.n_fixed_rows);
  SH_ASSIGN(const std::vector<int64_t> budget, plan_budget(method.budget, scores, fixed_rows, limits));
  solution.times.select_seconds = select_time.seconds();

  const Stopwatch fit_time;
  solution.heads.resize(problems.size());
  Phase fit(context, kSelectPart, 1.0);
  SH_RETURN_IF_ERROR(fit.run(
      problems.size(), [&](size_t head) { return budget[head]; },
      [&](size_t head) {
        const std::vector<int32_t> rows = top_rows(scores[head], budget[head]);
        solution.heads[head] = fit_head(problems[head], rows, scores[head], method.fit, options, *context.kernels);
      }));
  solution.times.fit_seconds = fit_time.seconds();
  return solution;
}

}  // namespace sh::compaction
