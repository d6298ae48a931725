// SPDX-License-Identifier: MIT
#include "compaction/ridge.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <utility>

#include "base/rng.h"
#include "compaction/nnls.h"
#include "synthetic.h"

namespace sh::compaction {
namespace {

using testing::kernel_set;
using testing::random_mat;

// The largest entry of (AᵀA + ridge) X - AᵀB, relative to the largest of AᵀB: 0 for the solution.
double normal_residual(const Mat<float>& a, const Mat<float>& b, double ridge, const Mat<float>& x) {
  double worst = 0, largest = 0;
  for (int64_t c = 0; c < b.cols; ++c) {
    std::vector<double> missing(static_cast<size_t>(a.rows));
    for (int64_t i = 0; i < a.rows; ++i) {
      double sum = b(i, c);
      for (int64_t j = 0; j < a.cols; ++j) sum -= static_cast<double>(a(i, j)) * x(j, c);
      missing[static_cast<size_t>(i)] = sum;
    }
    for (int64_t j = 0; j < a.cols; ++j) {
      double residual = -ridge * x(j, c), rhs = 0;
      for (int64_t i = 0; i < a.rows; ++i) {
        residual += a(i, j) * missing[static_cast<size_t>(i)];
        rhs += static_cast<double>(a(i, j)) * b(i, c);
      }
      worst = std::max(worst, std::fabs(residual));
      largest = std::max(largest, std::fabs(rhs));
    }
  }
  return worst / largest;
}

TEST(RidgeSystem, SolvesFewAndManyRows) {
  Rng rng(5);
  for (const int64_t n : {1, 31, 32, 33, 100})
    for (const int64_t t : {1, 32, 65, 99, 100}) {
      const Mat<float> a = random_mat(rng, n, t), b = random_mat(rng, n, 3);
      RidgeSystem system(a.view(), b, kernel_set());
      EXPECT_EQ(system.is_dual(), n < t);
      for (const double strength : {1.0, 1e-2}) {
        int32_t n_retries = 0;
        Mat<float> x = system.solve(strength, n_retries);
        if (system.is_dual()) x = system.from_dual(x);
        ASSERT_EQ(x.rows, t);
        EXPECT_EQ(n_retries, 0);
        // f32: 1e-7 times the condition, which is at most some 400 at this strength.
        EXPECT_LT(normal_residual(a, b, strength * system.mean_eigenvalue(), x), 1e-4) << n << " " << t;
      }
    }
}

TEST(RidgeSystem, EqualColumnsShareAndNothingIsNoSystem) {
  Mat<float> a(40, 2);
  for (float& x : a.data) x = 1;
  Mat<float> b(40, 1);
  for (float& x : b.data) x = 2;
  int32_t n_retries = 0;
  const Mat<float> x = RidgeSystem(std::as_const(a).view(), b, kernel_set()).solve(1e-5, n_retries);
  ASSERT_EQ(x.rows, 2);
  EXPECT_NEAR(x(0, 0), 1, 1e-2);
  EXPECT_NEAR(x(0, 0) + x(1, 0), 2, 1e-3);
  Mat<float> nothing(40, 2), overflow = a;
  overflow(3, 1) = std::numeric_limits<float>::infinity();
  EXPECT_EQ(RidgeSystem(std::as_const(nothing).view(), b, kernel_set()).solve(1, n_retries).rows, 0);
  EXPECT_EQ(RidgeSystem(std::as_const(overflow).view(), b, kernel_set()).solve(1, n_retries).rows, 0);
}

TEST(BoxRegression, MeetsTheOptimalityConditionsWithinTheBox) {
  Rng rng(6);
  const int64_t n = 30, t = 50;
  const Mat<float> columns = random_mat(rng, t, n), b = random_mat(rng, 1, n, 3.0);
  const BoxRegression problem{
      .columns = columns.view(), .target = b.data, .ridge = 2.0f, .lower = 0.3f, .upper = 1.2f};
  std::vector<float> w(static_cast<size_t>(t), 1.0f);
  const BoxSolution solution = solve_box_regression(problem, 1e-5f, 2000, kernel_set(), w);
  EXPECT_LT(solution.n_sweeps, 2000);
  int n_at_bound = 0;
  for (int64_t j = 0; j < t; ++j) {
    const float weight = w[static_cast<size_t>(j)];
    ASSERT_GE(weight, 0.3f);
    ASSERT_LE(weight, 1.2f);
    double slope = 2.0 * (weight - 1.0);
    for (int64_t i = 0; i < n; ++i) {
      double missing = b(0, i);
      for (int64_t k = 0; k < t; ++k) missing -= static_cast<double>(columns(k, i)) * w[static_cast<size_t>(k)];
      slope -= missing * columns(j, i);
    }
    // At a bound the slope points outwards, inside it is 0: 1e-5 times curvatures of about 30, from 50 others.
    if (weight > 0.3f) {
      EXPECT_LE(slope, 1e-2);
    }
    if (weight < 1.2f) {
      EXPECT_GE(slope, -1e-2);
    }
    n_at_bound += weight == 0.3f || weight == 1.2f ? 1 : 0;
  }
  EXPECT_GT(n_at_bound, 0);
}

}  // namespace
}  // namespace sh::compaction
