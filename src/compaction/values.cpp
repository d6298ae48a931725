// SPDX-License-Identifier: MIT
#include "compaction/values.h"

#include <cmath>

namespace sh::compaction {
namespace {

// Shares of attention [n_fit, t], and what the plain rows lack of the output.
RidgeSystem system_of(const FitTargets& targets, std::span<const float> weights, const Approximation& plain,
                      const kernels::KernelSet& kernels) {
  const int64_t n_fit = targets.n_fit, t = targets.mass.cols, dv = targets.exact.cols;
  Mat<float> shares(n_fit, t), missing(n_fit, dv);
  for (int64_t i = 0; i < n_fit; ++i) {
    const float inverse = 1.0f / plain.total_mass[static_cast<size_t>(i)];
    const float* mass = targets.mass.row(i);
    float* share = shares.row(i);
    for (int64_t j = 0; j < t; ++j) share[j] = weights[static_cast<size_t>(j)] * (mass[j] * inverse);
    for (int64_t c = 0; c < dv; ++c) missing(i, c) = targets.exact(i, c) - plain.output(i, c);
  }
  return RidgeSystem(std::move(shares), std::move(missing), kernels);
}

}  // namespace

ValueFit::ValueFit(const FitTargets& targets, std::span<const float> weights, MatView<const float> values,
                   const Approximation& plain, const kernels::KernelSet& kernels)
    : values_(values), kernels_(kernels), system_(system_of(targets, weights, plain, kernels)) {}

Mat<float> ValueFit::solve(double strength, float max_step, int32_t& n_retries) const {
  Mat<float> step = system_.solve(strength, n_retries);
  for (int64_t j = 0; j < step.rows; ++j) {
    float* row = step.row(j);
    const float length = std::sqrt(kernels_.dot(row, row, step.cols));
    const float factor = length > max_step ? max_step / length : 1.0f;
    const float* value = values_.row(j);
    for (int64_t c = 0; c < step.cols; ++c) row[c] = value[c] + factor * row[c];
  }
  return step;
}

}  // namespace sh::compaction
