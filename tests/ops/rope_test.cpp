// SPDX-License-Identifier: MIT
#include <numbers>

#include "ops/ops_fixture.h"

namespace sh::ops {
namespace {

RopeConfig plain(int32_t n_dims) {
  RopeConfig config;
  config.n_dims = n_dims;
  return config;
}

std::vector<kv::Pos> positions(std::initializer_list<int64_t> values) {
  std::vector<kv::Pos> pos;
  for (const int64_t v : values) pos.push_back(kv::Pos(v));
  return pos;
}

/// Angle of a pair at a position, from its cosine and sine.
double angle(const RopeTable& table, int64_t t, int64_t pair) {
  return std::atan2(table.sin(t, pair), table.cos(t, pair));
}

TEST(RopeTable, AnglesFallGeometrically) {
  const RopeTable table = rope_table(plain(8), positions({0, 1, 100000}));
  for (int64_t pair = 0; pair < 4; ++pair) {
    EXPECT_EQ(table.cos(0, pair), 1.0f);
    EXPECT_EQ(table.sin(0, pair), 0.0f);
    EXPECT_NEAR(angle(table, 1, pair), std::pow(10000.0, -pair / 4.0), 1e-6);
    // Far positions keep their phase: an angle of 1e5 rounded to f32 would be off by 4e-3.
    EXPECT_NEAR(table.cos(2, pair), std::cos(100000.0 * std::pow(10000.0, -pair / 4.0)), 1e-6);
  }
}

TEST(RopeTable, LinearScalingAndDivisors) {
  RopeConfig config = plain(4);
  config.position_scale = 0.25f;
  config.divisors = {1.0f, 8.0f};
  const RopeTable table = rope_table(config, positions({2}));
  EXPECT_NEAR(angle(table, 0, 0), 0.5, 1e-6);
  EXPECT_NEAR(angle(table, 0, 1), 0.5 / 100.0 / 8.0, 1e-8);
}

TEST(RopeTable, YarnKeepsFastPairsAndDividesSlowOnes) {
  RopeConfig config = plain(64);
  config.yarn_factor = 4.0f;
  config.yarn_original_context = 4096;
  config.attention_factor = 1.25f;
  const RopeTable table = rope_table(config, positions({1}));
  // By arXiv 2309.00071 §3.2 a pair that turns more than 32 times over the original context is left, one below 1
  // turn is divided.
  for (int64_t pair = 0; pair < 32; ++pair) {
    const double frequency = std::pow(10000.0, -pair / 32.0), turns = 4096 * frequency / (2.0 * std::numbers::pi);
    const double got = angle(table, 0, pair);
    EXPECT_LE(got, frequency * 1.00001);
    EXPECT_GE(got, frequency * 0.24999);
    if (turns > 45) {  // a pair of margin: the bounds are rounded to whole pairs
      EXPECT_NEAR(got / frequency, 1.0, 1e-5) << pair;
    } else if (turns < 0.7) {
      EXPECT_NEAR(got / frequency, 0.25, 1e-5) << pair;
    }
    EXPECT_NEAR(std::hypot(table.cos(0, pair), table.sin(0, pair)), 1.25, 1e-5);
  }
}

TEST(Rope, RotatesPairsInPlaceAndLeavesTheRest) {
  for (const kernels::KernelSet* set : supported_kernels())
    for (const RopeConfig::Pairs pairs : {RopeConfig::Pairs::adjacent, RopeConfig::Pairs::halves}) {
      Context c(set, 3);
      RopeConfig config = plain(12);  // of heads of 20
      config.pairs = pairs;
      const std::vector<kv::Pos> pos = positions({3, 4, 900});
      const RopeTable table = rope_table(config, pos);
      const Mat<float> before = random_mat(3, 60, 5);
      Mat<float> x = before;
      rope(c.ctx, config, table, 20, x.view());
      for (int64_t t = 0; t < 3; ++t)
        for (int64_t head = 0; head < 3; ++head) {
          const float *in = before.row(t) + head * 20, *out = x.row(t) + head * 20;
          for (int64_t pair = 0; pair < 6; ++pair) {
            const int64_t a = pairs == RopeConfig::Pairs::adjacent ? 2 * pair : pair;
            const int64_t b = pairs == RopeConfig::Pairs::adjacent ? 2 * pair + 1 : pair + 6;
            const double phi = pos[static_cast<size_t>(t)].value * std::pow(10000.0, -pair / 6.0);
            EXPECT_NEAR(out[a], in[a] * std::cos(phi) - in[b] * std::sin(phi), 2e-6);
            EXPECT_NEAR(out[b], in[a] * std::sin(phi) + in[b] * std::cos(phi), 2e-6);
          }
          EXPECT_TRUE(std::equal(in + 12, in + 20, out + 12));
        }
    }
}

TEST(Rope, ScoresDependOnDistanceOnly) {
  Context c;
  const RopeConfig config = plain(32);
  const Mat<float> q = random_mat(1, 32, 6), k = random_mat(1, 32, 7);
  std::vector<double> scores;
  for (const int64_t start : {0, 17, 4000}) {
    Mat<float> rotated_q = q, rotated_k = k;
    rope(c.ctx, config, rope_table(config, positions({start + 9})), 32, rotated_q.view());
    rope(c.ctx, config, rope_table(config, positions({start})), 32, rotated_k.view());
    double score = 0.0;
    for (int64_t i = 0; i < 32; ++i) score += double{rotated_q(0, i)} * rotated_k(0, i);
    scores.push_back(score);
  }
  EXPECT_NEAR(scores[0], scores[1], 1e-5);
  EXPECT_NEAR(scores[0], scores[2], 1e-5);
}

}  // namespace
}  // namespace sh::ops
