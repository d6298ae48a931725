// SPDX-License-Identifier: MIT
#include "compaction/targets.h"

#include <algorithm>
#include <cmath>
#include <limits>

namespace sh::compaction {
namespace {

// 1 - π of a smaller rest is rounding of two log-sum-exps.
constexpr float kMinRestMass = 1e-6f;

class TargetMaker {
 public:
  TargetMaker(const HeadProblem& problem, std::span<const int32_t> fitted, std::span<const int32_t> unfitted,
              RegionSoftmax& softmax, const kernels::KernelSet& kernels)
      : problem_(problem), fitted_(fitted), unfitted_(unfitted), softmax_(softmax), kernels_(kernels) {}

  // Appends one tile of queries; those whose scores overflow are left out.
  void add(std::span<const int64_t> queries, FitTargets& targets, int64_t& n_done);

 private:
  void add_query(int64_t query, int64_t i, FitTargets& targets, int64_t target);
  void add_unfitted(int64_t i, float factor, FitTargets& targets, int64_t target);
  void renormalise_lost(int64_t query, FitTargets& targets, int64_t target);

  const HeadProblem& problem_;
  std::span<const int32_t> fitted_, unfitted_;
  RegionSoftmax& softmax_;
  const kernels::KernelSet& kernels_;
  std::vector<float> region_output_;  // [tile, dv] not normalised
  std::vector<float> scratch_;
};

void TargetMaker::add(std::span<const int64_t> queries, FitTargets& targets, int64_t& n_done) {
  const int64_t m = static_cast<int64_t>(queries.size()), dv = problem_.values.cols;
  softmax_.compute(queries);
  region_output_.resize(static_cast<size_t>(m * dv));
  const MatView<const float> weights = softmax_.weights_of_tile(m), values = softmax_.values();
  kernels_.gemm_nn({.m = m,
                    .n = dv,
                    .k = values.rows,
                    .a = weights.data,
                    .a_stride = weights.stride,
                    .b = values.data,
                    .b_stride = values.stride,
                    .c = region_output_.data(),
                    .c_stride = dv});
  for (int64_t i = 0; i < m; ++i)
    if (!std::isnan(softmax_.lse(i))) add_query(queries[static_cast<size_t>(i)], i, targets, n_done++);
}

void TargetMaker::add_query(int64_t query, int64_t i, FitTargets& targets, int64_t target) {
  const int64_t dv = problem_.values.cols;
  const bool has_rest = problem_.out.rows > 0;
  const auto [share, factor, rest_mass] = split_attention(problem_, softmax_, query, i);
  const size_t t = static_cast<size_t>(target);
  float* exact = targets.exact.row(target);
  float* rest_output = targets.rest_output.row(target);
  for (int64_t c = 0; c < dv; ++c) {
    const float of_region = factor * region_output_[static_cast<size_t>(i * dv + c)];
    exact[c] = has_rest ? problem_.out(query, c) : of_region;
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
  if (kept_mass + targets.rest_mass[t] < kLostMass) renormalise_lost(query, targets, target);
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

void TargetMaker::renormalise_lost(int64_t query, FitTargets& targets, int64_t target) {
  const size_t t = static_cast<size_t>(target);
  const MatView<const float> values = softmax_.values();
  const size_t n_fitted = fitted_.size();
  scratch_.resize(n_fitted + unfitted_.size());
  softmax_.scores_of(query, fitted_, scratch_.data());
  softmax_.scores_of(query, unfitted_, scratch_.data() + n_fitted);
  const float highest = kernels_.max(scratch_.data(), static_cast<int64_t>(scratch_.size()));
  targets.region_mass[t] = targets.rest_mass[t] = targets.unfitted_mass[t] = 0;
  std::fill_n(targets.rest_output.row(target), values.cols, 0.0f);
  std::fill_n(targets.mass.row(target), n_fitted, 0.0f);
  if (!std::isfinite(highest))
    return;  // nothing of what it saw is left: its output is 0, as attention over no rows is
  kernels_.exp_sum(scratch_.data(), highest, static_cast<int64_t>(scratch_.size()));
  std::copy_n(scratch_.data(), n_fitted, targets.mass.row(target));
  for (size_t j = 0; j < unfitted_.size(); ++j) {
    targets.rest_mass[t] += scratch_[n_fitted + j];
    kernels_.axpy(scratch_[n_fitted + j], values.row(unfitted_[j]), targets.rest_output.row(target), values.cols);
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

AttentionSplit split_attention(const HeadProblem& problem, const RegionSoftmax& softmax, int64_t query,
                               int64_t i) {
  const bool has_rest = problem.out.rows > 0;
  const float share = has_rest ? softmax.share(query, softmax.lse(i)) : (softmax.sum(i) > 0 ? 1.0f : 0.0f);
  const float rest_mass = has_rest ? 1.0f - share : 0.0f;
  return {.share = share,
          .factor = softmax.sum(i) > 0 ? share / softmax.sum(i) : 0.0f,
          .rest_mass = rest_mass < kMinRestMass ? 0.0f : rest_mass};
}

FitTargets make_targets(const HeadProblem& problem, const QuerySplit& split, std::span<const int32_t> fitted,
                        std::span<const int32_t> unfitted, RegionSoftmax& softmax,
                        const kernels::KernelSet& kernels) {
  const int64_t n = static_cast<int64_t>(split.queries.size()), dv = problem.values.cols;
  FitTargets targets;
  targets.mass = Mat<float>(n, static_cast<int64_t>(fitted.size()));
  targets.rest_output = Mat<float>(n, dv);
  targets.exact = Mat<float>(n, dv);
  for (std::vector<float>* vec : {&targets.rest_mass, &targets.region_mass, &targets.unfitted_mass})
    vec->resize(static_cast<size_t>(n));

  TargetMaker maker(problem, fitted, unfitted, softmax, kernels);
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
