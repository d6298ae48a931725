// SPDX-License-Identifier: MIT
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "base/mat_view.h"
#include "compaction/targets.h"
#include "kernels/kernel_set.h"

namespace sh::compaction {

/// Mixed outputs of all queries of the targets with some weights and values for the fitted rows.
struct Approximation {
  Mat<float> output;              // [n, dv]
  std::vector<float> total_mass;  // [n] of fitted rows and rest, floored so that dividing by it is safe
  std::vector<float> error;       // [n] ‖output - exact‖ / mean ‖exact‖
};
/// Shapes:  weights [t], values [t, dv].
/// Cost:    n·t·dv products.
Approximation approximate(const FitTargets& targets, std::span<const float> weights, MatView<const float> values,
                          const kernels::KernelSet& kernels);

/// Errors of `output` plus `step`, both [n, dv].
std::vector<float> errors_after(const FitTargets& targets, const Mat<float>& output, const Mat<float>& step,
                                const kernels::KernelSet& kernels);

/// ‖approximate - exact‖ relative to the mean norm of exact outputs, as it is if that is 0; at most 1e15, so that
/// sums of squares stay finite, and 1e15 for NaN.
float relative_error(float norm_of_difference, double mean_exact_norm);

/// What errors of a set of queries come to. All 0 for no queries.
struct ErrorSummary {
  double mean = 0, mean_square = 0, p99 = 0, worst = 0;
};
ErrorSummary summarise(std::span<const float> errors);

/// Of log(mass of the kept region rows / mass of all region rows) over queries. A mean below 0: the region weighs too
/// little beside what is attended else.
struct LogMass {
  double mean = 0, rms = 0;
};
/// Over queries [begin, end); a share below 1e-6 counts as 1e-6.
LogMass log_mass_of(const FitTargets& targets, int64_t begin, int64_t end, std::span<const float> weights);

}  // namespace sh::compaction
