// SPDX-License-Identifier: MIT
#include "compaction/validate.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <utility>

#include "compaction/products.h"

namespace sh::compaction {
namespace {

constexpr float kMinTotalMass = 1e-30f;
constexpr float kMaxError = 1e15f;
constexpr double kMinMassRatio = 1e-6;

}  // namespace

Approximation approximate(const FitTargets& targets, std::span<const float> weights, MatView<const float> values,
                          const kernels::KernelSet& kernels) {
  const int64_t n = targets.n(), t = targets.mass.cols, dv = targets.exact.cols;
  // The weights go into the smaller factor of the product.
  const bool weighs_mass = n <= dv;
  Mat<float> weighted(weighs_mass ? n : t, weighs_mass ? t : dv);
  for (int64_t i = 0; i < weighted.rows; ++i) {
    const float* from = weighs_mass ? targets.mass.row(i) : values.row(i);
    float* out = weighted.row(i);
    for (int64_t j = 0; j < weighted.cols; ++j)
      out[j] = weights[static_cast<size_t>(weighs_mass ? j : i)] * from[j];
  }
  const MatView<const float> left = (weighs_mass ? weighted : targets.mass).view();
  const MatView<const float> right = weighs_mass ? values : std::as_const(weighted).view();
  Approximation result{Mat<float>(n, dv), std::vector<float>(static_cast<size_t>(n)),
                       std::vector<float>(static_cast<size_t>(n))};
  multiply_nn(kernels, left, right, result.output.view());
  std::vector<float> difference(static_cast<size_t>(dv));
  for (int64_t i = 0; i < n; ++i) {
    const size_t query = static_cast<size_t>(i);
    const float mass =
        std::max(kernels.dot(targets.mass.row(i), weights.data(), t) + targets.rest_mass[query], kMinTotalMass);
    const float inverse = 1.0f / mass;
    float* output = result.output.row(i);
    const float *rest = targets.rest_output.row(i), *exact = targets.exact.row(i);
    for (int64_t c = 0; c < dv; ++c) {
      output[c] = (output[c] + rest[c]) * inverse;
      difference[static_cast<size_t>(c)] = output[c] - exact[c];
    }
    result.total_mass[query] = mass;
    result.error[query] =
        relative_error(std::sqrt(kernels.dot(difference.data(), difference.data(), dv)), targets.mean_exact_norm);
  }
  return result;
}

std::vector<float> errors_after(const FitTargets& targets, const Mat<float>& output, const Mat<float>& step,
                                const kernels::KernelSet& kernels) {
  std::vector<float> errors(static_cast<size_t>(targets.n()));
  std::vector<float> difference(static_cast<size_t>(output.cols));
  for (int64_t i = 0; i < targets.n(); ++i) {
    const float *from = output.row(i), *move = step.row(i), *exact = targets.exact.row(i);
    for (int64_t c = 0; c < output.cols; ++c) difference[static_cast<size_t>(c)] = from[c] + move[c] - exact[c];
    errors[static_cast<size_t>(i)] = relative_error(
        std::sqrt(kernels.dot(difference.data(), difference.data(), output.cols)), targets.mean_exact_norm);
  }
  return errors;
}

float relative_error(float norm_of_difference, double mean_exact_norm) {
  const float error = norm_of_difference / (mean_exact_norm > 0 ? static_cast<float>(mean_exact_norm) : 1.0f);
  return error <= kMaxError ? error : kMaxError;  // NaN too
}

ErrorSummary summarise(std::span<const float> errors) {
  ErrorSummary summary;
  if (errors.empty()) return summary;
  for (const float error : errors) {
    summary.mean += error;
    summary.mean_square += static_cast<double>(error) * error;
    summary.worst = std::max<double>(summary.worst, error);
  }
  const double n = static_cast<double>(errors.size());
  summary.mean /= n;
  summary.mean_square /= n;
  std::vector<float> sorted(errors.begin(), errors.end());
  const auto p99 = sorted.begin() + static_cast<int64_t>(std::floor(0.99 * (n - 1)));
  std::nth_element(sorted.begin(), p99, sorted.end());
  summary.p99 = *p99;
  return summary;
}

LogMass log_mass_of(const FitTargets& targets, int64_t begin, int64_t end, std::span<const float> weights) {
  double sum = 0, squares = 0;
  int64_t n = 0;
  for (int64_t i = begin; i < end; ++i) {
    const double exact = targets.region_mass[static_cast<size_t>(i)];
    if (!(exact > 0)) continue;
    double mass = targets.unfitted_mass[static_cast<size_t>(i)];
    for (int64_t j = 0; j < targets.mass.cols; ++j)
      mass += static_cast<double>(weights[static_cast<size_t>(j)]) * targets.mass(i, j);
    const double log_ratio = std::log(std::max(mass / exact, kMinMassRatio));
    sum += log_ratio;
    squares += log_ratio * log_ratio;
    ++n;
  }
  if (n == 0) return {};
  return {sum / static_cast<double>(n), std::sqrt(squares / static_cast<double>(n))};
}

}  // namespace sh::compaction
