// SPDX-License-Identifier: MIT
// Time of choosing and of fitting the rows of one head: T rows, 4096 queries, an eighth of the rows kept.
#include <benchmark/benchmark.h>

#include <cmath>
#include <vector>

#include "base/rng.h"
#include "compaction/fit.h"
#include "compaction/score.h"

namespace sh::compaction {
namespace {

constexpr int64_t kQueries = 4096;

Mat<float> random_mat(Rng& rng, int64_t rows, int64_t cols) {
  Mat<float> result(rows, cols);
  for (float& x : result.data) x = static_cast<float>(rng.next_normal());
  return result;
}

struct Head {
  Mat<float> keys, values, queries, out;
  std::vector<float> lse;
  HeadProblem problem;

  Head(int64_t n_rows, int64_t d) {
    Rng rng(1);
    keys = random_mat(rng, n_rows, d);
    values = random_mat(rng, n_rows, d);
    queries = random_mat(rng, kQueries, d);
    // Each query looks for one of the first fifth of the rows, so that there is something to choose and to fit.
    for (int64_t q = 0; q < kQueries; ++q)
      for (int64_t c = 0; c < d; ++c) queries(q, c) += 0.7f * keys(q * 7919 % std::max<int64_t>(n_rows / 5, 1), c);
    out = random_mat(rng, kQueries, d);
    lse.assign(kQueries, std::log(static_cast<float>(n_rows)) + 3.0f);
    problem.keys = keys.view();
    problem.values = values.view();
    problem.queries = queries.view();
    problem.lse = lse;
    problem.out = out.view();
    problem.scale = 1.0f / std::sqrt(static_cast<float>(d));
  }
};

const kernels::KernelSet& kernel_set() {
  static const kernels::KernelSet* const chosen = kernels::choose_kernels("").value();
  return *chosen;
}

void score(benchmark::State& state) {
  const Head head(state.range(0), state.range(1));
  for (auto _ : state)
    benchmark::DoNotOptimize(
        score_rows(head.problem, **find_method("solver"), {}, kernel_set()));
  state.SetLabel(kernel_set().name);
}

void fit(benchmark::State& state) {
  const Head head(state.range(0), state.range(1));
  const auto scores = score_rows(head.problem, **find_method("solver"), {}, kernel_set());
  const auto rows = top_rows(scores, state.range(0) / 8);
  for (auto _ : state) benchmark::DoNotOptimize(fit_head(head.problem, rows, scores, Fit::both, {}, kernel_set()));
  state.SetLabel(kernel_set().name);
}

BENCHMARK(score)->ArgsProduct({{1024, 4096}, {64, 128}})->ArgNames({"T", "d"})->Unit(benchmark::kMillisecond);
BENCHMARK(fit)->ArgsProduct({{1024, 4096}, {64, 128}})->ArgNames({"T", "d"})->Unit(benchmark::kMillisecond);

}  // namespace
}  // namespace sh::compaction
