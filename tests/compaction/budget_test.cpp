// SPDX-License-Identifier: MIT
#include "compaction/budget.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <limits>
#include <numeric>

#include "base/rng.h"
#include "compaction/score.h"
#include "synthetic.h"

namespace sh::compaction {
namespace {

using Scores = std::vector<std::vector<float>>;

Scores random_scores(uint64_t seed, std::vector<int64_t> lengths) {
  Rng rng(seed);
  Scores scores;
  for (size_t head = 0; head < lengths.size(); ++head) {
    scores.emplace_back();
    // Heads differ in how much they want, as real heads do.
    for (int64_t row = 0; row < lengths[head]; ++row)
      scores.back().push_back(static_cast<float>(rng.next_unit() * static_cast<double>(head + 1)));
  }
  return scores;
}

Result<std::vector<int64_t>> plan(BudgetPolicy policy, const Scores& scores, const std::vector<int64_t>& fixed,
                                  const BudgetLimits& limits) {
  return plan_budget({.policy = policy, .scores = scores, .fixed_rows = fixed, .limits = limits});
}

int64_t total(const std::vector<int64_t>& kept) {
  return std::accumulate(kept.begin(), kept.end(), int64_t{0});
}

int64_t blocks_of(const std::vector<int64_t>& kept, const std::vector<int64_t>& fixed, int64_t block_rows) {
  int64_t n_blocks = 0;
  for (size_t head = 0; head < kept.size(); ++head)
    n_blocks += (kept[head] + fixed[head] + block_rows - 1) / block_rows;
  return n_blocks;
}

TEST(Budget, RowLimitIsMetExactlyOrEverythingIsKept) {
  const std::vector<int64_t> lengths = {7, 100, 33, 0, 64};
  const Scores scores = random_scores(1, lengths);
  const std::vector<int64_t> fixed(5, 8);
  for (const BudgetPolicy policy : {BudgetPolicy::uniform, BudgetPolicy::global})
    for (const int64_t limit : {0, 1, 4, 5, 17, 100, 203, 204, 205, 100000}) {
      const auto kept = plan(policy, scores, fixed, {.max_region_rows = limit}).value();
      EXPECT_EQ(total(kept), std::min<int64_t>(limit, 204));
      for (size_t head = 0; head < kept.size(); ++head) EXPECT_LE(kept[head], lengths[head]);
    }
}

TEST(Budget, UniformHeadsDifferByAtMostOneUnlessShort) {
  const Scores scores = random_scores(2, {5, 100, 100, 100});
  const auto kept =
      plan(BudgetPolicy::uniform, scores, std::vector<int64_t>(4, 0), {.max_region_rows = 67}).value();
  EXPECT_EQ(kept, (std::vector<int64_t>{5, 21, 21, 20}));
}

TEST(Budget, GlobalTakesTheBestRowsOfAllHeads) {
  const Scores scores = {{0.1f, 0.9f, 0.2f}, {0.8f, 0.7f, 0.6f}, {0.0f, 0.0f, 0.05f}};
  const std::vector<int64_t> fixed(3, 0);
  EXPECT_EQ(plan(BudgetPolicy::global, scores, fixed, {.max_region_rows = 4}).value(),
            (std::vector<int64_t>{1, 3, 0}));
  EXPECT_EQ(top_rows(scores[0], 1), std::vector<int32_t>{1});
  EXPECT_EQ(top_rows(scores[1], 2), (std::vector<int32_t>{0, 1}));
}

TEST(Budget, TiesGoToTheLowerHeadThenTheLowerRow) {
  const Scores scores(3, std::vector<float>(4, 0.5f));
  const std::vector<int64_t> fixed(3, 0);
  EXPECT_EQ(plan(BudgetPolicy::global, scores, fixed, {.max_region_rows = 5}).value(),
            (std::vector<int64_t>{4, 1, 0}));
  EXPECT_EQ(top_rows(scores[0], 2), (std::vector<int32_t>{0, 1}));
}

/// Every row of every head from the best on, each offered to its head: what "global" means.
std::vector<int64_t> offer_in_order(const Scores& scores, const std::vector<int64_t>& fixed,
                                    const BudgetLimits& limits) {
  std::vector<std::pair<float, size_t>> rows;
  for (size_t head = 0; head < scores.size(); ++head)
    for (const float score : scores[head])
      if (std::isfinite(score)) rows.emplace_back(score, head);
  std::stable_sort(rows.begin(), rows.end(), [](const auto& a, const auto& b) { return a.first > b.first; });
  std::vector<int64_t> kept(scores.size(), 0);
  for (const auto& [score, head] : rows) {
    ++kept[head];
    if ((limits.max_region_rows >= 0 && total(kept) > limits.max_region_rows) ||
        (limits.max_blocks >= 0 && blocks_of(kept, fixed, limits.block_rows) > limits.max_blocks))
      --kept[head];
  }
  return kept;
}

TEST(Budget, GlobalIsTheSameAsOfferingAllRowsInOrder) {
  for (uint64_t seed = 0; seed < 8; ++seed) {
    Scores scores = random_scores(seed, {700, 40, 0, 333, 1, 512});
    // Ties, both zeros, negative scores, and rows that cannot be kept.
    for (Scores::value_type& of_head : scores)
      for (size_t row = 0; row < of_head.size(); ++row) {
        if (row % 5 == 0) of_head[row] = row % 2 == 0 ? 0.0f : -0.0f;
        if (row % 7 == 0) of_head[row] = std::round(of_head[row] * 8) / 8 - 1;
        if (row % 11 == 0) of_head[row] = -std::numeric_limits<float>::infinity();
      }
    const std::vector<int64_t> fixed = {3, 0, 17, 16, 0, 5};
    for (const BudgetLimits& limits : {BudgetLimits{.max_region_rows = 100}, BudgetLimits{.max_region_rows = 1400},
                                       BudgetLimits{.max_blocks = 9, .block_rows = 16},
                                       BudgetLimits{.max_blocks = 60, .block_rows = 16},
                                       BudgetLimits{.max_region_rows = 300, .max_blocks = 20, .block_rows = 16}})
      EXPECT_EQ(plan(BudgetPolicy::global, scores, fixed, limits).value(), offer_in_order(scores, fixed, limits));
  }
}

TEST(Budget, BlocksAreCountedWithTheFixedRowsAndFilled) {
  const std::vector<int64_t> fixed = {8, 16, 3};
  const Scores scores = random_scores(3, {100, 200, 50});
  for (const BudgetPolicy policy : {BudgetPolicy::uniform, BudgetPolicy::global})
    for (int64_t limit = 3; limit <= 30; ++limit) {
      const auto kept = plan(policy, scores, fixed, {.max_blocks = limit, .block_rows = 16}).value();
      EXPECT_LE(blocks_of(kept, fixed, 16), limit);
      // Nothing that is paid for stays empty: no head could take one more row without another block, unless it
      // keeps all.
      for (size_t head = 0; head < kept.size(); ++head) {
        if (kept[head] == static_cast<int64_t>(scores[head].size())) continue;
        auto more = kept;
        ++more[head];
        EXPECT_GT(blocks_of(more, fixed, 16), limit) << "head " << head << " at " << limit << " blocks";
      }
    }
}

TEST(Budget, BothLimitsBind) {
  const Scores scores = random_scores(4, {100, 100});
  const std::vector<int64_t> fixed = {0, 0};
  const auto kept =
      plan(BudgetPolicy::global, scores, fixed, {.max_region_rows = 40, .max_blocks = 2, .block_rows = 16})
          .value();
  EXPECT_EQ(total(kept), 32);
  const auto fewer =
      plan(BudgetPolicy::global, scores, fixed, {.max_region_rows = 20, .max_blocks = 2, .block_rows = 16})
          .value();
  EXPECT_EQ(total(fewer), 20);
}

TEST(Budget, ALargerLimitKeepsWhatASmallerOneKept) {
  const Scores scores = random_scores(5, {90, 40, 120, 3});
  const std::vector<int64_t> fixed = {8, 1, 0, 16};
  for (const BudgetPolicy policy : {BudgetPolicy::uniform, BudgetPolicy::global}) {
    std::vector<int64_t> last_rows(4, 0), last_blocks(4, 0);
    for (int64_t limit = 4; limit < 260; ++limit) {
      const auto by_rows = plan(policy, scores, fixed, {.max_region_rows = limit}).value();
      const auto by_blocks = plan(policy, scores, fixed, {.max_blocks = limit, .block_rows = 8}).value();
      for (size_t head = 0; head < 4; ++head) {
        EXPECT_GE(by_rows[head], last_rows[head]);
        EXPECT_GE(by_blocks[head], last_blocks[head]);
      }
      last_rows = by_rows;
      last_blocks = by_blocks;
    }
  }
}

TEST(Budget, EveryRatioIsFeasibleOnATinyModelOrRefusedWithAReason) {
  const Scores scores = random_scores(6, {12, 12});
  const std::vector<int64_t> fixed = {8, 8};
  for (int ratio = 1; ratio <= 1000; ++ratio) {
    const int64_t n_blocks = 10 / ratio;  // 40 rows of 4
    const auto kept = plan(BudgetPolicy::global, scores, fixed, {.max_blocks = n_blocks, .block_rows = 4});
    if (n_blocks < 4) {
      ASSERT_FALSE(kept.ok()) << ratio;
      EXPECT_EQ(kept.error().kind, ErrorKind::invalid_argument);
      EXPECT_NE(kept.error().message.find(std::to_string(4 - n_blocks) + " more"), std::string::npos)
          << kept.error().message;
    } else {
      EXPECT_LE(blocks_of(kept.value(), fixed, 4), n_blocks);
    }
    EXPECT_EQ(total(plan(BudgetPolicy::uniform, scores, fixed, {.max_region_rows = 24 / ratio}).value()),
              24 / ratio);
  }
}

TEST(Budget, LimitsThatMakeNoSenseAreErrors) {
  const Scores scores = random_scores(7, {4});
  const std::vector<int64_t> fixed = {0};
  for (const BudgetLimits& limits :
       {BudgetLimits{}, BudgetLimits{.max_region_rows = -2}, BudgetLimits{.max_region_rows = 1, .max_blocks = -5},
        BudgetLimits{.max_blocks = 1, .block_rows = 0}})
    EXPECT_EQ(plan(BudgetPolicy::global, scores, fixed, limits).error().kind, ErrorKind::invalid_argument);
}

TEST(Budget, RowsThatAreNotFiniteAreNeverKept) {
  const float inf = std::numeric_limits<float>::infinity(), nan = std::nanf("");
  const Scores scores = {{1.0f, -inf, nan, 0.5f}};
  const std::vector<int64_t> fixed = {0};
  for (const BudgetPolicy policy : {BudgetPolicy::uniform, BudgetPolicy::global})
    EXPECT_EQ(plan(policy, scores, fixed, {.max_region_rows = 100}).value(), std::vector<int64_t>{2});
  EXPECT_EQ(top_rows(scores[0], 100), (std::vector<int32_t>{0, 3}));
}

TEST(Budget, NoHeadsIsNoRows) {
  EXPECT_TRUE(plan_budget({.limits = {.max_region_rows = 5}}).value().empty());
}

// Inputs of all policies over heads of random lengths, scores, curves and shares.
struct RandomHeads {
  Scores scores;
  std::vector<int64_t> fixed;
  std::vector<ErrorCurve> curves;
  std::vector<float> shares;

  BudgetRequest request(BudgetPolicy policy, const BudgetLimits& limits) const {
    return {.policy = policy,
            .scores = scores,
            .fixed_rows = fixed,
            .curves = curves,
            .shares = shares,
            .limits = limits};
  }
  int64_t n_rows() const {
    int64_t n = 0;
    for (const auto& head : scores) n += static_cast<int64_t>(head.size());
    return n;
  }
};

// Neither convex nor falling everywhere, as measured curves are.
ErrorCurve random_curve(Rng& rng, int64_t n_rows) {
  ErrorCurve curve{.n_queries = 100};
  double error = rng.next_unit() * 3;
  for (int64_t n = 0;; n = std::min(n_rows, n + 1 + static_cast<int64_t>(rng.next_below(1 + n_rows / 6)))) {
    curve.n_rows.push_back(n);
    curve.mean_square.push_back(n == n_rows ? 0.0 : error);
    curve.p99.push_back(2 * curve.mean_square.back());
    curve.worst.push_back(3 * curve.mean_square.back());
    error *= 0.3 + 0.8 * rng.next_unit();
    if (n == n_rows) return curve;
  }
}

RandomHeads random_heads(uint64_t seed, int64_t n_heads, int64_t longest) {
  Rng rng(seed);
  RandomHeads heads;
  double sum = 0;
  for (int64_t head = 0; head < n_heads; ++head) {
    const int64_t n = static_cast<int64_t>(rng.next_below(static_cast<uint64_t>(longest) + 1));
    heads.scores.emplace_back();
    for (int64_t row = 0; row < n; ++row) heads.scores.back().push_back(static_cast<float>(rng.next_unit()));
    heads.fixed.push_back(static_cast<int64_t>(rng.next_below(20)));
    heads.curves.push_back(random_curve(rng, n));
    heads.shares.push_back(rng.next_below(5) == 0 ? 0.0f : static_cast<float>(std::pow(rng.next_unit(), 3)));
    sum += static_cast<double>(heads.shares.back());
  }
  for (float& share : heads.shares) share /= static_cast<float>(sum > 0 ? sum : 1);
  return heads;
}

// The lower convex hull by its definition: the lowest chord over each size, of errors that never rise.
std::vector<double> slow_hull(const ErrorCurve& curve) {
  std::vector<double> lowest = curve.mean_square;
  for (size_t s = 1; s < lowest.size(); ++s) lowest[s] = std::min(lowest[s], lowest[s - 1]);
  std::vector<double> hull(static_cast<size_t>(curve.n_rows.back()) + 1, std::numeric_limits<double>::infinity());
  for (size_t a = 0; a < lowest.size(); ++a)
    for (size_t b = a; b < lowest.size(); ++b)
      for (int64_t n = curve.n_rows[a]; n <= curve.n_rows[b]; ++n) {
        const double gap = static_cast<double>(std::max<int64_t>(curve.n_rows[b] - curve.n_rows[a], 1));
        const double chord = lowest[a] + (lowest[b] - lowest[a]) * static_cast<double>(n - curve.n_rows[a]) / gap;
        hull[static_cast<size_t>(n)] = std::min(hull[static_cast<size_t>(n)], chord);
      }
  return hull;
}

double total_error(const std::vector<std::vector<double>>& hulls, const std::vector<int64_t>& kept) {
  double sum = 0;
  for (size_t head = 0; head < kept.size(); ++head) sum += hulls[head][static_cast<size_t>(kept[head])];
  return sum;
}

constexpr BudgetPolicy kPolicies[] = {BudgetPolicy::uniform, BudgetPolicy::global, BudgetPolicy::sensitivity,
                                      BudgetPolicy::profile};

TEST(Budget, EveryPolicyUsesWhatTheLimitsAllowAndNeverMore) {
  for (uint64_t seed = 0; seed < 60; ++seed) {
    const RandomHeads heads = random_heads(seed, 1 + static_cast<int64_t>(seed % 9), 90);
    const int64_t n_rows = heads.n_rows();
    Rng rng(seed, 1);
    const int64_t block_rows = 1 + static_cast<int64_t>(rng.next_below(16));
    const int64_t fixed_blocks = blocks_of(std::vector<int64_t>(heads.fixed.size(), 0), heads.fixed, block_rows);
    for (int trial = 0; trial < 40; ++trial) {
      BudgetLimits limits{.block_rows = static_cast<int32_t>(block_rows)};
      const int kind = trial % 3;  // rows, blocks, both
      if (kind != 1)
        limits.max_region_rows = static_cast<int64_t>(rng.next_below(static_cast<uint64_t>(n_rows) + 9));
      if (kind != 0) limits.max_blocks = fixed_blocks + static_cast<int64_t>(rng.next_below(40));
      for (const BudgetPolicy policy : kPolicies) {
        const auto kept = plan_budget(heads.request(policy, limits)).value();
        SCOPED_TRACE(std::to_string(seed) + " " + std::to_string(trial) + " " + std::string(name_of(policy)));
        const bool has_rows_left = limits.max_region_rows < 0 || total(kept) < limits.max_region_rows;
        ASSERT_TRUE(limits.max_region_rows < 0 || total(kept) <= limits.max_region_rows);
        ASSERT_TRUE(limits.max_blocks < 0 || blocks_of(kept, heads.fixed, block_rows) <= limits.max_blocks);
        for (size_t head = 0; head < kept.size(); ++head) {
          const int64_t length = static_cast<int64_t>(heads.scores[head].size());
          ASSERT_GE(kept[head], 0);
          ASSERT_LE(kept[head], length);
          if (kept[head] == length || !has_rows_left) continue;
          ASSERT_GE(limits.max_blocks, 0) << "rows are left over, and a head that could have them";
          auto more = kept;
          ++more[head];
          ASSERT_GT(blocks_of(more, heads.fixed, block_rows), limits.max_blocks) << "head " << head;
        }
      }
    }
  }
}

TEST(Budget, EveryRatioIsAnsweredByEveryPolicy) {
  const RandomHeads heads = random_heads(99, 5, 40);
  const int64_t n_rows = heads.n_rows();
  for (const BudgetPolicy policy : kPolicies)
    for (int64_t ratio = 1; ratio <= 1000; ++ratio) {
      const auto kept = plan_budget(heads.request(policy, {.max_region_rows = n_rows / ratio})).value();
      ASSERT_EQ(total(kept), n_rows / ratio);
    }
  for (const BudgetPolicy policy : kPolicies)  // far more than there is: no search for a place for the rest
    EXPECT_EQ(total(plan_budget(heads.request(policy, {.max_region_rows = int64_t{1} << 60})).value()), n_rows);
}

TEST(Budget, SensitivityIsTheLeastSumOfErrorsUnderARowLimit) {
  for (uint64_t seed = 200; seed < 240; ++seed) {
    const RandomHeads heads = random_heads(seed, 4, 30);
    std::vector<std::vector<double>> hulls;
    for (const ErrorCurve& curve : heads.curves) hulls.push_back(slow_hull(curve));
    // The least sum for every number of rows, one head after the other.
    std::vector<double> least = {0};
    for (const auto& hull : hulls) {
      std::vector<double> next(least.size() + hull.size() - 1, std::numeric_limits<double>::infinity());
      for (size_t a = 0; a < least.size(); ++a)
        for (size_t b = 0; b < hull.size(); ++b) next[a + b] = std::min(next[a + b], least[a] + hull[b]);
      least = std::move(next);
    }
    for (size_t limit = 0; limit < least.size(); ++limit)
      for (const int64_t max_blocks : {-1, 1000}) {  // a limit that does not bind changes nothing
        const BudgetLimits limits{.max_region_rows = static_cast<int64_t>(limit), .max_blocks = max_blocks};
        const auto kept = plan_budget(heads.request(BudgetPolicy::sensitivity, limits)).value();
        ASSERT_NEAR(total_error(hulls, kept), least[limit], 1e-12) << "seed " << seed << ", " << limit << " rows";
      }
  }
}

TEST(Budget, SensitivityIsTheLeastSumOfErrorsUnderABlockLimit) {
  for (uint64_t seed = 300; seed < 330; ++seed) {
    const RandomHeads heads = random_heads(seed, 4, 60);
    std::vector<std::vector<double>> hulls;
    std::vector<double> least = {0};  // by blocks beyond those of the fixed rows
    int64_t fixed_blocks = 0;
    for (size_t head = 0; head < heads.curves.size(); ++head) {
      hulls.push_back(slow_hull(heads.curves[head]));
      const int64_t blocks_before = (heads.fixed[head] + 7) / 8, length = heads.curves[head].n_rows.back();
      fixed_blocks += blocks_before;
      std::vector<double> of_blocks;
      for (int64_t n_blocks = blocks_before;; ++n_blocks) {
        const int64_t n = std::min(length, n_blocks * 8 - heads.fixed[head]);
        of_blocks.push_back(hulls[head][static_cast<size_t>(n)]);
        if (n == length) break;
      }
      std::vector<double> next(least.size() + of_blocks.size() - 1, std::numeric_limits<double>::infinity());
      for (size_t a = 0; a < least.size(); ++a)
        for (size_t b = 0; b < of_blocks.size(); ++b) next[a + b] = std::min(next[a + b], least[a] + of_blocks[b]);
      least = std::move(next);
    }
    for (size_t n = 0; n < least.size(); ++n) {
      const BudgetLimits limits{.max_blocks = fixed_blocks + static_cast<int64_t>(n), .block_rows = 8};
      const auto kept = plan_budget(heads.request(BudgetPolicy::sensitivity, limits)).value();
      ASSERT_NEAR(total_error(hulls, kept), least[n], 1e-12) << "seed " << seed << ", " << n << " blocks";
    }
  }
}

TEST(Budget, RaisingEitherLimitNeverRaisesTheErrorUnderSensitivity) {
  for (uint64_t seed = 400; seed < 415; ++seed) {
    const RandomHeads heads = random_heads(seed, 5, 50);
    std::vector<std::vector<double>> hulls;
    for (const ErrorCurve& curve : heads.curves) hulls.push_back(slow_hull(curve));
    const int64_t first = blocks_of(std::vector<int64_t>(5, 0), heads.fixed, 8);
    std::vector<double> with_fewer_blocks(200, std::numeric_limits<double>::infinity());
    for (int64_t max_blocks = first; max_blocks < first + 24; ++max_blocks) {
      double with_fewer_rows = std::numeric_limits<double>::infinity();
      for (int64_t max_rows = 0; max_rows < 200; ++max_rows) {
        const BudgetLimits limits{.max_region_rows = max_rows, .max_blocks = max_blocks, .block_rows = 8};
        const double error =
            total_error(hulls, plan_budget(heads.request(BudgetPolicy::sensitivity, limits)).value());
        ASSERT_LE(error, with_fewer_rows + 1e-12) << seed << ": " << max_rows << " rows, " << max_blocks;
        ASSERT_LE(error, with_fewer_blocks[static_cast<size_t>(max_rows)] + 1e-12)
            << seed << ": " << max_rows << " rows, " << max_blocks << " blocks";
        with_fewer_rows = with_fewer_blocks[static_cast<size_t>(max_rows)] = error;
      }
    }
  }
}

TEST(Budget, SensitivityMinimisesTheErrorThatIsAskedFor) {
  // On average head 0 wants rows, by its worst query head 1 does.
  std::vector<ErrorCurve> curves(2);
  for (ErrorCurve& curve : curves)
    curve = {.n_rows = {0, 10}, .mean_square = {0, 0}, .p99 = {0, 0}, .worst = {0, 0}};
  curves[0].mean_square[0] = 1;
  curves[1].worst[0] = curves[1].p99[0] = 1;
  const Scores scores(2, std::vector<float>(10, 0.5f));
  const std::vector<int64_t> fixed(2, 0);
  BudgetRequest request{.policy = BudgetPolicy::sensitivity,
                        .scores = scores,
                        .fixed_rows = fixed,
                        .curves = curves,
                        .limits = {.max_region_rows = 6}};
  EXPECT_EQ(plan_budget(request).value(), (std::vector<int64_t>{6, 0}));
  for (const CurveError which : {CurveError::p99, CurveError::worst}) {
    request.minimise = which;
    EXPECT_EQ(plan_budget(request).value(), (std::vector<int64_t>{0, 6}));
  }
}

TEST(Budget, HeadsWithoutAnErrorShareWhatTheOthersLeave) {
  std::vector<ErrorCurve> curves(3, {.n_rows = {0, 10}, .mean_square = {0, 0}, .p99 = {0, 0}, .worst = {0, 0}});
  curves[1].mean_square[0] = 1;
  const Scores scores(3, std::vector<float>(10, 0.5f));
  const std::vector<int64_t> fixed(3, 0);
  EXPECT_EQ(plan_budget({.policy = BudgetPolicy::sensitivity,
                         .scores = scores,
                         .fixed_rows = fixed,
                         .curves = curves,
                         .limits = {.max_region_rows = 16}})
                .value(),
            (std::vector<int64_t>{3, 10, 3}));
}

TEST(Budget, ProfileSharesRoundToWithinOneRowAndFullHeadsPassTheRestOn) {
  const Scores scores(4, std::vector<float>(1000, 0.5f));
  const std::vector<int64_t> fixed(4, 0);
  const std::vector<float> shares = {0.5f, 0.3f, 0.15f, 0.05f};
  BudgetRequest request{.policy = BudgetPolicy::profile, .scores = scores, .fixed_rows = fixed, .shares = shares};
  for (int64_t limit = 0; limit <= 2000; ++limit) {
    request.limits.max_region_rows = limit;
    const auto kept = plan_budget(request).value();
    ASSERT_EQ(total(kept), limit);
    for (size_t head = 0; head < 4; ++head)
      ASSERT_NEAR(static_cast<double>(kept[head]), static_cast<double>(shares[head]) * static_cast<double>(limit),
                  1.0001);
  }
  // 3000 rows: head 0 has only 1000 of its 1500; the others take 2000 in the proportion 30 : 15 : 5, which is
  // more than head 1 has, and so on.
  request.limits.max_region_rows = 3000;
  EXPECT_EQ(plan_budget(request).value(), (std::vector<int64_t>{1000, 1000, 750, 250}));
}

TEST(Budget, ProfileHeadsOfShareZeroGetRowsOnlyWhenTheOthersAreFull) {
  const Scores scores(3, std::vector<float>(10, 0.5f));
  const std::vector<int64_t> fixed(3, 0);
  const std::vector<float> shares = {0.0f, 1.0f, 0.0f};
  BudgetRequest request{.policy = BudgetPolicy::profile, .scores = scores, .fixed_rows = fixed, .shares = shares};
  request.limits.max_region_rows = 10;
  EXPECT_EQ(plan_budget(request).value(), (std::vector<int64_t>{0, 10, 0}));
  request.limits.max_region_rows = 13;
  EXPECT_EQ(plan_budget(request).value(), (std::vector<int64_t>{2, 10, 1}));
}

ErrorCurve curve_of_p99(std::vector<int64_t> n_rows, std::vector<double> p99) {
  return {.n_rows = std::move(n_rows), .mean_square = p99, .p99 = p99, .worst = p99, .n_queries = 10};
}

TEST(Budget, AnErrorTargetTakesTheLeastRowsThatMeetIt) {
  const Scores scores(4, std::vector<float>(100, 0.5f));
  const std::vector<int64_t> fixed = {5, 0, 0, 0};
  ErrorCurve unknown = curve_of_p99({0, 100}, {0, 0});
  unknown.n_queries = 0;
  const std::vector<ErrorCurve> curves = {
      curve_of_p99({0, 10, 20, 100}, {1.0, 0.5, 0.1, 0.0}),   // 0.3 is half way from 10 to 20
      curve_of_p99({0, 50, 100}, {0.2, 0.1, 0.0}),            // met by nothing
      curve_of_p99({0, 50, 100}, {2.0, 1.0, 0.4}), unknown};  // never met; not measured
  BudgetRequest request{
      .scores = scores, .fixed_rows = fixed, .curves = curves, .limits = {.max_head_error = 0.3}};
  const std::vector<int64_t> expected = {15, 0, 100, 100};
  for (const BudgetPolicy policy : kPolicies) {
    request.policy = policy;
    EXPECT_EQ(plan_budget(request).value(), expected) << name_of(policy);
  }
  // 20 + 0 + 100 + 100 rows with the fixed ones: 2 + 0 + 7 + 7 blocks.
  request.limits.max_region_rows = 215;
  request.limits.max_blocks = 16;
  EXPECT_EQ(plan_budget(request).value(), expected);
  request.limits.max_blocks = 15;
  const auto refused = plan_budget(request);
  ASSERT_FALSE(refused.ok());
  EXPECT_EQ(refused.error().kind, ErrorKind::invalid_argument);
  EXPECT_NE(refused.error().message.find("needs 215 rows in 16 blocks of 16 rows, but 215 rows and 15 blocks"),
            std::string::npos)
      << refused.error().message;
  request.limits = {.max_region_rows = 214, .max_head_error = 0.3};
  EXPECT_FALSE(plan_budget(request).ok());
  request.policy = BudgetPolicy::global;
  for (const double target : {-0.1, static_cast<double>(NAN), static_cast<double>(INFINITY)}) {
    request.limits = {.max_region_rows = 214, .max_head_error = target};
    EXPECT_EQ(plan_budget(request).error().kind, ErrorKind::invalid_argument);
  }
}

TEST(Budget, ASmallerErrorTargetNeverTakesLess) {
  for (uint64_t seed = 500; seed < 520; ++seed) {
    const RandomHeads heads = random_heads(seed, 4, 70);
    std::vector<int64_t> last(4, 0);
    for (double target = 4; target > 1e-4; target *= 0.9) {
      const auto kept = plan_budget(heads.request(BudgetPolicy::sensitivity, {.max_head_error = target})).value();
      for (size_t head = 0; head < 4; ++head) EXPECT_GE(kept[head], last[head]);
      last = kept;
    }
  }
}

// Heads of unequal difficulty, as real ones are: sharp to diffuse, attended to or not.
TEST(Budget, SensitivityHasALowerMeasuredErrorThanGlobalAndUniform) {
  std::vector<testing::Head> heads, fresh;  // the same rows; fresh queries that no curve was measured on
  for (uint64_t i = 0; i < 8; ++i) {
    const auto with_difficulty = [&](testing::Head head) {
      for (float& x : head.queries.data) x *= 0.6f + 0.3f * static_cast<float>(i % 4);
      for (float& shift : head.live_shift) shift += i < 4 ? 2.0f : -3.0f;  // the region matters little, or much
      testing::finish(head);
      return head;
    };
    const testing::Head head = testing::clustered_head(40 + i, 512, 512, 32);
    heads.push_back(with_difficulty(head));
    fresh.push_back(with_difficulty(with_queries(head, testing::clustered_head(40 + i, 512, 512 + 128, 32))));
  }
  Scores scores;
  std::vector<ErrorCurve> curves;
  for (const testing::Head& head : heads) {
    const HeadProblem problem = head.problem();
    scores.push_back(score_rows(problem, testing::scoring(RowScore::max, Weighting::attention_share), {},
                                testing::kernel_set()));
    curves.push_back(measure_error_curve(problem, scores.back(), {}, testing::kernel_set()));
  }
  const std::vector<int64_t> fixed(heads.size(), 8);
  for (const int64_t ratio : {4, 8, 16, 32}) {
    double square[3] = {};
    for (const BudgetPolicy policy : {BudgetPolicy::uniform, BudgetPolicy::global, BudgetPolicy::sensitivity}) {
      const auto kept = plan_budget({.policy = policy,
                                     .scores = scores,
                                     .fixed_rows = fixed,
                                     .curves = curves,
                                     .limits = {.max_region_rows = 8 * 512 / ratio}})
                            .value();
      for (size_t h = 0; h < heads.size(); ++h) {
        CompactHead plain{.source_rows = top_rows(scores[h], kept[h])};
        plain.bias.assign(plain.source_rows.size(), 0.0f);
        for (const double error : oracle_errors(fresh[h], plain))
          square[static_cast<int>(policy)] += error * error / static_cast<double>(fresh[h].queries.rows);
      }
    }
    std::printf("%ldx: sum over 8 heads of the mean square error: uniform %.4f, global %.4f, sensitivity %.4f\n",
                static_cast<long>(ratio), square[0], square[1], square[2]);
    EXPECT_LT(square[2], square[1]);
    EXPECT_LT(square[2], square[0]);
  }
}

}  // namespace
}  // namespace sh::compaction
