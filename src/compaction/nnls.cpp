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

BoxSolution solve_box_regression(const BoxRegression& problem, float tolerance, int32_t max_sweeps,
                                 const kernels::KernelSet& kernels, std::span<float> w) {
  const int64_t t = problem.columns.rows, n = problem.columns.cols;
  std::vector<float> residual(problem.target.begin(), problem.target.end());  // b - A w
  std::vector<float> curvature(static_cast<size_t>(t));
  for (int64_t j = 0; j < t; ++j) {
    const float* column = problem.columns.row(j);
    float& weight = w[static_cast<size_t>(j)];
    weight = std::clamp(weight, problem.lower, problem.upper);
    kernels.axpy(-weight, column, residual.data(), n);
    curvature[static_cast<size_t>(j)] = kernels.dot(column, column, n) + problem.ridge;
  }
  BoxSolution solution;
  for (; solution.n_sweeps < max_sweeps; ++solution.n_sweeps) {
    solution.kkt_residual = 0;
    for (int64_t j = 0; j < t; ++j) {
      float& weight = w[static_cast<size_t>(j)];
      if (!(curvature[static_cast<size_t>(j)] > 0)) continue;
      const float* column = problem.columns.row(j);
      const float slope = problem.ridge * (weight - 1) - kernels.dot(column, residual.data(), n);
      const float moved =
          std::clamp(weight - slope / curvature[static_cast<size_t>(j)], problem.lower, problem.upper);
      const float delta = moved - weight;
      if (delta == 0) continue;
      solution.kkt_residual = std::max<double>(solution.kkt_residual, std::fabs(delta) / std::max(1.0f, weight));
      weight = moved;
      kernels.axpy(-delta, column, residual.data(), n);
    }
    if (solution.kkt_residual <= tolerance) break;
  }
  return solution;
}

}  // namespace sh::compaction
