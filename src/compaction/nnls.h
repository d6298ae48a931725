// SPDX-License-Identifier: MIT
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "base/mat_view.h"

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

}  // namespace sh::compaction
