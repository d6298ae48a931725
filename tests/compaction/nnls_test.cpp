// SPDX-License-Identifier: MIT
#include "compaction/nnls.h"

#include <gtest/gtest.h>

#include <cmath>

#include "base/rng.h"
#include "compaction/gram.h"
#include "synthetic.h"

namespace sh::compaction {
namespace {

using testing::random_mat;

struct System {
  Mat<double> gram;
  std::vector<double> rhs;
};

System random_system(uint64_t seed, int64_t n, int64_t t) {
  Rng rng(seed);
  const Mat<float> a = random_mat(rng, n, t), b = random_mat(rng, n, 1, 3.0);
  System system{Mat<double>(t, t), std::vector<double>(static_cast<size_t>(t), 0)};
  for (int64_t i = 0; i < n; ++i)
    for (int64_t j = 0; j < t; ++j) {
      for (int64_t k = 0; k < t; ++k) system.gram(j, k) += static_cast<double>(a(i, j)) * a(i, k);
      system.rhs[static_cast<size_t>(j)] += static_cast<double>(a(i, j)) * b(i, 0);
    }
  return system;
}

double slope(const BoxLeastSquares& problem, std::span<const double> w, int64_t j) {
  double sum = problem.ridge * (w[static_cast<size_t>(j)] - 1) - problem.rhs[static_cast<size_t>(j)];
  for (int64_t k = 0; k < problem.gram.rows; ++k) sum += problem.gram(j, k) * w[static_cast<size_t>(k)];
  return sum;
}

TEST(BoxLeastSquares, MeetsTheOptimalityConditionsWithinTheBox) {
  for (const double ridge : {0.0, 1.0, 100.0}) {
    const System system = random_system(3, 60, 20);
    const BoxLeastSquares problem{
        .gram = system.gram.view(), .rhs = system.rhs, .ridge = ridge, .lower = 0.3, .upper = 1.2};
    std::vector<double> w(20, 1.0);
    const BoxSolution solution = solve_box_least_squares(problem, 1e-10, 2000, w);
    EXPECT_LE(solution.kkt_residual, 1e-10);
    EXPECT_LT(solution.n_sweeps, 2000);  // stopped on the residual
    int n_at_bound = 0;
    for (int64_t j = 0; j < 20; ++j) {
      const double weight = w[static_cast<size_t>(j)];
      ASSERT_GE(weight, 0.3);
      ASSERT_LE(weight, 1.2);
      // At a bound the slope points outwards, inside it is 0: within the tolerance times the largest curvature
      // (~100 + ridge).
      const double s = slope(problem, w, j), tolerance = 1e-10 * (200 + ridge) * 20;
      if (weight > 0.3) {
        EXPECT_LE(s, tolerance);
      }
      if (weight < 1.2) {
        EXPECT_GE(s, -tolerance);
      }
      n_at_bound += weight == 0.3 || weight == 1.2 ? 1 : 0;
    }
    if (ridge == 0.0) {
      EXPECT_GT(n_at_bound, 0);
    }
  }
}

TEST(BoxLeastSquares, AStrongRidgeKeepsOnes) {
  const System system = random_system(4, 30, 8);
  std::vector<double> w(8, 0.1);
  solve_box_least_squares(
      {.gram = system.gram.view(), .rhs = system.rhs, .ridge = 1e9, .lower = 0.05, .upper = 20}, 1e-12, 500, w);
  for (const double weight : w) EXPECT_NEAR(weight, 1.0, 1e-6);  // |rhs|/ridge is below 1e-6
}

TEST(BoxLeastSquares, SingularSystemsStayFinite) {
  Mat<double> gram(3, 3);  // columns 0 and 1 are the same, column 2 is not there
  gram(0, 0) = gram(0, 1) = gram(1, 0) = gram(1, 1) = 2;
  const std::vector<double> rhs = {6, 6, 0};
  std::vector<double> w(3, 1.0);
  const auto solution = solve_box_least_squares(
      {.gram = gram.view(), .rhs = rhs, .ridge = 0, .lower = 0, .upper = 20}, 1e-9, 500, w);
  EXPECT_LE(solution.kkt_residual, 1e-9);
  EXPECT_NEAR(w[0] + w[1], 3.0, 1e-6);
  EXPECT_EQ(w[2], 1.0);
}

TEST(Gram, EqualsThePlainSumsForSizesAroundTheTiles) {
  Rng rng(9);
  for (const int64_t n : {1, 255, 256, 257, 600})
    for (const int64_t t : {1, 63, 64, 65, 130}) {
      const Mat<float> rows = random_mat(rng, n, t), targets = random_mat(rng, n, 3);
      const Mat<float> gram = gram_of_columns(rows.view(), {}, testing::kernel_set());
      const Mat<float> product = transposed_product(rows.view(), targets.view(), testing::kernel_set());
      // f32 sums of 256 terms of order 1, up to 300 in all: 300 · 6e-8 times a few, over up to 3 tiles.
      const double tolerance = 6e-4;
      for (int64_t j = 0; j < t; j += 7)
        for (int64_t k = 0; k < t; k += 5) {
          double sum = 0;
          for (int64_t i = 0; i < n; ++i) sum += static_cast<double>(rows(i, j)) * rows(i, k);
          ASSERT_NEAR(gram(j, k), sum, tolerance) << n << " " << t;
        }
      for (int64_t j = 0; j < t; j += 7) {
        double sum = 0;
        for (int64_t i = 0; i < n; ++i) sum += static_cast<double>(rows(i, j)) * targets(i, 2);
        ASSERT_NEAR(product(j, 2), sum, tolerance);
      }
    }
}

}  // namespace
}  // namespace sh::compaction
