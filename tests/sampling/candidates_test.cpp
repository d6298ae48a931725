// SPDX-License-Identifier: MIT
#include "sampling/candidates.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>

#include "base/rng.h"

namespace sh::sampling {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();

/// Logits of the given probabilities.
std::vector<float> logits_of(std::vector<float> p) {
  for (float& x : p) x = std::log(x);
  return p;
}
std::vector<int32_t> ids_of(const Candidates& candidates) {
  std::vector<int32_t> ids;
  for (const Candidate& c : candidates.all()) ids.push_back(c.id);
  return ids;
}
std::vector<int32_t> sorted_ids_of(const Candidates& candidates) {
  std::vector<int32_t> ids = ids_of(candidates);
  std::sort(ids.begin(), ids.end());
  return ids;
}
Candidates all_of(const std::vector<float>& logits) {
  Candidates candidates;
  candidates.assign(logits);
  return candidates;
}
using Ids = std::vector<int32_t>;

// Four tokens with probabilities 0.1, 0.4, 0.3, 0.2: by size they are 1, 2, 3, 0.
const std::vector<float> kFour = logits_of({0.1f, 0.4f, 0.3f, 0.2f});

TEST(TopK, KeepsTheLargestInOrder) {
  Candidates c;
  c.assign_top_k(kFour, 2);
  EXPECT_EQ(ids_of(c), (Ids{1, 2}));
  c.assign_top_k(kFour, 9);
  EXPECT_EQ(ids_of(c), (Ids{1, 2, 3, 0}));
  c.assign_top_k(std::vector<float>{2, 5, 5, 5, 1}, 2);
  EXPECT_EQ(ids_of(c), (Ids{1, 2})) << "equal logits: the lower id first";
  c.assign_top_k(std::vector<float>{-kInfinity, 1, -kInfinity}, 2);
  EXPECT_EQ(ids_of(c), (Ids{1}));
}

TEST(TopK, EqualsASortedListForRandomLogits) {
  Rng rng(3);
  for (int round = 0; round < 50; ++round) {
    std::vector<float> logits(200);
    for (float& x : logits) x = static_cast<float>(rng.next_below(40));  // many ties
    Ids expected(logits.size());
    for (size_t i = 0; i < logits.size(); ++i) expected[i] = static_cast<int32_t>(i);
    std::stable_sort(expected.begin(), expected.end(), [&](int32_t a, int32_t b) {
      return logits[static_cast<size_t>(a)] > logits[static_cast<size_t>(b)];
    });
    const size_t k = 1 + rng.next_below(200);
    expected.resize(k);
    Candidates c;
    c.assign_top_k(logits, k);
    EXPECT_EQ(ids_of(c), expected);
  }
}

TEST(TopP, KeepsTheSmallestSetThatReachesTheShare) {
  // Cumulative: 0.4, 0.7, 0.9, 1.
  for (const auto& [p, expected] : {std::pair{0.0f, Ids{1}},
                                    {0.39f, Ids{1}},
                                    {0.41f, Ids{1, 2}},
                                    {0.69f, Ids{1, 2}},
                                    {0.71f, Ids{1, 2, 3}},
                                    {0.95f, Ids{1, 2, 3, 0}}}) {
    Candidates c = all_of(kFour);
    c.keep_top_p(p, 0);
    EXPECT_EQ(ids_of(c), expected) << p;
  }
  Candidates c = all_of(kFour);
  c.keep_top_p(0.1f, 3);
  EXPECT_EQ(ids_of(c), (Ids{1, 2, 3})) << "min_keep";
  c = all_of(kFour);
  c.keep_top_p(1.0f, 0);
  EXPECT_EQ(c.n(), 4u);
}

TEST(TopP, FlatDistributionsBeyondTheFirstSortedPart) {
  Candidates c = all_of(std::vector<float>(1000, 0.5f));
  c.keep_top_p(0.5005f, 0);
  EXPECT_EQ(c.n(), 501u);
  EXPECT_EQ(c.all()[500].id, 500);
}

TEST(MinP, KeepsWhatIsProbableEnoughBesideTheLargest) {
  // Relative to the largest: 0.25, 1, 0.75, 0.5.
  for (const auto& [p, expected] : {std::pair{0.2f, Ids{0, 1, 2, 3}},
                                    {0.3f, Ids{1, 2, 3}},
                                    {0.6f, Ids{1, 2}},
                                    {1.0f, Ids{1}},
                                    {0.0f, Ids{0, 1, 2, 3}}}) {
    Candidates c = all_of(kFour);
    c.keep_min_p(p, 0);
    EXPECT_EQ(sorted_ids_of(c), expected) << p;
    Candidates sorted;
    sorted.assign_top_k(kFour, 4);
    sorted.keep_min_p(p, 0);
    EXPECT_EQ(sorted_ids_of(sorted), expected) << p;
  }
  Candidates c = all_of(kFour);
  c.keep_min_p(0.9f, 2);
  EXPECT_EQ(ids_of(c), (Ids{1, 2})) << "min_keep";
}

// By hand: entropy 1.27985; surprises 2.3026, 0.9163, 1.2040, 1.6094; distances 1.0227, 0.3636, 0.0759, 0.3296.
TEST(Typical, KeepsTheSurprisesNearTheEntropy) {
  for (const auto& [p, expected] :
       {std::pair{0.2f, Ids{2}}, {0.4f, Ids{2, 3}}, {0.6f, Ids{2, 3, 1}}, {0.95f, Ids{2, 3, 1, 0}}}) {
    Candidates c = all_of(kFour);
    c.keep_typical(p, 0);
    EXPECT_EQ(ids_of(c), expected) << p;
  }
  Candidates c = all_of(kFour);
  c.keep_typical(0.1f, 2);
  EXPECT_EQ(ids_of(c), (Ids{2, 3})) << "min_keep";
  c.keep_top_p(0.1f, 0);
  EXPECT_EQ(ids_of(c), (Ids{2})) << "sorted by probability again";
}

TEST(Temperature, DividesDistances) {
  Candidates c = all_of({1.0f, 3.0f});
  c.apply_temperature(2.0f);
  c.draw(0);
  // e^-1 / (1 + e^-1); float rounding of exp and one division.
  EXPECT_NEAR(c.all()[0].p, 0.2689414f, 1e-6);
  c = all_of({1.0f, 3.0f});
  c.apply_temperature(1e-38f);
  EXPECT_EQ(c.draw(0.999999), 1u);
  EXPECT_EQ(c.all()[0].p, 0.0f);
  EXPECT_EQ(c.all()[1].p, 1.0f);
}

TEST(Draw, FollowsTheCumulativeDistribution) {
  Candidates c = all_of(kFour);  // in order of ids: 0.1, 0.5, 0.8, 1
  EXPECT_EQ(c.draw(0.0), 0u);
  EXPECT_EQ(c.draw(0.09), 0u);
  EXPECT_EQ(c.draw(0.11), 1u);
  EXPECT_EQ(c.draw(0.49), 1u);
  EXPECT_EQ(c.draw(0.51), 2u);
  EXPECT_EQ(c.draw(0.81), 3u);
  EXPECT_EQ(c.draw(std::nextafter(1.0, 0.0)), 3u);
}

}  // namespace
}  // namespace sh::sampling
