// SPDX-License-Identifier: MIT
#include "compaction/values.h"

#include <Eigen/Cholesky>
#include <algorithm>
#include <cmath>
#include <vector>

namespace sh::compaction {
namespace {

using Matrix = Eigen::Matrix<double, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;
constexpr int32_t kMaxRetries = 6;

// Adds a step of limited length to each row.
Mat<float> add_bounded(MatView<const float> values, const Matrix& step, float max_step) {
  Mat<float> result(values.rows, values.cols);
  for (int64_t j = 0; j < values.rows; ++j) {
    const double length = step.row(j).norm();
    const double factor = length > max_step ? max_step / length : 1.0;
    for (int64_t c = 0; c < values.cols; ++c)
      result(j, c) = static_cast<float>(values(j, c) + factor * step(j, c));
  }
  return result;
}

}  // namespace

ValueFit::ValueFit(const FitTargets& targets, std::span<const float> weights, MatView<const float> values,
                   const Approximation& plain, const kernels::KernelSet& kernels)
    : values_(values) {
  const int64_t n_fit = targets.n_fit, t = targets.mass.cols, dv = targets.exact.cols;
  Mat<float> missing(n_fit, dv);
  std::vector<float> row_weight(static_cast<size_t>(n_fit));
  for (int64_t i = 0; i < n_fit; ++i) {
    // A query's row of the design is w_j · mass_j / total mass. Its missing output is multiplied by the same row
    // weight below, so divide here.
    const float mass = plain.total_mass[static_cast<size_t>(i)];
    row_weight[static_cast<size_t>(i)] = 1.0f / mass;
    for (int64_t c = 0; c < dv; ++c) missing(i, c) = (targets.exact(i, c) - plain.output(i, c)) * mass;
  }
  system_ = normal_equations(targets.mass.view().slice(0, n_fit), row_weight, missing.view(), kernels);
  for (int64_t i = 0; i < t; ++i) {
    const double weight = weights[static_cast<size_t>(i)];
    for (int64_t j = 0; j < t; ++j) system_.gram(i, j) *= weight * weights[static_cast<size_t>(j)];
    for (int64_t c = 0; c < dv; ++c) system_.rhs(i, c) *= weight;
  }
  mean_eigenvalue_ = 0;
  for (int64_t i = 0; i < t; ++i) mean_eigenvalue_ += system_.gram(i, i) / static_cast<double>(t);
}

Mat<float> ValueFit::solve(double strength, float max_step, int32_t& n_retries) const {
  const int64_t t = system_.gram.rows, dv = system_.rhs.cols;
  const Eigen::Map<const Matrix> gram(system_.gram.data.data(), t, t);
  const Eigen::Map<const Matrix> rhs(system_.rhs.data.data(), t, dv);
  double ridge = strength * mean_eigenvalue_;
  if (!(ridge > 0) || !std::isfinite(ridge))
    return {};  // no query of the fit attends these rows, or the system overflowed
  for (int32_t attempt = 0; attempt <= kMaxRetries; ++attempt, ridge *= 10) {
    n_retries += attempt > 0 ? 1 : 0;
    Matrix system = gram;
    system.diagonal().array() += ridge;
    const Eigen::LLT<Eigen::Ref<Matrix>> factor(system);
    if (factor.info() != Eigen::Success) continue;
    const Matrix step = factor.solve(rhs);
    if (step.allFinite()) return add_bounded(values_, step, max_step);
  }
  return {};
}

}  // namespace sh::compaction
