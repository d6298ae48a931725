// SPDX-License-Identifier: MIT
#include "sampling/sampler.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <limits>

#include "base/clock.h"

namespace sh::sampling {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr float kNan = std::numeric_limits<float>::quiet_NaN();

Sampler make(SamplingParams params, uint64_t stream = 0) {
  auto sampler = Sampler::create(std::move(params), stream);
  EXPECT_TRUE(sampler.ok()) << sampler.error().message;
  return std::move(*sampler);
}

/// Draws from all tokens as they are.
SamplingParams plain(uint32_t seed = 1) {
  SamplingParams params;
  params.temperature = 1;
  params.top_k = 0;
  params.top_p = 1;
  params.min_p = 0;
  params.seed = seed;
  return params;
}
SamplingParams greedy() {
  SamplingParams params;
  params.temperature = 0;
  return params;
}

std::vector<float> random_logits(Rng& rng, size_t n) {
  std::vector<float> logits(n);
  for (float& x : logits) x = static_cast<float>(3 * rng.next_normal());
  return logits;
}

TEST(Greedy, TakesTheLargestAndTheLowestAmongEquals) {
  Sampler sampler = make(greedy());
  EXPECT_EQ(sampler.sample(std::vector<float>{1, 4, 2, 4}), 1);
  EXPECT_EQ(sampler.sample(std::vector<float>{-5, -3, -kInfinity}), 1);
  ASSERT_EQ(sampler.last_candidates().size(), 1u);
  EXPECT_EQ(sampler.last_candidates()[0].p, 1.0f);
  SamplingParams negative;
  negative.temperature = -1;
  EXPECT_EQ(make(negative).sample(std::vector<float>{0, 7}), 1);
}

TEST(Greedy, EqualsTopKOfOneAtAnyTemperature) {
  Rng rng(5);
  SamplingParams one = plain();
  one.top_k = 1;
  one.temperature = 3;
  Sampler top_one = make(one);
  Sampler largest = make(greedy());
  for (int round = 0; round < 100; ++round) {
    const std::vector<float> logits = random_logits(rng, 300);
    EXPECT_EQ(top_one.sample(logits), largest.sample(logits));
  }
}

TEST(Degenerate, LogitsWithoutAnyFiniteValueGiveAnIdThatIsNotBanned) {
  for (SamplingParams params : {greedy(), plain(), SamplingParams{}}) {
    params.banned = {0};
    Sampler sampler = make(params);
    EXPECT_EQ(sampler.sample(std::vector<float>(4, -kInfinity)), 1);
    EXPECT_EQ(sampler.sample(std::vector<float>(4, kNan)), 1);
    EXPECT_EQ(sampler.sample(std::vector<float>{9}), 0) << "all banned";
    EXPECT_EQ(sampler.sample(std::vector<float>{kNan, kNan, -3, -kInfinity}), 2);
    EXPECT_EQ(sampler.sample(std::vector<float>{0, 0, 0, kInfinity}), 3);
  }
}

TEST(Degenerate, ExtremeNumbersStayInTheVocabulary) {
  constexpr float kMax = std::numeric_limits<float>::max();
  SamplingParams params = plain();
  params.temperature = 1e-30f;
  params.repeat_penalty = 1e-30f;
  params.frequency_penalty = -kMax;
  params.logit_bias = {{1, kMax}};
  Sampler sampler = make(params);
  for (int32_t id : {0, 1, 2, 2}) sampler.accept(id);
  for (int round = 0; round < 10; ++round) {
    const int32_t id = sampler.sample(std::vector<float>{kMax, kMax, -kMax, -kInfinity});
    EXPECT_GE(id, 0);
    EXPECT_LE(id, 2);
  }
}

TEST(Bias, AddsAndBans) {
  SamplingParams params = greedy();
  params.logit_bias = {{0, 2.5f}, {3, -kInfinity}, {99, 1.0f}};
  params.banned = {2, -4};
  Sampler sampler = make(params);
  EXPECT_EQ(sampler.sample(std::vector<float>{1, 3, 8, 9}), 0);
  EXPECT_EQ(sampler.sample(std::vector<float>{1, 4, 8, 9}), 1);
}

// By hand: id 0 seen twice, id 1 once. Repetition halves positive and doubles negative logits; then count·0.5 +
// 0.25 is taken off.
TEST(Penalties, ChangeTheLogitsAsWritten) {
  SamplingParams params = plain();
  params.repeat_penalty = 2;
  params.frequency_penalty = 0.5f;
  params.presence_penalty = 0.25f;
  Sampler sampler = make(params);
  for (const int32_t id : {0, 1, 0, 50}) sampler.accept(id);
  sampler.sample(std::vector<float>{4, -1, 2});
  // 4/2 - 1 - 0.25 = 0.75; -1·2 - 0.5 - 0.25 = -2.75; 2.
  const double sum = std::exp(0.75) + std::exp(-2.75) + std::exp(2.0);
  ASSERT_EQ(sampler.last_candidates().size(), 3u);
  // Float rounding of exp and of one division.
  EXPECT_NEAR(sampler.last_candidates()[0].p, std::exp(0.75) / sum, 1e-6);
  EXPECT_NEAR(sampler.last_candidates()[1].p, std::exp(-2.75) / sum, 1e-6);
  EXPECT_NEAR(sampler.last_candidates()[2].p, std::exp(2.0) / sum, 1e-6);
}

TEST(Penalties, SeeOnlyTheLastTokens) {
  SamplingParams params = greedy();
  params.presence_penalty = 10;
  params.repeat_last_n = 2;
  const std::vector<float> logits = {3, 2, 1, 0};
  Sampler sampler = make(params);
  EXPECT_EQ(sampler.sample(logits), 0);
  sampler.accept(0);
  EXPECT_EQ(sampler.sample(logits), 1);
  sampler.accept(1);
  EXPECT_EQ(sampler.sample(logits), 2);
  sampler.accept(2);
  EXPECT_EQ(sampler.sample(logits), 0) << "0 has left the window";
  sampler.reset();
  sampler.accept(3);
  EXPECT_EQ(sampler.sample(logits), 0);

  params.repeat_last_n = -1;
  Sampler all = make(params);
  for (int i = 0; i < 100; ++i) all.accept(i % 3);
  EXPECT_EQ(all.sample(logits), 3);
  params.repeat_last_n = 0;
  Sampler none = make(params);
  none.accept(0);
  EXPECT_EQ(none.sample(logits), 0);
}

TEST(Penalties, MoreOfThemNeverMakesARepeatedTokenMoreProbable) {
  Rng rng(9);
  const auto p_of_repeated = [](const SamplingParams& params, const std::vector<float>& logits) {
    Sampler sampler = make(params);
    for (int i = 0; i < 3; ++i) sampler.accept(7);
    sampler.sample(logits);
    return sampler.last_candidates()[7].p;
  };
  for (int round = 0; round < 50; ++round) {
    const std::vector<float> logits = random_logits(rng, 20);
    for (int which = 0; which < 3; ++which) {
      float last = 2;
      for (const float strength : {0.0f, 0.3f, 0.9f, 2.0f}) {
        SamplingParams params = plain();
        if (which == 0) params.repeat_penalty = 1 + strength;
        if (which == 1) params.presence_penalty = strength;
        if (which == 2) params.frequency_penalty = strength;
        const float p = p_of_repeated(params, logits);
        EXPECT_LE(p, last);
        last = p;
      }
    }
  }
}

TEST(Chain, CutsInTheOrderOfLlamaCpp) {
  // Probabilities 0.5, 0.3, 0.15, 0.05. top_k 3 renormalises to .526, .316, .158, so top_p 0.84 keeps two; over
  // all four tokens it would keep three.
  std::vector<float> logits = {0.5f, 0.3f, 0.15f, 0.05f};
  for (float& x : logits) x = std::log(x);
  SamplingParams params = plain();
  params.top_k = 3;
  params.top_p = 0.84f;
  Sampler sampler = make(params);
  sampler.sample(logits);
  EXPECT_EQ(sampler.last_candidates().size(), 2u);
  // Temperature comes last: it does not change what min_p keeps, only how it is drawn.
  params = plain();
  params.min_p = 0.5f;
  params.temperature = 100;
  Sampler hot = make(params);
  hot.sample(logits);
  ASSERT_EQ(hot.last_candidates().size(), 2u);
  EXPECT_NEAR(hot.last_candidates()[0].p, 0.5, 0.01);  // log(5/3)/100 moves it by 0.0013
}

// Pearson's statistic of 20000 draws over 6 tokens: 5 degrees of freedom, 20.5 is exceeded once in a thousand
// seeds; the seed is fixed.
TEST(Distribution, DrawsFollowTheProbabilities) {
  const std::vector<double> p = {0.3, 0.05, 0.25, 0.1, 0.2, 0.1};
  std::vector<float> logits;
  for (const double x : p) logits.push_back(static_cast<float>(std::log(x)));
  constexpr int kDraws = 20000;
  for (const uint64_t stream : {0, 1, 2}) {
    Sampler sampler = make(plain(42), stream);
    std::vector<int> counts(p.size());
    for (int i = 0; i < kDraws; ++i) ++counts[static_cast<size_t>(sampler.sample(logits))];
    double statistic = 0;
    for (size_t i = 0; i < p.size(); ++i) {
      const double expected = kDraws * p[i];
      statistic += (counts[i] - expected) * (counts[i] - expected) / expected;
    }
    EXPECT_LT(statistic, 20.5) << "stream " << stream;
    EXPECT_GT(statistic, 0.05) << "too even to be random";
  }
}

TEST(Seed, SameSeedAndStreamGiveTheSameTokens) {
  Rng rng(13);
  std::vector<std::vector<float>> steps;
  for (int i = 0; i < 50; ++i) steps.push_back(random_logits(rng, 100));
  const auto run = [&](Sampler sampler) {
    std::vector<int32_t> ids;
    for (const auto& logits : steps) ids.push_back(sampler.sample(logits));
    return ids;
  };
  EXPECT_EQ(run(make(plain(7), 3)), run(make(plain(7), 3)));
  EXPECT_NE(run(make(plain(7), 3)), run(make(plain(7), 4)));
  EXPECT_NE(run(make(plain(7), 3)), run(make(plain(8), 3)));
  Sampler sampler = make(plain(7), 3);
  const std::vector<int32_t> first = run(sampler);
  sampler.sample(steps[0]);
  sampler.reset();
  EXPECT_EQ(run(sampler), first);
}

TEST(Seed, RandomSeedIsReportedAndRepeats) {
  SamplingParams params = plain(kRandomSeed);
  Sampler sampler = make(params);
  params.seed = sampler.seed();
  Sampler again = make(params);
  Rng rng(1);
  for (int i = 0; i < 20; ++i) {
    const std::vector<float> logits = random_logits(rng, 50);
    EXPECT_EQ(sampler.sample(logits), again.sample(logits));
  }
}

TEST(Validate, NamesTheField) {
  const auto refuses = [](const char* field, auto change) {
    SamplingParams params;
    change(params);
    const auto result = Sampler::create(params, 0);
    ASSERT_FALSE(result.ok()) << field;
    EXPECT_EQ(result.error().kind, ErrorKind::invalid_argument);
    EXPECT_EQ(result.error().message.rfind(field, 0), 0u) << result.error().message;
  };
  refuses("temperature", [](SamplingParams& p) { p.temperature = kNan; });
  refuses("temperature", [](SamplingParams& p) { p.temperature = kInfinity; });
  refuses("top_p", [](SamplingParams& p) { p.top_p = 1.5f; });
  refuses("top_p", [](SamplingParams& p) { p.top_p = kNan; });
  refuses("min_p", [](SamplingParams& p) { p.min_p = -0.1f; });
  refuses("typical_p", [](SamplingParams& p) { p.typical_p = 2; });
  refuses("repeat_penalty", [](SamplingParams& p) { p.repeat_penalty = 0; });
  refuses("repeat_last_n", [](SamplingParams& p) { p.repeat_last_n = -2; });
  refuses("presence_penalty", [](SamplingParams& p) { p.presence_penalty = kInfinity; });
  refuses("frequency_penalty", [](SamplingParams& p) { p.frequency_penalty = kNan; });
  refuses("min_keep", [](SamplingParams& p) { p.min_keep = -1; });
  refuses("logit_bias", [](SamplingParams& p) { p.logit_bias = {{-1, 1.0f}}; });
  refuses("logit_bias", [](SamplingParams& p) { p.logit_bias = {{5, kInfinity}}; });
  EXPECT_TRUE(validate(SamplingParams{}).ok());
  SamplingParams ban;
  ban.logit_bias = {{5, -kInfinity}};
  EXPECT_TRUE(validate(ban).ok());
}

TEST(LogProbs, AreThoseOfTheWholeVocabulary) {
  const std::vector<float> logits = {std::log(0.1f), std::log(0.4f), std::log(0.3f), std::log(0.2f)};
  const std::vector<TokenProb> top = top_log_probs(logits, 2);
  ASSERT_EQ(top.size(), 2u);
  EXPECT_EQ(top[0].id, 1);
  EXPECT_EQ(top[1].id, 2);
  // Rounding of float logarithms.
  EXPECT_NEAR(top[0].logprob, std::log(0.4), 1e-6);
  EXPECT_NEAR(top[1].logprob, std::log(0.3), 1e-6);
  EXPECT_NEAR(log_prob(logits, 0), std::log(0.1), 1e-6);
  EXPECT_TRUE(top_log_probs(logits, 0).empty());
  EXPECT_EQ(top_log_probs(logits, 100).size(), 4u);
}

TEST(LogProbs, LargeAndMissingLogits) {
  const std::vector<float> large = {1e4f, 1e4f, kNan, -kInfinity};
  EXPECT_NEAR(log_prob(large, 0), -std::log(2.0), 1e-6);
  EXPECT_EQ(log_prob(large, 2), -kInfinity);
  EXPECT_EQ(log_prob(large, 3), -kInfinity);
  EXPECT_EQ(top_log_probs(large, 4).size(), 2u);
  const std::vector<float> none(3, -kInfinity);
  EXPECT_EQ(log_prob(none, 1), -kInfinity);
  EXPECT_TRUE(top_log_probs(none, 3).empty());
}

// Floor far below what is measured (see the printed figures), so that only a real regression fails on a busy
// machine.
TEST(Speed, AStepOverALargeVocabularyTakesMilliseconds) {
  Rng rng(2);
  const std::vector<float> logits = random_logits(rng, 151936);
  SamplingParams no_top_k;
  no_top_k.top_k = 0;
  for (const SamplingParams& params : {SamplingParams{}, no_top_k, plain(), greedy()}) {
    Sampler sampler = make(params);
    const Stopwatch watch;
    for (int i = 0; i < 20; ++i) sampler.sample(logits);
    const double ms = watch.seconds() * 1e3 / 20;
    std::printf("top_k %d, temperature %g: %.2f ms\n", params.top_k, static_cast<double>(params.temperature), ms);
    EXPECT_LT(ms, 100);
  }
}

}  // namespace
}  // namespace sh::sampling
