// SPDX-License-Identifier: MIT
#include "compaction/nnls.h"

#include <algorithm>
#include <cmath>

namespace sh::compaction {

BoxSolution solve_box_least_squares(const BoxLeastSquares& problem, double tolerance, int32_t max_sweeps,
                                    std::span<double> w) {
  const int64_t t = problem.gram.rows;
  for (double& weight : w) weight = std::clamp(weight, problem.lower, problem.upper);
  // Half the gradient without the ridge, G w - b, kept up to date.
  std::vector<double> slope(static_cast<size_t>(t));
  for (int64_t i = 0; i < t; ++i) {
    double sum = -problem.rhs[static_cast<size_t>(i)];
    for (int64_t j = 0; j < t; ++j) sum += problem.gram(i, j) * w[static_cast<size_t>(j)];
    slope[static_cast<size_t>(i)] = sum;
  }
  BoxSolution solution;
  for (; solution.n_sweeps < max_sweeps; ++solution.n_sweeps) {
    solution.kkt_residual = 0;
    for (int64_t i = 0; i < t; ++i) {
      double& weight = w[static_cast<size_t>(i)];
      const double curvature = problem.gram(i, i) + problem.ridge;
      if (!(curvature > 0)) continue;
      const double gradient = slope[static_cast<size_t>(i)] + problem.ridge * (weight - 1);
      const double moved = std::clamp(weight - gradient / curvature, problem.lower, problem.upper);
      const double delta = moved - weight;
      if (delta == 0) continue;
      solution.kkt_residual = std::max(solution.kkt_residual, std::fabs(delta) / std::max(1.0, weight));
      weight = moved;
      const double* row = problem.gram.row(i);
      for (int64_t j = 0; j < t; ++j) slope[static_cast<size_t>(j)] += delta * row[j];
    }
    if (solution.kkt_residual <= tolerance) break;
  }
  return solution;
}

}  // namespace sh::compaction
