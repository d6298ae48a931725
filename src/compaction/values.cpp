// SPDX-License-Identifier: MIT
#include "compaction/values.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include "compaction/products.h"

namespace sh::compaction {
namespace {

Mat<float> shares_of(const FitTargets& targets, std::span<const float> weights, const Approximation& plain) {
  Mat<float> shares(targets.n(), targets.mass.cols);
  for (int64_t i = 0; i < shares.rows; ++i) {
    const float inverse = 1.0f / plain.total_mass[static_cast<size_t>(i)];
    const float* mass = targets.mass.row(i);
    float* share = shares.row(i);
    for (int64_t j = 0; j < shares.cols; ++j) share[j] = weights[static_cast<size_t>(j)] * (mass[j] * inverse);
  }
  return shares;
}

Mat<float> missing_of(const FitTargets& targets, const Approximation& plain) {
  Mat<float> missing(targets.n_fit, targets.exact.cols);
  for (size_t i = 0; i < missing.data.size(); ++i) missing.data[i] = targets.exact.data[i] - plain.output.data[i];
  return missing;
}

}  // namespace

ValueFit::ValueFit(const FitTargets& targets, std::span<const float> weights, MatView<const float> values,
                   const Approximation& plain, float max_step, const kernels::KernelSet& kernels)
    : targets_(targets),
      values_(values),
      plain_(plain),
      max_step_(max_step),
      kernels_(kernels),
      shares_(shares_of(targets, weights, plain)),
      system_(std::as_const(shares_).view().slice(0, targets.n_fit), missing_of(targets, plain), kernels) {
  if (!system_.is_dual()) return;
  cross_ = Mat<float>(targets.n(), targets.n_fit);
  const MatView<const float> shares = std::as_const(shares_).view();
  multiply_nt(kernels, shares, shares.slice(0, targets.n_fit), cross_.view());
}

// No row's step is longer than Σ_i share_ij · ‖y_i‖.
bool ValueFit::may_exceed(const Mat<float>& y) const {
  std::vector<float> bound(static_cast<size_t>(shares_.cols), 0.0f);
  for (int64_t i = 0; i < y.rows; ++i)
    kernels_.axpy(std::sqrt(kernels_.dot(y.row(i), y.row(i), y.cols)), shares_.row(i), bound.data(), shares_.cols);
  return !(kernels_.max(bound.data(), shares_.cols) <= max_step_);
}

void ValueFit::set_step(Mat<float> step) {
  for (int64_t j = 0; j < step.rows; ++j) {
    float* row = step.row(j);
    const float length = std::sqrt(kernels_.dot(row, row, step.cols));
    if (length > max_step_)
      for (int64_t c = 0; c < step.cols; ++c) row[c] *= max_step_ / length;
  }
  step_.direct = std::move(step);
}

bool ValueFit::solve(double strength, int32_t& n_retries) {
  step_ = {};
  Mat<float> solved = system_.solve(strength, n_retries);
  if (solved.rows == 0) return false;
  if (!system_.is_dual())
    set_step(std::move(solved));
  else if (may_exceed(solved))
    set_step(system_.from_dual(solved));
  else
    step_.dual = std::move(solved);
  return true;
}

std::vector<float> ValueFit::errors() const {
  const bool is_dual = step_.dual.rows > 0;
  const Mat<float>&left = is_dual ? cross_ : shares_, &right = is_dual ? step_.dual : step_.direct;
  Mat<float> change(left.rows, right.cols);
  multiply_nn(kernels_, left.view(), right.view(), change.view());
  return errors_after(targets_, plain_.output, change, kernels_);
}

Mat<float> ValueFit::values(const Step& step) const {
  Mat<float> values = step.dual.rows > 0 ? system_.from_dual(step.dual) : step.direct;
  for (int64_t j = 0; j < values.rows; ++j)
    kernels_.add(values.row(j), values_.row(j), values.row(j), values.cols);
  return values;
}

}  // namespace sh::compaction
