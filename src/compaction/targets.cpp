// SPDX-License-Identifier: MIT
#include "compaction/targets.h"

#include <algorithm>
#include <cmath>

#include "base/check.h"

namespace sh::compaction {
namespace {

// 1 - π of a smaller rest is rounding of two log-sum-exps.
constexpr float kMinRestMass = 1e-6f;

class TargetMaker {
 public:
  TargetMaker(const HeadProblem& kept, std::span<const int32_t> fitted, std::span<const int32_t> unfitted,
              const RegionSummary& region, RegionSoftmax& softmax, const kernels::KernelSet& kernels)
      : kept_(kept), fitted_(fitted), unfitted_(unfitted), region_(region), softmax_(softmax), kernels_(kernels) {}

  // Appends one tile of queries; those whose scores overflow are left out.
  void add(std::span<const int64_t> queries, FitTargets& targets, int64_t& n_done);

 private:
  void add_query(int64_t query, int64_t summary, int64_t i, FitTargets& targets, int64_t target);
  void add_unfitted(int64_t i, float factor, FitTargets& targets, int64_t target);
  void renormalise_lost(int64_t i, FitTargets& targets, int64_t target);

  const HeadProblem& kept_;
  std::span<const int32_t> fitted_, unfitted_;
  const RegionSummary& region_;
  RegionSoftmax& softmax_;  // over the kept rows
  const kernels::KernelSet& kernels_;
};

void TargetMaker::add(std::span<const int64_t> queries, FitTargets& targets, int64_t& n_done) {
  softmax_.compute(queries);
  for (int64_t i = 0; i < static_cast<int64_t>(queries.size()); ++i) {
    const int64_t query = queries[static_cast<size_t>(i)];
    const auto found = std::lower_bound(region_.queries.begin(), region_.queries.end(), query);
    SH_CHECK(found != region_.queries.end() && *found == query, "the summary has every query of the split");
    const int64_t summary = found - region_.queries.begin();
    if (!std::isnan(region_.lse[static_cast<size_t>(summary)]) && !std::isnan(softmax_.lse(i)))
      add_query(query, summary, i, targets, n_done++);
  }
}

void TargetMaker::add_query(int64_t query, int64_t summary, int64_t i, FitTargets& targets, int64_t target) {
  const int64_t dv = kept_.values.cols;
  const bool has_rest = kept_.out.rows > 0;
  const float region_lse = region_.lse[static_cast<size_t>(summary)];
  // Weights of the kept rows are in units of exp(their own maximum): first to shares of the kept rows, then of the
  // region.
  const float kept_share = softmax_.sum(i) > 0 ? std::min(1.0f, std::exp(softmax_.lse(i) - region_lse)) : 0.0f;
  const auto [share, unused, rest_mass] =
      split_attention(kept_, softmax_, query, region_lse, std::isfinite(region_lse) ? 1.0f : 0.0f);
  const float factor = kept_share > 0 ? share * kept_share / softmax_.sum(i) : 0.0f;
  const size_t t = static_cast<size_t>(target);
  const float* region_output = region_.output.row(summary);
  float* exact = targets.exact.row(target);
  float* rest_output = targets.rest_output.row(target);
  for (int64_t c = 0; c < dv; ++c) {
    const float of_region = share * region_output[c];
    exact[c] = has_rest ? kept_.out(query, c) : of_region;
    rest_output[c] = rest_mass > 0 ? exact[c] - of_region : 0.0f;
  }
  const float* weights = softmax_.weights(i);
  float* mass = targets.mass.row(target);
  float kept_mass = 0;
  for (size_t j = 0; j < fitted_.size(); ++j) kept_mass += mass[j] = weights[fitted_[j]] * factor;
  targets.region_mass[t] = share;
  targets.rest_mass[t] = rest_mass;
  targets.unfitted_mass[t] = 0;
  add_unfitted(i, factor, targets, target);
  if (kept_mass + targets.rest_mass[t] < kLostMass) renormalise_lost(i, targets, target);
}

void TargetMaker::add_unfitted(int64_t i, float factor, FitTargets& targets, int64_t target) {
  const size_t t = static_cast<size_t>(target);
  const MatView<const float> values = softmax_.values();
  for (const int32_t row : unfitted_) {
    const float mass = softmax_.weights(i)[row] * factor;
    if (mass == 0) continue;
    targets.unfitted_mass[t] += mass;
    kernels_.axpy(mass, values.row(row), targets.rest_output.row(target), values.cols);
  }
  targets.rest_mass[t] += targets.unfitted_mass[t];
}

void TargetMaker::renormalise_lost(int64_t i, FitTargets& targets, int64_t target) {
  const size_t t = static_cast<size_t>(target);
  const MatView<const float> values = softmax_.values();
  targets.region_mass[t] = targets.rest_mass[t] = targets.unfitted_mass[t] = 0;
  std::fill_n(targets.rest_output.row(target), values.cols, 0.0f);
  // All 0 if nothing of what it saw is left: its output is 0, as attention over no rows is.
  const float* weights = softmax_.weights(i);
  for (size_t j = 0; j < fitted_.size(); ++j) targets.mass(target, static_cast<int64_t>(j)) = weights[fitted_[j]];
  for (const int32_t row : unfitted_) {
    targets.rest_mass[t] += weights[row];
    kernels_.axpy(weights[row], values.row(row), targets.rest_output.row(target), values.cols);
  }
}

void drop_rows_after(int64_t n, FitTargets& targets) {
  for (Mat<float>* mat : {&targets.mass, &targets.rest_output, &targets.exact}) {
    mat->rows = n;
    mat->data.resize(static_cast<size_t>(n * mat->cols));
  }
  for (std::vector<float>* vec : {&targets.rest_mass, &targets.region_mass, &targets.unfitted_mass})
    vec->resize(static_cast<size_t>(n));
}

}  // namespace

QuerySplit split_queries(std::span<const int64_t> queries, int32_t holdout_every) {
  QuerySplit split;
  std::vector<int64_t> held_out;
  const int64_t every = holdout_every;
  for (int64_t i = 0; i < static_cast<int64_t>(queries.size()); ++i) {
    const bool is_held_out = every > 0 && i % every == (i / every) % every;
    (is_held_out ? held_out : split.queries).push_back(queries[static_cast<size_t>(i)]);
  }
  split.n_fit = static_cast<int64_t>(split.queries.size());
  split.queries.insert(split.queries.end(), held_out.begin(), held_out.end());
  return split;
}

AttentionSplit split_attention(const HeadProblem& problem, const RegionSoftmax& softmax, int64_t query, float lse,
                               float sum) {
  const bool has_rest = problem.out.rows > 0;
  const float share = has_rest ? softmax.share(query, lse) : (sum > 0 ? 1.0f : 0.0f);
  const float rest_mass = has_rest ? 1.0f - share : 0.0f;
  return {.share = share,
          .factor = sum > 0 ? share / sum : 0.0f,
          .rest_mass = rest_mass < kMinRestMass ? 0.0f : rest_mass};
}

QuerySplit queries_of_fit(const HeadProblem& problem, Fit fit, const SolveOptions& options) {
  QuerySplit split = split_queries(pick_queries(problem, options.max_queries_per_head), options.holdout_every);
  if (fit != Fit::none) return split;
  const std::vector<int64_t> held_out(split.queries.begin() + split.n_fit, split.queries.end());
  const size_t n = held_out.size(), n_kept = std::min(n, static_cast<size_t>(options.max_report_queries_per_head));
  split.n_fit = 0;
  split.queries.clear();
  for (size_t i = 0; i < n_kept; ++i) split.queries.push_back(held_out[i * n / n_kept]);
  return split;
}

FitTargets make_targets(const HeadProblem& kept, const QuerySplit& split, std::span<const int32_t> fitted,
                        std::span<const int32_t> unfitted, const RegionSummary& region, RegionSoftmax& softmax,
                        const kernels::KernelSet& kernels) {
  const int64_t n = static_cast<int64_t>(split.queries.size()), dv = kept.values.cols;
  FitTargets targets;
  targets.mass = Mat<float>(n, static_cast<int64_t>(fitted.size()));
  targets.rest_output = Mat<float>(n, dv);
  targets.exact = Mat<float>(n, dv);
  for (std::vector<float>* vec : {&targets.rest_mass, &targets.region_mass, &targets.unfitted_mass})
    vec->resize(static_cast<size_t>(n));

  TargetMaker maker(kept, fitted, unfitted, region, softmax, kernels);
  int64_t n_done = 0;
  const auto add_range = [&](int64_t begin, int64_t end) {
    for (; begin < end; begin += softmax.max_tile())
      maker.add(
          std::span(split.queries)
              .subspan(static_cast<size_t>(begin), static_cast<size_t>(std::min(softmax.max_tile(), end - begin))),
          targets, n_done);
  };
  add_range(0, split.n_fit);
  targets.n_fit = n_done;
  add_range(split.n_fit, n);
  drop_rows_after(n_done, targets);
  for (int64_t i = targets.n_fit; i < n_done; ++i)
    targets.mean_exact_norm +=
        std::sqrt(static_cast<double>(kernels.dot(targets.exact.row(i), targets.exact.row(i), dv)));
  targets.mean_exact_norm /= static_cast<double>(std::max<int64_t>(n_done - targets.n_fit, 1));
  return targets;
}

}  // namespace sh::compaction
