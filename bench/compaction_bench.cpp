// SPDX-License-Identifier: MIT
// Time of choosing and of fitting the rows of one head: T rows, n queries, an eighth of the rows kept.
#include <benchmark/benchmark.h>

#include <cmath>
#include <vector>

#include "base/rng.h"
#include "compaction/fit.h"
#include "compaction/omp.h"
#include "compaction/problem_source.h"
#include "compaction/score.h"

namespace sh::compaction {
namespace {

Mat<float> random_mat(Rng& rng, int64_t rows, int64_t cols) {
  Mat<float> result(rows, cols);
  for (float& x : result.data) x = static_cast<float>(rng.next_normal());
  return result;
}

struct Head {
  Mat<float> keys, values, queries, out;
  std::vector<float> lse;
  HeadProblem problem;

  Head(int64_t n_rows, int64_t n_queries, int64_t d) {
    Rng rng(1);
    keys = random_mat(rng, n_rows, d);
    values = random_mat(rng, n_rows, d);
    queries = random_mat(rng, n_queries, d);
    // Each query looks for one of the first fifth of the rows, so that there is something to choose and to fit.
    for (int64_t q = 0; q < n_queries; ++q)
      for (int64_t c = 0; c < d; ++c) queries(q, c) += 0.7f * keys(q * 7919 % std::max<int64_t>(n_rows / 5, 1), c);
    out = random_mat(rng, n_queries, d);
    lse.assign(static_cast<size_t>(n_queries), std::log(static_cast<float>(n_rows)) + 3.0f);
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

Head head_of(const benchmark::State& state) {
  return Head(state.range(0), state.range(1), 128);
}

void score(benchmark::State& state) {
  const Head head = head_of(state);
  for (auto _ : state)
    benchmark::DoNotOptimize(score_rows(head.problem, **find_method("select"), {}, kernel_set()));
  state.SetLabel(kernel_set().name);
}

// With the summary that spares the fit a pass of its own.
void score_and_summarise(benchmark::State& state) {
  const Head head = head_of(state);
  for (auto _ : state) {
    RegionSummary region;
    region.queries = pick_queries(head.problem, head.problem.queries.rows);
    benchmark::DoNotOptimize(score_rows(head.problem, **find_method("solver"), {}, kernel_set(), &region));
  }
}

// From the kept rows and the summary.
void fit(benchmark::State& state) {
  const Head head = head_of(state);
  RegionSummary region;
  region.queries = pick_queries(head.problem, head.problem.queries.rows);
  const auto scores = score_rows(head.problem, **find_method("solver"), {}, kernel_set(), &region);
  const auto rows = top_rows(scores, state.range(0) / 8);
  HeadStorage storage;
  const HeadProblem kept = gather_rows(head.problem, rows, storage);
  FitReport report;
  for (auto _ : state) report = fit_kept_rows(kept, rows, scores, region, Fit::both, {}, kernel_set()).report;
  state.counters["sweeps"] = report.n_nnls_sweeps;
  state.counters["bias_ridge"] = report.bias_ridge;
  state.counters["value_ridge"] = report.value_ridge;
}

void omp(benchmark::State& state) {
  const Head head = head_of(state);
  const auto scores = score_rows(head.problem, **find_method("omp"), {}, kernel_set());
  for (auto _ : state)
    benchmark::DoNotOptimize(select_omp(head.problem, scores, state.range(0) / 8, Weighting::attention_share, {},
                                        {}, nullptr, kernel_set()));
}

void sizes(benchmark::internal::Benchmark* b) {
  b->ArgsProduct({{4096}, {82, 246, 1024, 4096}})->ArgNames({"T", "n"})->Unit(benchmark::kMillisecond);
}
BENCHMARK(score)->Apply(sizes);
BENCHMARK(score_and_summarise)->Apply(sizes);
BENCHMARK(fit)->Apply(sizes);
BENCHMARK(omp)->Apply(sizes);

}  // namespace
}  // namespace sh::compaction
