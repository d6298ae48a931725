// SPDX-License-Identifier: MIT
#include "compaction/omp.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cmath>
#include <ctime>
#include <limits>
#include <set>
#include <thread>

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
const OmpOptions kPlain{.keys_per_step = 1, .steps_per_refit = 1, .candidates_per_row = 1 << 20, .min_weight = -1};

std::vector<float> rms_scores(const Head& head) {
  return score_rows(head.problem(), testing::scoring(RowScore::rms, Weighting::attention_share), {}, kernel_set());
}

OmpSelection select(const Head& head, int64_t n_rows, const OmpOptions& omp = kPlain,
                    Weighting weighting = Weighting::attention_share, const std::atomic<bool>* cancel = nullptr) {
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
      lse = testing::attend(head.queries.row(query), head.keys.view(), head.bias, head.values.view(), head.scale)
                .lse;
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
SlowOmp slow_omp(const Mass& mass, int64_t n_rows, double upper = std::exp(7.0)) {
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
    SlowFit fit = slow_fit(mass, result.picks, upper);
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

// Each of `n_distinct` keys one to six times, in random order, with noise on every coordinate of the copies.
Head head_of_copies(uint64_t seed, int64_t n_distinct, int64_t n_queries, double noise,
                    std::vector<int32_t>* key_of_row) {
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
  for (float& x : head.keys.data) x += static_cast<float>(noise * rng.next_normal());
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
    const Head head = head_of_copies(seed, n_distinct, 400, 0, &key_of_row);
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

// Nearly the same columns correlate nearly the same: without a look at each other they would fill a batch.
TEST(Omp, ABatchTakesOneOfNearCopies) {
  std::vector<int32_t> key_of_row;
  const Head head = head_of_copies(4, 40, 400, 0.01, &key_of_row);
  OmpOptions omp = kPlain;
  omp.keys_per_step = 8;
  omp.steps_per_refit = 2;
  const OmpSelection selection = select(head, 16, omp);
  std::set<int32_t> keys;
  for (const int32_t row : selection.picks) keys.insert(key_of_row[static_cast<size_t>(row)]);
  EXPECT_EQ(keys.size(), 16u);
  EXPECT_EQ(selection.n_by_score, 0);
}

TEST(Omp, WeightsStayUnderTheirBound) {
  // Keys that are there up to six times, and a weight may be at most 2.5: one copy does not do for all.
  for (const uint64_t seed : {1, 2, 3}) {
    std::vector<int32_t> key_of_row;
    const Head head = head_of_copies(seed, 12, 300, 0.3, &key_of_row);
    OmpOptions omp = kPlain;
    omp.max_weight = 2.5f;
    const Mass mass = mass_of(head);
    const SlowOmp slow = slow_omp(mass, 14, 2.5);
    const OmpSelection fast = select(head, 14, omp);
    ASSERT_EQ(fast.picks, slow.picks) << "seed " << seed;
    for (size_t i = 0; i < slow.residual.size(); ++i) EXPECT_NEAR(fast.residual[i], slow.residual[i], 1e-3) << i;
    EXPECT_GT(slow.residual.back(), slow_fit(mass, slow.picks).residual + 0.01);  // the bound was met
    expect_sound(fast, head, 14);
  }
}

TEST(Omp, RestoresMoreMassThanTheBestScoredRows) {
  double one_by_one = 0, pursued = 0, fast = 0, best_scored = 0;
  for (const uint64_t seed : {11, 12, 13, 14, 15, 16}) {
    const Head head = clustered_head(seed, 512, 700, 32);
    const Mass mass = mass_of(head);
    const auto residual = [&](int32_t keys_per_step, int32_t steps_per_refit, int32_t max_refits) {
      const OmpOptions omp{.keys_per_step = keys_per_step, .steps_per_refit = steps_per_refit};
      const OmpSelection selection = select(head, 51, omp);
      expect_sound(selection, head, 51);
      EXPECT_LE(selection.n_refits, max_refits);
      const double slow = slow_fit(mass, selection.picks).residual;
      EXPECT_NEAR(selection.residual.back(), slow, 1e-3);
      return slow;
    };
    one_by_one += residual(1, 1, 1000);
    fast += residual(4, 2, 20);
    pursued += residual(1, 8, 20);
    best_scored += slow_fit(mass, top_rows(rms_scores(head), 51)).residual;
  }
  EXPECT_LT(one_by_one, 0.75 * best_scored);
  // The price of few refits: measured 1.03 and 1.002.
  EXPECT_LT(fast, 1.06 * one_by_one);
  EXPECT_LT(pursued, 1.02 * one_by_one);
}

TEST(Omp, FewerRowsAreAPrefix) {
  const Head head = clustered_head(21, 200, 300, 24);
  const OmpSelection all = select(head, 200);
  expect_sound(all, head, 200);
  for (const size_t n_rows : {1u, 2u, 37u, 100u}) {
    const OmpSelection some = select(head, static_cast<int64_t>(n_rows));
    ASSERT_EQ(some.picks.size(), n_rows);
    EXPECT_TRUE(std::equal(some.picks.begin(), some.picks.end(), all.picks.begin())) << n_rows;
    for (size_t i = 0; i < n_rows; ++i) EXPECT_NEAR(some.residual[i], all.residual[i], 1e-3) << i;
  }
}

TEST(Omp, RowsOfNoWeightAreReplaced) {
  int32_t n_dropped = 0;
  for (const uint64_t seed : {31, 32, 33, 34}) {
    const Head head = clustered_head(seed, 400, 500, 24);
    const Mass mass = mass_of(head);
    OmpOptions omp{.keys_per_step = 1, .steps_per_refit = 1, .candidates_per_row = 1000, .min_weight = 0.3f};
    const OmpSelection dropping = select(head, 60, omp);
    expect_sound(dropping, head, 60);
    EXPECT_EQ(dropping.n_by_score, 0);
    omp.min_weight = -1;
    const OmpSelection keeping = select(head, 60, omp);
    EXPECT_EQ(keeping.n_dropped, 0);
    const auto n_light = [&](const OmpSelection& selection) {
      const std::vector<double> weights = slow_fit(mass, selection.picks).weights;
      return std::count_if(weights.begin(), weights.end(), [](double w) { return w <= 0.3; });
    };
    if (n_light(keeping) > 0) {
      EXPECT_GT(dropping.n_dropped, 0) << seed;
      EXPECT_LT(n_light(dropping), n_light(keeping)) << seed;
      EXPECT_NE(dropping.picks, keeping.picks);
    }
    n_dropped += dropping.n_dropped;
    // With no candidate left, rows beyond the candidates come before those dropped.
    omp = {.candidates_per_row = 1, .min_weight = 0.3f};
    const OmpSelection filled = select(head, 60, omp);
    expect_sound(filled, head, 60);
    const std::vector<int32_t> candidates = top_rows(rms_scores(head), 60);
    EXPECT_GT(filled.n_dropped, 0) << seed;
    EXPECT_EQ(
        std::count_if(filled.picks.begin(), filled.picks.end(),
                      [&](int32_t row) { return !std::binary_search(candidates.begin(), candidates.end(), row); }),
        filled.n_dropped);
    EXPECT_NEAR(dropping.residual.back(), slow_fit(mass, dropping.picks).residual, 1e-3);
  }
  EXPECT_GT(n_dropped, 4);
}

TEST(Omp, WeightingDecidesWhichQueriesCount) {
  // Two groups of queries, each looking for its own keys; the second gives nearly all attention to live rows.
  Rng rng(41);
  const int64_t d = 8, n_keys = 40, n_queries = 200;
  Head head;
  head.scale = 1.0f;
  head.keys = random_mat(rng, n_keys, d, 0.3);
  head.values = random_mat(rng, n_keys, d);
  head.queries = random_mat(rng, n_queries, d, 0.3);
  head.live_keys = Mat<float>(1, d);
  head.live_values = random_mat(rng, 1, d);
  for (int64_t row = 0; row < n_keys; ++row) head.keys(row, row < n_keys / 2 ? 0 : 1) += 2.0f;
  for (int64_t query = 0; query < n_queries; ++query) {
    const bool is_first = query < n_queries / 4;
    head.queries(query, is_first ? 0 : 1) += 3.0f;
    head.live_shift.push_back(is_first ? -10.0f : 25.0f);
  }
  testing::finish(head);
  const auto n_first = [&](Weighting weighting) {
    const OmpSelection selection = select(head, 8, kPlain, weighting);
    return std::count_if(selection.picks.begin(), selection.picks.end(),
                         [](int32_t row) { return row < n_keys / 2; });
  };
  EXPECT_EQ(n_first(Weighting::attention_share), 8);
  EXPECT_LT(n_first(Weighting::none), 8);
  EXPECT_LT(select(head, 1, kPlain, Weighting::none).picks.front() < n_keys / 2, 1);  // three queries of four
}

// A tenth of a second or more on its own.
struct LargeHead {
  Head head = clustered_head(51, 3000, 1500, 64, /*has_rest=*/false);
  std::vector<float> scores = rms_scores(head);
  OmpSelection select(const OmpOptions& omp, const std::atomic<bool>* cancel = nullptr) const {
    return select_omp(head.problem(), scores, 900, Weighting::none, omp, {}, cancel, kernel_set());
  }
};

double cpu_seconds() {
  timespec time;
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &time);
  return static_cast<double>(time.tv_sec) + 1e-9 * static_cast<double>(time.tv_nsec);
}

TEST(Omp, DeadlineAndCancelGiveWhatIsThereSoFar) {
  const LargeHead large;
  const double begin = cpu_seconds();
  const OmpSelection full = large.select(kPlain);
  const double full_seconds = cpu_seconds() - begin;
  EXPECT_EQ(full.n_by_score, 0);
  EXPECT_FALSE(full.hit_deadline);
  const auto expect_begun = [&](const OmpSelection& selection) {
    expect_sound(selection, large.head, 900);
    EXPECT_GT(selection.n_by_score, 0);
    const int64_t n_pursued = 900 - selection.n_by_score;
    EXPECT_TRUE(std::equal(full.picks.begin(), full.picks.begin() + n_pursued, selection.picks.begin()));
    // What was filled in are the best scored of the others.
    std::vector<float> others = large.scores;
    for (int64_t i = 0; i < n_pursued; ++i)
      others[static_cast<size_t>(selection.picks[static_cast<size_t>(i)])] =
          -std::numeric_limits<float>::infinity();
    std::vector<int32_t> filled(selection.picks.begin() + n_pursued, selection.picks.end());
    std::sort(filled.begin(), filled.end());
    EXPECT_EQ(filled, top_rows(others, selection.n_by_score));
  };

  for (const double share : {1e-9, 0.1, 0.3}) {
    OmpOptions omp = kPlain;
    omp.deadline_seconds = share * full_seconds;
    const double start = cpu_seconds();
    const OmpSelection selection = large.select(omp);
    // The clock of this thread runs no faster than that of the deadline, but beside other programs one run may cost
    // more of it than another. Without the deadline it would be all of it.
    EXPECT_LT(cpu_seconds() - start, omp.deadline_seconds + 0.5 * full_seconds) << share;
    EXPECT_TRUE(selection.hit_deadline);
    expect_begun(selection);
  }

  std::atomic<bool> cancel = true;
  const OmpSelection cancelled = large.select(kPlain, &cancel);
  EXPECT_EQ(cancelled.n_by_score, 900);
  EXPECT_FALSE(cancelled.hit_deadline);
  expect_begun(cancelled);
  cancel = false;
  std::thread canceller([&] {
    std::this_thread::sleep_for(std::chrono::duration<double>(0.1 * full_seconds));
    cancel = true;
  });
  const OmpSelection stopped = large.select(kPlain, &cancel);
  canceller.join();
  EXPECT_FALSE(stopped.hit_deadline);
  expect_begun(stopped);
}

TEST(Omp, TheSameEveryTime) {
  const Head head = clustered_head(61, 400, 300, 32);
  const OmpOptions omp{.keys_per_step = 4, .steps_per_refit = 2};
  const OmpSelection once = select(head, 80, omp);
  for (int i = 0; i < 3; ++i) {
    const std::vector<double> moves_allocations(static_cast<size_t>(1 + 37 * i));
    const OmpSelection again = select(head, 80, omp);
    EXPECT_EQ(again.picks, once.picks);
    EXPECT_EQ(again.residual, once.residual);
  }
  // Of equal columns the lower row is taken.
  Head twins = head;
  for (int64_t row = 0; row < 400; row += 2)
    std::copy_n(twins.keys.row(row), twins.keys.cols, twins.keys.row(row + 1));
  testing::finish(twins);
  const OmpSelection selection = select(twins, 50);
  EXPECT_EQ(selection.n_by_score, 0);
  for (const int32_t row : selection.picks) EXPECT_EQ(row % 2, 0);
}

TEST(Omp, DegenerateHeads) {
  const Head head = clustered_head(71, 60, 100, 16);
  const std::vector<float> scores = rms_scores(head);
  const auto run = [&](const HeadProblem& problem, std::span<const float> row_scores, int64_t n_rows) {
    return select_omp(problem, row_scores, n_rows, Weighting::attention_share, {}, {}, nullptr, kernel_set());
  };
  expect_sound(run(head.problem(), scores, 0), head, 0);
  expect_sound(run(head.problem(), scores, -5), head, 0);
  expect_sound(run(head.problem(), scores, 60), head, 60);
  expect_sound(run(head.problem(), scores, std::numeric_limits<int64_t>::max()), head, 60);

  HeadProblem empty = head.problem();
  empty.keys = empty.keys.slice(0, 0);
  empty.values = empty.values.slice(0, 0);
  empty.pos = {};
  EXPECT_TRUE(run(empty, {}, 10).picks.empty());

  HeadProblem one = head.problem();
  one.keys = one.keys.slice(7, 1);
  one.values = one.values.slice(7, 1);
  one.pos = one.pos.subspan(7, 1);
  EXPECT_EQ(run(one, std::span(scores).subspan(7, 1), 10).picks, std::vector<int32_t>{0});

  HeadProblem unasked = head.problem();
  unasked.queries = {};
  unasked.query_pos = {};
  unasked.lse = {};
  unasked.out = {};
  const OmpSelection by_score = run(unasked, scores, 20);
  expect_sound(by_score, head, 20);
  EXPECT_EQ(by_score.n_by_score, 20);
  std::vector<int32_t> rows = by_score.picks;
  std::sort(rows.begin(), rows.end());
  EXPECT_EQ(rows, top_rows(scores, 20));

  // Fewer queries than rows: the columns depend on each other once there is one a query.
  HeadProblem few = head.problem();
  few.queries = few.queries.slice(0, 5);
  few.query_pos = few.query_pos.first(5);
  few.lse = few.lse.first(5);
  few.out = few.out.slice(0, 5);
  const OmpSelection dependent = run(few, scores, 30);
  expect_sound(dependent, head, 30);
  EXPECT_GE(dependent.n_by_score, 24);  // a batch takes a sixth, whose part outside the span is just not rounding
  const std::vector<int32_t> dictionary = top_rows(scores, 4 * 5);  // as many as queries ask for
  for (size_t i = 0; i + static_cast<size_t>(dependent.n_by_score) < dependent.picks.size(); ++i)
    EXPECT_TRUE(std::binary_search(dictionary.begin(), dictionary.end(), dependent.picks[i]));

  // One key for all rows: one pick restores everything.
  Head constant = head;
  for (int64_t row = 1; row < 60; ++row) std::copy_n(constant.keys.row(0), 16, constant.keys.row(row));
  testing::finish(constant);
  const OmpSelection same = select(constant, 10);
  expect_sound(same, constant, 10);
  EXPECT_EQ(same.n_by_score, 9);
  EXPECT_LT(same.residual.front(), 1e-3);

  // Queries that see nothing of the region.
  Head blind = head;
  for (int32_t& pos : blind.query_pos) pos = 0;
  testing::finish(blind);
  const OmpSelection unseen = select(blind, 10);
  expect_sound(unseen, blind, 10);
  EXPECT_EQ(unseen.n_by_score, 10);
}

TEST(Omp, BadNumbersAreLeftOut) {
  Head head = clustered_head(81, 80, 120, 16);
  const float nan = std::numeric_limits<float>::quiet_NaN(), infinity = std::numeric_limits<float>::infinity();
  const std::vector<float> scores = rms_scores(head);
  const Head clean = head;
  head.keys(3, 5) = nan;
  head.keys(4, 0) = infinity;
  head.values(5, 2) = nan;
  for (int64_t query = 0; query < 120; query += 3) head.queries(query, 1) = nan;
  std::vector<float> bad_scores = scores;
  bad_scores[6] = nan;
  bad_scores[7] = -infinity;
  const auto run = [&](int64_t n_rows) {
    return select_omp(head.problem(), bad_scores, n_rows, Weighting::attention_share, {}, {}, nullptr,
                      kernel_set());
  };
  for (const int64_t n_rows : {10, 75, 80}) {
    const OmpSelection selection = run(n_rows);
    expect_sound(selection, head, static_cast<size_t>(std::min<int64_t>(n_rows, 75)));
    for (const int32_t row : selection.picks) EXPECT_TRUE(row < 3 || row > 7) << row;
  }
  for (int64_t query = 0; query < 120; ++query) head.queries(query, 0) = nan;
  EXPECT_EQ(run(10).n_by_score, 10);
  for (float& x : head.keys.data) x = nan;
  EXPECT_TRUE(run(10).picks.empty());
}

TEST(Omp, CandidatesAreBounded) {
  const Head head = clustered_head(91, 300, 200, 24);
  const std::vector<float> scores = rms_scores(head);
  const OmpSelection narrow = select(head, 40, {.candidates_per_row = 2});
  const std::vector<int32_t> best = top_rows(scores, 80);
  for (const int32_t row : narrow.picks) EXPECT_TRUE(std::binary_search(best.begin(), best.end(), row)) << row;
  // More rows than candidates: the others by score.
  const OmpSelection short_of = select(head, 40, {.max_candidates = 25, .min_weight = -1});
  expect_sound(short_of, head, 40);
  EXPECT_GE(short_of.n_by_score, 15);
  std::vector<int32_t> rows = short_of.picks;
  std::sort(rows.begin(), rows.end());
  EXPECT_EQ(rows, top_rows(scores, 40));
}

}  // namespace
}  // namespace sh::compaction
