// SPDX-License-Identifier: MIT
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "base/mat_view.h"
#include "kernels/kernel_set.h"

namespace sh::compaction {

/// min over w in [lower, upper]^t of  wᵀ G w - 2 bᵀ w + ridge · ‖w - 1‖².
struct BoxLeastSquares {
  MatView<const double> gram;   // G [t, t], symmetric, positive semidefinite
  std::span<const double> rhs;  // b [t]
  double ridge = 0;
  double lower = 0, upper = 1;
};

struct BoxSolution {
  double kkt_residual = 0;  // the largest move that any one weight would still make, relative to max(1, weight)
  int32_t n_sweeps = 0;
};

/// Solves by cyclic coordinate descent from the w given, until no weight wants to move by more than `tolerance` or
/// max_sweeps have passed. A weight that no equation mentions (zero diagonal and no ridge) stays as it is, within
/// the box.
/// Cost: t² a sweep.
BoxSolution solve_box_least_squares(const BoxLeastSquares& problem, double tolerance, int32_t max_sweeps,
                                    std::span<double> w);

/// min over w in [lower, upper]^t of  ‖A w - b‖² + ridge · ‖w - 1‖², through A itself: for few equations.
struct BoxRegression {
  MatView<const float> columns;   // [t, n]: column j of A is row j
  std::span<const float> target;  // b [n]
  float ridge = 0;
  float lower = 0, upper = 1;
};

/// As solve_box_least_squares(). Cost: 2·n·t a sweep.  Precision: f32, so that a tolerance below 1e-5 is noise.
BoxSolution solve_box_regression(const BoxRegression& problem, float tolerance, int32_t max_sweeps,
                                 const kernels::KernelSet& kernels, std::span<float> w);

}  // namespace sh::compaction
