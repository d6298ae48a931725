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

RopeTable table_of(const RopeConfig& config, const std::vector<kv::Pos>& pos) {
  RopeTable table;
  rope_table(config, pos, table);
  return table;
}

/// Angle of a pair at a position, from its cosine and sine.
double angle(const RopeTable& table, int64_t t, int64_t pair) {
  return std::atan2(table.sin(t, pair), table.cos(t, pair));
}

TEST(RopeTable, AnglesFallGeometrically) {
  const RopeTable table = table_of(plain(8), positions({0, 1, 100000}));
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
  const RopeTable table = table_of(config, positions({2}));
  EXPECT_NEAR(angle(table, 0, 0), 0.5, 1e-6);
  EXPECT_NEAR(angle(table, 0, 1), 0.5 / 100.0 / 8.0, 1e-8);
}

TEST(RopeTable, YarnKeepsFastPairsAndDividesSlowOnes) {
  RopeConfig config = plain(64);
  config.yarn_factor = 4.0f;
  config.yarn_original_context = 4096;
  config.attention_factor = 1.25f;
  const RopeTable table = table_of(config, positions({1}));
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
      const RopeTable table = table_of(config, pos);
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
    rope(c.ctx, config, table_of(config, positions({start + 9})), 32, rotated_q.view());
    rope(c.ctx, config, table_of(config, positions({start})), 32, rotated_k.view());
    double score = 0.0;
    for (int64_t i = 0; i < 32; ++i) score += double{rotated_q(0, i)} * rotated_k(0, i);
    scores.push_back(score);
  }
  EXPECT_NEAR(scores[0], scores[1], 1e-5);
  EXPECT_NEAR(scores[0], scores[2], 1e-5);
}

/// Every way in which positions become angles, by itself and together.
std::vector<RopeConfig> all_ways(int32_t n_dims) {
  RopeConfig linear = plain(n_dims), divided = plain(n_dims), yarn = plain(n_dims);
  linear.position_scale = 0.25f;
  for (int32_t i = 0; i < n_dims / 2; ++i) divided.divisors.push_back(1.0f + 0.5f * static_cast<float>(i));
  yarn.yarn_factor = 4.0f;
  yarn.yarn_original_context = 4096;
  yarn.attention_factor = 1.25f;
  RopeConfig both = yarn;
  both.divisors = divided.divisors;
  std::vector<RopeConfig> ways;
  for (const RopeConfig& way : {plain(n_dims), linear, divided, yarn, both})
    for (const RopeConfig::Pairs pairs : {RopeConfig::Pairs::adjacent, RopeConfig::Pairs::halves}) {
      ways.push_back(way);
      ways.back().pairs = pairs;
    }
  return ways;
}

TEST(ShiftRope, IsTheRotationOfTheOtherPosition) {
  Context c;
  const std::vector<kv::Pos> from = positions({0, 5, 900, 900, 100000, 100000, 77});
  const std::vector<int32_t> deltas = {100000, -5, 1, 1, -99999, 30000, 0};
  std::vector<kv::Pos> to;
  for (size_t i = 0; i < from.size(); ++i) to.push_back(from[i] + deltas[i]);
  const Mat<float> keys = random_mat(static_cast<int64_t>(from.size()), 40, 8);
  for (const int32_t n_dims : {40, 28})  // all of a head, a part of it
    for (const RopeConfig& config : all_ways(n_dims)) {
      Mat<float> moved = keys, expected = keys;
      rope(c.ctx, config, table_of(config, from), 40, moved.view());
      rope(c.ctx, config, table_of(config, to), 40, expected.view());
      const Mat<float> before = moved;
      shift_rope(config, deltas, moved.view());
      EXPECT_LT(max_gap(moved, expected), 2e-6);  // values of size 4, three roundings of each
      EXPECT_EQ(std::memcmp(moved.row(6), before.row(6), 40 * sizeof(float)), 0) << "delta 0";
    }
}

TEST(ShiftRope, TouchesOneHeadOfAWiderMatrix) {
  const RopeConfig config = plain(8);
  Mat<float> wide = random_mat(3, 24, 9);
  const Mat<float> before = wide;
  const std::vector<int32_t> deltas = {7, 7, -2};
  shift_rope(config, deltas, MatView<float>(wide.data.data() + 8, 3, 8, 24));
  Mat<float> head(3, 8);
  for (int64_t r = 0; r < 3; ++r) std::copy_n(before.row(r) + 8, 8, head.row(r));
  shift_rope(config, deltas, head.view());
  for (int64_t r = 0; r < 3; ++r) {
    EXPECT_TRUE(std::equal(head.row(r), head.row(r) + 8, wide.row(r) + 8));
    EXPECT_TRUE(std::equal(before.row(r), before.row(r) + 8, wide.row(r)));
    EXPECT_TRUE(std::equal(before.row(r) + 16, before.row(r) + 24, wide.row(r) + 16));
  }
}

}  // namespace
}  // namespace sh::ops
