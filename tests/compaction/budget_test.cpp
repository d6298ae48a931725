// SPDX-License-Identifier: MIT
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

#include "base/rng.h"
#include "compaction/compactor.h"
#include "compaction/score.h"

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
      const auto kept = plan_budget(policy, scores, fixed, {.max_region_rows = limit}).value();
      EXPECT_EQ(total(kept), std::min<int64_t>(limit, 204));
      for (size_t head = 0; head < kept.size(); ++head) EXPECT_LE(kept[head], lengths[head]);
    }
}

TEST(Budget, UniformHeadsDifferByAtMostOneUnlessShort) {
  const Scores scores = random_scores(2, {5, 100, 100, 100});
  const auto kept =
      plan_budget(BudgetPolicy::uniform, scores, std::vector<int64_t>(4, 0), {.max_region_rows = 67}).value();
  EXPECT_EQ(kept, (std::vector<int64_t>{5, 21, 21, 20}));
}

TEST(Budget, GlobalTakesTheBestRowsOfAllHeads) {
  const Scores scores = {{0.1f, 0.9f, 0.2f}, {0.8f, 0.7f, 0.6f}, {0.0f, 0.0f, 0.05f}};
  const std::vector<int64_t> fixed(3, 0);
  EXPECT_EQ(plan_budget(BudgetPolicy::global, scores, fixed, {.max_region_rows = 4}).value(),
            (std::vector<int64_t>{1, 3, 0}));
  EXPECT_EQ(top_rows(scores[0], 1), std::vector<int32_t>{1});
  EXPECT_EQ(top_rows(scores[1], 2), (std::vector<int32_t>{0, 1}));
}

TEST(Budget, TiesGoToTheLowerHeadThenTheLowerRow) {
  const Scores scores(3, std::vector<float>(4, 0.5f));
  const std::vector<int64_t> fixed(3, 0);
  EXPECT_EQ(plan_budget(BudgetPolicy::global, scores, fixed, {.max_region_rows = 5}).value(),
            (std::vector<int64_t>{4, 1, 0}));
  EXPECT_EQ(top_rows(scores[0], 2), (std::vector<int32_t>{0, 1}));
}

TEST(Budget, BlocksAreCountedWithTheFixedRowsAndFilled) {
  const std::vector<int64_t> fixed = {8, 16, 3};
  const Scores scores = random_scores(3, {100, 200, 50});
  for (const BudgetPolicy policy : {BudgetPolicy::uniform, BudgetPolicy::global})
    for (int64_t limit = 3; limit <= 30; ++limit) {
      const auto kept = plan_budget(policy, scores, fixed, {.max_blocks = limit, .block_rows = 16}).value();
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
      plan_budget(BudgetPolicy::global, scores, fixed, {.max_region_rows = 40, .max_blocks = 2, .block_rows = 16})
          .value();
  EXPECT_EQ(total(kept), 32);
  const auto fewer =
      plan_budget(BudgetPolicy::global, scores, fixed, {.max_region_rows = 20, .max_blocks = 2, .block_rows = 16})
          .value();
  EXPECT_EQ(total(fewer), 20);
}

TEST(Budget, ALargerLimitKeepsWhatASmallerOneKept) {
  const Scores scores = random_scores(5, {90, 40, 120, 3});
  const std::vector<int64_t> fixed = {8, 1, 0, 16};
  for (const BudgetPolicy policy : {BudgetPolicy::uniform, BudgetPolicy::global}) {
    std::vector<int64_t> last_rows(4, 0), last_blocks(4, 0);
    for (int64_t limit = 4; limit < 260; ++limit) {
      const auto by_rows = plan_budget(policy, scores, fixed, {.max_region_rows = limit}).value();
      const auto by_blocks = plan_budget(policy, scores, fixed, {.max_blocks = limit, .block_rows = 8}).value();
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
    const auto kept = plan_budget(BudgetPolicy::global, scores, fixed, {.max_blocks = n_blocks, .block_rows = 4});
    if (n_blocks < 4) {
      ASSERT_FALSE(kept.ok()) << ratio;
      EXPECT_EQ(kept.error().kind, ErrorKind::invalid_argument);
      EXPECT_NE(kept.error().message.find(std::to_string(4 - n_blocks) + " more"), std::string::npos)
          << kept.error().message;
    } else {
      EXPECT_LE(blocks_of(kept.value(), fixed, 4), n_blocks);
    }
    EXPECT_EQ(total(plan_budget(BudgetPolicy::uniform, scores, fixed, {.max_region_rows = 24 / ratio}).value()),
              24 / ratio);
  }
}

TEST(Budget, LimitsThatMakeNoSenseAreErrors) {
  const Scores scores = random_scores(7, {4});
  const std::vector<int64_t> fixed = {0};
  for (const BudgetLimits& limits :
       {BudgetLimits{}, BudgetLimits{.max_region_rows = -2}, BudgetLimits{.max_region_rows = 1, .max_blocks = -5},
        BudgetLimits{.max_blocks = 1, .block_rows = 0}})
    EXPECT_EQ(plan_budget(BudgetPolicy::global, scores, fixed, limits).error().kind, ErrorKind::invalid_argument);
}

TEST(Budget, RowsThatAreNotFiniteAreNeverKept) {
  const float inf = std::numeric_limits<float>::infinity(), nan = std::nanf("");
  const Scores scores = {{1.0f, -inf, nan, 0.5f}};
  const std::vector<int64_t> fixed = {0};
  for (const BudgetPolicy policy : {BudgetPolicy::uniform, BudgetPolicy::global})
    EXPECT_EQ(plan_budget(policy, scores, fixed, {.max_region_rows = 100}).value(), std::vector<int64_t>{2});
  EXPECT_EQ(top_rows(scores[0], 100), (std::vector<int32_t>{0, 3}));
}

TEST(Budget, NoHeadsIsNoRows) {
  EXPECT_TRUE(plan_budget(BudgetPolicy::global, {}, {}, {.max_region_rows = 5}).value().empty());
}

}  // namespace
}  // namespace sh::compaction
