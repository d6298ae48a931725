// SPDX-License-Identifier: MIT
#include "compaction/error_curve.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>

#include "compaction/score.h"
#include "compaction/validate.h"
#include "synthetic.h"

namespace sh::compaction {
namespace {

using testing::clustered_head;
using testing::gather_rows;
using testing::Head;
using testing::kernel_set;

std::vector<float> scores_of(const HeadProblem& problem) {
  return score_rows(problem, testing::scoring(RowScore::max, Weighting::attention_share), {}, kernel_set());
}

// The rest has a part of every query's attention that f32 can tell from nothing: 1 - π of a smaller one is
// rounding, and the error of a query that keeps only that part rests on it.
Head mixed_head(uint64_t seed, int64_t n_rows, int64_t n_queries, int64_t d) {
  Head head = clustered_head(seed, n_rows, n_queries, d);
  for (float& shift : head.live_shift) shift = 5.0f + 0.5f * (shift - 2.0f);
  finish(head);
  return head;
}

// mixed_output() with the rows of each size, one size after the other.
ErrorCurve slow_curve(const Head& head, std::span<const float> scores, std::span<const int64_t> n_rows) {
  const HeadProblem problem = head.problem();
  const Mat<float> exact = mixed_output(problem, problem.keys, problem.bias, problem.values, problem.pos);
  const auto norm_of = [&](int64_t query, auto&& at) {
    double square = 0;
    for (int64_t c = 0; c < exact.cols; ++c) square += at(query, c) * at(query, c);
    return std::sqrt(square);
  };
  double norm = 0;
  for (int64_t query = 0; query < exact.rows; ++query)
    norm += norm_of(query, [&](int64_t q, int64_t c) { return static_cast<double>(exact(q, c)); });
  norm /= static_cast<double>(exact.rows);
  ErrorCurve curve;
  for (const int64_t n : n_rows) {
    const std::vector<int32_t> rows = top_rows(scores, n);
    std::vector<float> bias;
    std::vector<int32_t> pos;
    for (const int32_t row : rows) {
      if (!head.bias.empty()) bias.push_back(head.bias[static_cast<size_t>(row)]);
      if (!head.pos.empty()) pos.push_back(head.pos[static_cast<size_t>(row)]);
    }
    const Mat<float> keys = gather_rows(head.keys, rows), values = gather_rows(head.values, rows);
    const Mat<float> got = mixed_output(problem, keys.view(), bias, values.view(), pos);
    std::vector<float> errors;
    for (int64_t query = 0; query < exact.rows; ++query)
      errors.push_back(static_cast<float>(norm_of(query,
                                                  [&](int64_t q, int64_t c) {
                                                    return static_cast<double>(got(q, c)) -
                                                           static_cast<double>(exact(q, c));
                                                  }) /
                                          norm));
    const ErrorSummary summary = summarise(errors);
    curve.n_rows.push_back(n);
    curve.mean_square.push_back(summary.mean_square);
    curve.p99.push_back(summary.p99);
    curve.worst.push_back(summary.worst);
  }
  return curve;
}

// f32 sums over hundreds of rows against double: 1e-4 of the outputs' norm, and of large errors themselves.
void expect_near(const ErrorCurve& got, const ErrorCurve& expected) {
  ASSERT_EQ(got.n_rows, expected.n_rows);
  for (size_t s = 0; s < got.n_rows.size(); ++s) {
    EXPECT_NEAR(got.mean_square[s], expected.mean_square[s], 1e-6 + 1e-3 * expected.mean_square[s]) << s;
    EXPECT_NEAR(got.p99[s], expected.p99[s], 1e-4 + 1e-3 * expected.p99[s]) << s;
    EXPECT_NEAR(got.worst[s], expected.worst[s], 1e-4 + 1e-3 * expected.worst[s]) << s;
  }
}

void expect_as_slow(const Head& head) {
  const auto scores = scores_of(head.problem());
  const ErrorCurve curve = measure_error_curve(head.problem(), scores, {}, kernel_set());
  EXPECT_EQ(curve.n_queries, head.queries.rows);
  expect_near(curve, slow_curve(head, scores, curve.n_rows));
}

TEST(ErrorCurve, IsThatOfTheMixedOutputAtEverySize) {
  expect_as_slow(mixed_head(1, 700, 600, 48));
}

TEST(ErrorCurve, WithoutRowsOutsideTheRegion) {
  expect_as_slow(clustered_head(2, 300, 500, 32, false));
}

TEST(ErrorCurve, WithBiasesOfAnEarlierCompactionAndQueriesThatSeeSomeRowsOnly) {
  for (const bool has_rest : {true, false}) {
    Head head = has_rest ? mixed_head(3, 257, 300, 32) : clustered_head(3, 257, 300, 32, false);
    Rng rng(3);
    for (int64_t row = 0; row < 257; ++row) head.bias.push_back(static_cast<float>(rng.next_normal()));
    // From queries that see nothing of the region (position 3 is before all) to those that see all.
    for (size_t query = 0; query < head.query_pos.size(); ++query)
      head.query_pos[query] = 3 + static_cast<int32_t>(query);
    if (has_rest) finish(head);
    expect_as_slow(head);
  }
}

TEST(ErrorCurve, OfQueriesWhoseRowsAreNotAmongTheFirst) {
  // Scores 60 times as far apart: a query without its own row has nothing left in f32 shares.
  Head head = clustered_head(4, 200, 300, 32, false);
  for (float& x : head.queries.data) x *= 60;
  const auto scores = scores_of(head.problem());
  const ErrorCurve curve = measure_error_curve(head.problem(), scores, {}, kernel_set());
  const ErrorCurve expected = slow_curve(head, scores, curve.n_rows);
  EXPECT_GT(expected.mean_square[1], 0.5);
  expect_near(curve, expected);
}

TEST(ErrorCurve, StartsAtNoRowsAndEndsAtAllWithoutError) {
  const Head head = clustered_head(5, 5000, 200, 32);
  const ErrorCurve curve = measure_error_curve(head.problem(), scores_of(head.problem()), {}, kernel_set());
  EXPECT_EQ(curve.n_rows.front(), 0);
  EXPECT_EQ(curve.n_rows[1], 1);
  EXPECT_EQ(curve.n_rows.back(), 5000);
  EXPECT_TRUE(std::adjacent_find(curve.n_rows.begin(), curve.n_rows.end(), std::greater_equal<>()) ==
              curve.n_rows.end());
  EXPECT_GE(curve.n_rows.size(), 20u);
  EXPECT_LE(curve.n_rows.size(), 26u);
  EXPECT_LT(curve.worst.back(), 1e-5);
  EXPECT_GT(curve.mean_square.front(), 100 * curve.mean_square[curve.n_rows.size() - 2]);
}

TEST(ErrorCurve, RowsThatAreNotFiniteAreNotThere) {
  Head head = clustered_head(6, 60, 100, 32, false);
  head.values(7, 3) = std::numeric_limits<float>::quiet_NaN();
  head.keys(50, 0) = std::numeric_limits<float>::infinity();
  const auto scores = scores_of(head.problem());
  const ErrorCurve curve = measure_error_curve(head.problem(), scores, {}, kernel_set());
  EXPECT_EQ(curve.n_rows.back(), 58);
  EXPECT_LT(curve.worst.back(), 1e-5);
  for (const double error : curve.worst) EXPECT_TRUE(std::isfinite(error));
}

TEST(ErrorCurve, OfNoRowsOneRowAndNoQueries) {
  Head none = mixed_head(7, 1, 50, 32);
  none.keys = none.values = Mat<float>(0, 32);
  none.pos.clear();
  finish(none);
  EXPECT_EQ(measure_error_curve(none.problem(), {}, {}, kernel_set()).n_rows, std::vector<int64_t>{0});
  const Head one = mixed_head(8, 1, 50, 32);
  expect_as_slow(one);
  const Head unasked = clustered_head(9, 40, 0, 32);
  const ErrorCurve curve = measure_error_curve(unasked.problem(), std::vector<float>(40, 0.5f), {}, kernel_set());
  EXPECT_EQ(curve.n_queries, 0);
  EXPECT_EQ(curve.n_rows.back(), 40);
  EXPECT_EQ(curve.mean_square, std::vector<double>(curve.n_rows.size(), 0.0));
}

TEST(ErrorCurve, IsLinearBetweenItsSizes) {
  const ErrorCurve curve{.n_rows = {0, 1, 5, 9}, .mean_square = {}, .p99 = {1.0, 0.8, 0.4, 0.0}, .worst = {}};
  const std::pair<int64_t, double> expected[] = {{0, 1.0}, {1, 0.8}, {2, 0.7}, {5, 0.4}, {8, 0.1}, {9, 0.0}};
  for (const auto& [n_rows, error] : expected) EXPECT_NEAR(p99_at(curve, n_rows), error, 1e-12) << n_rows;
  EXPECT_EQ(p99_at({.n_rows = {0}, .mean_square = {}, .p99 = {0.0}, .worst = {}}, 0), 0);
}

TEST(ErrorCurve, ThinsQueriesAndSpreadsThem) {
  const Head head = clustered_head(10, 64, 5000, 16);
  const auto scores = scores_of(head.problem());
  const ErrorCurve curve = measure_error_curve(head.problem(), scores, {}, kernel_set());
  EXPECT_EQ(curve.n_queries, 2048);
  EXPECT_EQ(measure_error_curve(head.problem(), scores, {.max_queries_per_head = 100}, kernel_set()).n_queries,
            100);
  const ErrorCurve all = slow_curve(head, scores, curve.n_rows);
  for (size_t s = 0; s + 1 < curve.n_rows.size(); ++s)
    EXPECT_NEAR(curve.mean_square[s], all.mean_square[s], 0.1 * all.mean_square[s] + 1e-6)
        << s;  // a sample of 2 in 5
}

}  // namespace
}  // namespace sh::compaction
