// SPDX-License-Identifier: MIT
#include "engine/spread_sampler.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <map>
#include <set>

namespace sh::engine {
namespace {

const kernels::KernelSet& kernel_set() {
  return *kernels::choose_kernels("generic").value();
}

int32_t draw(SpreadSampler& sampler, std::vector<float> logits, float temperature = 1) {
  return sampler.sample(kernel_set(), logits, temperature);
}

// Four equally likely tokens, three times: 64 texts. Of 64 random draws about 40 differ.
TEST(SpreadSampler, TextsDiffer) {
  for (const uint64_t seed : {1, 2, 3}) {
    std::set<std::vector<int32_t>> texts;
    for (uint64_t number = 100; number < 164; ++number) {
      SpreadSampler sampler(seed, number);
      std::vector<int32_t> text;
      for (int i = 0; i < 3; ++i) text.push_back(draw(sampler, {0, 0, 0, 0}));
      texts.insert(text);
    }
    EXPECT_GE(texts.size(), 50u);
  }
}

TEST(SpreadSampler, FollowsTheDistribution) {
  constexpr int kTexts = 4000, kTokens = 40;  // more tokens than a point has bits for
  std::map<int32_t, double> first, last;
  for (uint64_t number = 0; number < kTexts; ++number) {
    SpreadSampler sampler(7, number);
    for (int i = 0; i < kTokens; ++i) {
      const int32_t id = draw(sampler, {std::log(0.5f), std::log(0.3f), std::log(0.2f)});
      if (i == 0) first[id] += 1.0 / kTexts;
      if (i + 1 == kTokens) last[id] += 1.0 / kTexts;
    }
  }
  const double expected[] = {0.5, 0.3, 0.2};
  for (int32_t id = 0; id < 3; ++id) {
    EXPECT_NEAR(first[id], expected[id], 0.002) << "points lie evenly: an error of a few in 4000";
    EXPECT_NEAR(last[id], expected[id], 0.03) << "as random ones: four standard errors";
  }
}

TEST(SpreadSampler, TemperatureAndOddLogits) {
  SpreadSampler sampler(1, 1);
  for (int i = 0; i < 100; ++i) EXPECT_EQ(draw(sampler, {1, 3, 2}, 0.01f), 1);
  std::set<int32_t> hot;
  for (int i = 0; i < 100; ++i) hot.insert(draw(sampler, {1, 3, 2}, 100));
  EXPECT_EQ(hot.size(), 3u);
  constexpr float kNan = std::numeric_limits<float>::quiet_NaN(), kInf = std::numeric_limits<float>::infinity();
  for (int i = 0; i < 100; ++i) {
    const int32_t id = draw(sampler, {kNan, 0, -kInf, 0, kNan});
    EXPECT_TRUE(id == 1 || id == 3);
  }
  EXPECT_EQ(draw(sampler, {kNan, -kInf}), 0);
}

}  // namespace
}  // namespace sh::engine
