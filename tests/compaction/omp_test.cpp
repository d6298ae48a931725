// SPDX-License-Identifier: MIT
#include "compaction/omp.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <limits>
#include <set>
#include <thread>

#include "base/clock.h"
#include "base/rng.h"
#include "compaction/nnls.h"
#include "compaction/region.h"
#include "compaction/score.h"
#include "synthetic.h"

namespace sh::compaction {
namespace {

using testing::clustered_head;
using testing::Head;
using testing::kernel_set;
using testing::random_mat;

// All rows are candidates and nothing is dropped.
const OmpOptions kPlain{.candidates_per_row = 1 << 20, .min_weight = -1};

std::vector<float> rms_scores(const Head& head) {
  return score_rows(head.problem(), RowScore::rms, Weighting::attention_share, {}, kernel_set());
}

OmpSelection select(const Head& head, int64_t n_rows, const OmpOptions& omp = kPlain,
                    Weighting weighting = Weighting::attention_share,
                    const std::atomic<bool>* cancel = nullptr) {
  return select_omp(head.problem(), rms_scores(head), n_rows, weighting, omp, {}, cancel, kernel_set());
}

// The mass of each region row in each query as a part of all its attention, by the oracle, and their sum π.
struct Mass {
  Mat<double> of_rows;        // [n, T]
  std::vector<double> share;  // [n]
};
Mass mass_of(const Head& head) {
  const int64_t n = head.queries.rows, n_rows = head.keys.rows, d = head.keys.cols;
  Mass mass{Mat<double>(n, n_rows), std::vector<double>(static_cast<size_t>(n), 0.0)};
  for (int64_t query = 0; query < n; ++query) {
    double lse = head.lse.empty() ? 0 : head.lse[static_cast<size_t>(query)];
    if (head.lse.empty())
      lse = testing::attend(head.queries.row(query), head.keys.view(), head.bias, head.values.view(), head.scale).lse;
    for (int64_t row = 0; row < testing::n_visible(head, query); ++row) {
      double score = 0;
      for (int64_t k = 0; k < d; ++k) score += static_cast<double>(head.queries(query, k)) * head.keys(row, k);
      const double bias = head.bias.empty() ? 0 : head.bias[static_cast<size_t>(row)];
      mass.of_rows(query, row) = std::exp(score * head.scale + bias - lse);
      mass.share[static_cast<size_t>(query)] += mass.of_rows(query, row);
    }
  }
  return mass;
}

// min ‖share − P_S w‖ over w ≥ 0, as a part of ‖share‖, and what is missing of each query then. Normal equations
// and coordinate descent until it stands still.
struct SlowFit {
  double residual = 0;
  std::vector<double> weights, missing;
};
SlowFit slow_fit(const Mass& mass, std::span<const int32_t> rows, double upper = std::exp(7.0)) {
  const int64_t n = mass.of_rows.rows, t = static_cast<int64_t>(rows.size());
  Mat<double> gram(t, t);
  std::vector<double> rhs(rows.size(), 0.0);
  for (int64_t query = 0; query < n; ++query)
    for (int64_t i = 0; i < t; ++i) {
      const double x = mass.of_rows(query, rows[static_cast<size_t>(i)]);
      rhs[static_cast<size_t>(i)] += x * mass.share[static_cast<size_t>(query)];
      for (int64_t j = 0; j < t; ++j) gram(i, j) += x * mass.of_rows(query, rows[static_cast<size_t>(j)]);
    }
  SlowFit fit{.weights = std::vector<double>(rows.size(), 1.0), .missing = mass.share};
  solve_box_least_squares({.gram = gram.view(), .rhs = rhs, .lower = 0, .upper = upper}, 1e-9, 20000, fit.weights);
  double square = 0, all = 0;
  for (int64_t query = 0; query < n; ++query) {
    double& missing = fit.missing[static_cast<size_t>(query)];
    for (size_t i = 0; i < rows.size(); ++i) missing -= fit.weights[i] * mass.of_rows(query, rows[i]);
    square += missing * missing;
    all += mass.share[static_cast<size_t>(query)] * mass.share[static_cast<size_t>(query)];
  }
  fit.residual = std::sqrt(square / all);
  return fit;
}

struct SlowOmp {
  std::vector<int32_t> picks;
  std::vector<double> residual;
};
SlowOmp slow_omp(const Mass& mass, int64_t n_rows) {
  SlowOmp result;
  std::vector<double> missing = mass.share;
  while (static_cast<int64_t>(result.picks.size()) < n_rows) {
    int32_t best = -1;
    double highest = 0;
    for (int64_t row = 0; row < mass.of_rows.cols; ++row) {
      double correlation = 0;
      for (int64_t query = 0; query < mass.of_rows.rows; ++query)
        correlation += mass.of_rows(query, row) * missing[static_cast<size_t>(query)];
      const bool is_picked = std::count(result.picks.begin(), result.picks.end(), row) > 0;
      if (!is_picked && correlation > highest) {
        highest = correlation;
        best = static_cast<int32_t>(row);
      }
    }
    if (best < 0) break;
    result.picks.push_back(best);
    SlowFit fit = slow_fit(mass, result.picks);
    missing = std::move(fit.missing);
    result.residual.push_back(fit.residual);
  }
  return result;
}

// Every row at most once, all of the region, the path not increasing.
void expect_sound(const OmpSelection& selection, const Head& head, size_t n_rows) {
  EXPECT_EQ(selection.picks.size(), n_rows);
  ASSERT_EQ(selection.residual.size(), selection.picks.size());
  const std::set<int32_t> rows(selection.picks.begin(), selection.picks.end());
  EXPECT_EQ(rows.size(), selection.picks.size());
  if (!rows.empty()) {
    EXPECT_GE(*rows.begin(), 0);
    EXPECT_LT(*rows.rbegin(), head.keys.rows);
  }
  for (size_t i = 0; i < selection.residual.size(); ++i) {
    ASSERT_TRUE(std::isfinite(selection.residual[i]));
    EXPECT_LE(selection.residual[i], i > 0 ? selection.residual[i - 1] : 1.0) << i;
  }
}

// `n_distinct` keys, key j many times over: n_times(j). Rows in random order.
Head head_of_copies(uint64_t seed, int64_t n_distinct, int64_t n_queries, std::vector<int32_t>* key_of_row) {
  Rng rng(seed);
  const int64_t d = 16;
  const Mat<float> distinct = random_mat(rng, n_distinct, d, 1.5);
  key_of_row->clear();
  for (int64_t key = 0; key < n_distinct; ++key)
    for (uint64_t i = 0, n = 1 + rng.next_below(6); i < n; ++i) key_of_row->push_back(static_cast<int32_t>(key));
  for (size_t i = key_of_row->size(); i-- > 1;) std::swap((*key_of_row)[i], (*key_of_row)[rng.next_below(i + 1)]);
  Head head;
  const int64_t n_rows = static_cast<int64_t>(key_of_row->size());
  head.keys = testing::gather_rows(distinct, *key_of_row);
  head.values = random_mat(rng, n_rows, d);
  head.queries = random_mat(rng, n_queries, d, 2.0);
  head.live_keys = random_mat(rng, 8, d);
  head.live_values = random_mat(rng, 8, d);
  testing::finish(head);
  return head;
}

TEST(Omp, PicksWhatASlowPursuitInDoublePicks) {
  for (const uint64_t seed : {1, 2, 3, 4, 5, 6}) {
    const Head head = clustered_head(seed, 120, 150, 24);
    const SlowOmp slow = slow_omp(mass_of(head), 40);
    const OmpSelection fast = select(head, 40);
    ASSERT_EQ(fast.picks, slow.picks) << "seed " << seed;
    // f32 weights and Gram matrix: squares are off by 1e-7.
    for (size_t i = 0; i < slow.residual.size(); ++i) EXPECT_NEAR(fast.residual[i], slow.residual[i], 1e-3);
    EXPECT_LT(fast.residual.back(), 0.3);  // not a comparison of noise
    EXPECT_EQ(fast.n_by_score, 0);
    expect_sound(fast, head, 40);
  }
}

TEST(Omp, CopiesOfAKeyAreRestoredByOneOfThem) {
  for (const uint64_t seed : {1, 2, 3}) {
    const int64_t n_distinct = 24;
    std::vector<int32_t> key_of_row;
    const Head head = head_of_copies(seed, n_distinct, 400, &key_of_row);
    for (const int32_t keys_per_step : {1, 4}) {
      OmpOptions omp = kPlain;
      omp.keys_per_step = keys_per_step;
      omp.steps_per_refit = keys_per_step == 1 ? 1 : 2;
      const OmpSelection selection = select(head, n_distinct, omp);
      std::set<int32_t> keys;
      for (const int32_t row : selection.picks) keys.insert(key_of_row[static_cast<size_t>(row)]);
      EXPECT_EQ(static_cast<int64_t>(keys.size()), n_distinct) << keys_per_step;
      EXPECT_LT(selection.residual.back(), 1e-3);
      EXPECT_EQ(selection.n_by_score, 0);
      // By the oracle too, and the weights are how often each key is there.
      const SlowFit fit = slow_fit(mass_of(head), selection.picks);
      EXPECT_LT(fit.residual, 1e-5);
      for (size_t i = 0; i < selection.picks.size(); ++i) {
        const int32_t key = key_of_row[static_cast<size_t>(selection.picks[i])];
        EXPECT_NEAR(fit.weights[i], std::count(key_of_row.begin(), key_of_row.end(), key), 1e-2);
      }
      // Asked for more, it takes copies only when no other row is left, and says so.
      const OmpSelection more = select(head, n_distinct + 10, omp);
      EXPECT_EQ(more.n_by_score, 10);
      expect_sound(more, head, static_cast<size_t>(n_distinct + 10));
    }
  }
}

TEST(Omp, RestoresMoreMassThanTheBestScoredRows) {
  double with_omp = 0, with_top = 0, fast = 0;
  for (const uint64_t seed : {11, 12, 13, 14}) {
    const Head head = clustered_head(seed, 512, 700, 32);
    const Mass mass = mass_of(head);
    const OmpSelection exact = select(head, 51, OmpOptions{});
    const OmpSelection batched = select(head, 51, OmpOptions{.keys_per_step = 4, .steps_per_refit = 2});
    expect_sound(exact, head, 51);
    expect_sound(batched, head, 51);
    EXPECT_LT(batched.n_refits, exact.n_refits / 3);
    with_omp += slow_fit(mass, exact.picks).residual;
    fast += slow_fit(mass, batched.picks).residual;
    with_top += slow_fit(mass, top_rows(rms_scores(head), 51)).residual;
    EXPECT_NEAR(exact.residual.back(), slow_fit(mass, exact.picks).residual, 1e-3);
    RecordProperty("n_dropped", exact.n_dropped);
  }
  printf("omp %g fast %g top %g\n", with_omp, fast, with_top);
  EXPECT_LT(with_omp, 0.9 * with_top);
  EXPECT_LT(fast, 1.05 * with_omp);
}

}  // namespace
}  // namespace sh::compaction
