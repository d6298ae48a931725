// SPDX-License-Identifier: MIT
#include "compaction/score.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <set>

#include "compaction/region.h"
#include "synthetic.h"

namespace sh::compaction {
namespace {

using testing::clustered_head;
using testing::kernel_set;

// Attention of each region row by the oracle, [n, T]; divided by the region's sum or by everything the query
// attends.
Mat<double> oracle_attention(const testing::Head& head, Weighting weighting, float softcap = 0) {
  Mat<double> a(head.queries.rows, head.keys.rows);
  for (int64_t q = 0; q < a.rows; ++q) {
    double sum = 0;
    for (int64_t row = 0; row < testing::n_visible(head, q); ++row) {
      double dot = 0;
      for (int64_t c = 0; c < head.keys.cols; ++c)
        dot += static_cast<double>(head.queries(q, c)) * head.keys(row, c);
      double score = dot * head.scale;
      if (softcap > 0) score = softcap * std::tanh(score / softcap);
      a(q, row) = std::exp(score + (head.bias.empty() ? 0 : head.bias[static_cast<size_t>(row)]));
      sum += a(q, row);
    }
    if (weighting == Weighting::attention_share)
      sum = std::exp(static_cast<double>(head.lse[static_cast<size_t>(q)]));
    for (int64_t row = 0; row < a.cols && sum > 0; ++row) a(q, row) /= sum;
  }
  return a;
}

// Means are over the queries that see the row.
double aggregate(const testing::Head& head, const Mat<double>& a, int64_t row, RowScore score) {
  double result = 0, n_seeing = 0;
  for (int64_t q = 0; q < a.rows; ++q) {
    n_seeing += testing::n_visible(head, q) > row ? 1 : 0;
    if (score == RowScore::max)
      result = std::max(result, a(q, row));
    else
      result += score == RowScore::mean ? a(q, row) : a(q, row) * a(q, row);
  }
  if (score == RowScore::max) return result;
  result /= std::max(n_seeing, 1.0);
  return score == RowScore::rms ? std::sqrt(result) : result;
}

// What a further one would ask of a row that none has asked for, the newest one: of each row the square of the
// most that one asked beyond any other, an asker's mean.
double unasked(const testing::Head& head, const Mat<double>& a, std::span<const int32_t> asker) {
  std::vector<std::vector<double>> askers;
  int64_t last = -1;
  for (int64_t q = 0; q < a.rows; ++q) {
    if (testing::n_visible(head, q) == 0) continue;
    const int64_t whose = asker.empty() ? q : asker[static_cast<size_t>(q)];
    if (whose != last) askers.emplace_back(static_cast<size_t>(a.cols), 0.0);
    last = whose;
    for (int64_t row = 0; row < a.cols; ++row)
      askers.back()[static_cast<size_t>(row)] = std::max(askers.back()[static_cast<size_t>(row)], a(q, row));
  }
  double sum = 0;
  for (size_t row = 0; row < static_cast<size_t>(a.cols); ++row) {
    std::vector<double> asked = {0, 0};
    for (const std::vector<double>& one : askers) asked.push_back(one[row]);
    std::sort(asked.rbegin(), asked.rend());
    sum += (asked[0] - asked[1]) * (asked[0] - asked[1]);
  }
  return sum / static_cast<double>(std::max<size_t>(1, askers.size()));
}

void expect_oracle(const testing::Head& head, float softcap = 0, std::span<const int32_t> asker = {}) {
  for (const Weighting weighting : {Weighting::none, Weighting::attention_share}) {
    const Mat<double> a = oracle_attention(head, weighting, softcap);
    for (const RowScore score : {RowScore::max, RowScore::rms, RowScore::mean}) {
      HeadProblem problem = head.problem();
      problem.softcap = softcap;
      const auto scores = score_rows(problem, testing::scoring(score, weighting), {}, kernel_set());
      ASSERT_EQ(static_cast<int64_t>(scores.size()), head.keys.rows);
      for (int64_t row = 0; row < head.keys.rows; ++row) {
        const double expected = aggregate(head, a, row, score);
        // Scores up to ~20 carry 20 · 1e-7 into the exponent, some products more: 1e-4 relative is safe.
        ASSERT_NEAR(scores[static_cast<size_t>(row)], expected, 1e-4 * expected + 1e-12) << "row " << row;
      }
    }
    HeadProblem problem = head.problem();
    problem.softcap = softcap;
    problem.asker = asker;
    const auto scores =
        score_rows(problem, testing::scoring(RowScore::max_or_unasked, weighting), {}, kernel_set());
    const double of_newest = unasked(head, a, asker);
    for (int64_t row = 0; row < head.keys.rows; ++row) {
      const double place = static_cast<double>(row + 1) / static_cast<double>(head.keys.rows);
      const double most = aggregate(head, a, row, RowScore::max);
      const double expected = std::max(most, 0.5 * std::min(1.0, of_newest) * (std::pow(place, 0.25) + most));
      ASSERT_NEAR(scores[static_cast<size_t>(row)], expected, 1e-4 * expected + 1e-12) << "row " << row;
    }
  }
}

TEST(Score, EqualsTheOracle) {
  expect_oracle(clustered_head(1, 131, 300));
}

TEST(Score, HonoursPositionsOfQueriesInsideTheRegion) {
  testing::Head head = clustered_head(2, 90, 200);
  for (size_t q = 0; q < head.query_pos.size(); ++q)
    head.query_pos[q] = static_cast<int32_t>(q % 100);  // some see nothing: rows start at 4
  testing::finish(head);
  expect_oracle(head);
}

TEST(Score, HonoursInputBiases) {
  testing::Head head = clustered_head(3, 64, 100);
  Rng rng(5);
  for (int64_t row = 0; row < 64; ++row) head.bias.push_back(static_cast<float>(2 * rng.next_normal()));
  testing::finish(head);
  expect_oracle(head);
}

TEST(Score, HonoursTheSoftcap) {
  const testing::Head head = clustered_head(4, 64, 100, 32, false);
  const Mat<double> a = oracle_attention(head, Weighting::none, 3.0f);
  HeadProblem problem = head.problem();
  problem.softcap = 3.0f;
  const auto scores = score_rows(problem, testing::scoring(RowScore::mean, Weighting::none), {}, kernel_set());
  for (int64_t row = 0; row < 64; ++row)
    EXPECT_NEAR(scores[static_cast<size_t>(row)], aggregate(head, a, row, RowScore::mean), 1e-6);
}

TEST(Score, QueriesOfOneAskerAskForTheSameRowOnce) {
  std::vector<int32_t> of_tokens, of_conversations;
  for (int32_t query = 0; query < 120; ++query) of_tokens.push_back(query / 3);
  for (const int32_t n : {50, 1, 30, 39}) of_conversations.insert(of_conversations.end(), static_cast<size_t>(n), n);
  expect_oracle(clustered_head(7, 80, 120), 0, of_tokens);
  expect_oracle(clustered_head(7, 80, 120), 0, of_conversations);
}

// A head whose query i asks for row asked_of(i) of 64 alone.
template <typename AskedOf>
testing::Head head_that_asks(int64_t n_queries, AskedOf&& asked_of) {
  testing::Head head = clustered_head(8, 64, n_queries, 64, false);
  std::fill(head.keys.data.begin(), head.keys.data.end(), 0.0f);
  std::fill(head.queries.data.begin(), head.queries.data.end(), 0.0f);
  for (int64_t row = 0; row < 64; ++row) head.keys(row, row) = 12.0f;
  for (int64_t q = 0; q < n_queries; ++q) head.queries(q, asked_of(q)) = 12.0f;
  testing::finish(head);
  return head;
}

// What a sample tells of rows that it did not reach: from a head that looks up another row with every token more
// rows may be asked for, from one that looks at the same rows again and again no others.
TEST(Score, HeadsThatLookRowsUpWantRowsThatWereNotAskedFor) {
  const CompactionMethod method = testing::scoring(RowScore::max_or_unasked, Weighting::none);
  const auto of_lookup =
      score_rows(head_that_asks(8, [](int64_t q) { return 7 * q; }).problem(), method, {}, kernel_set());
  const auto of_few =
      score_rows(head_that_asks(8, [](int64_t q) { return q % 2; }).problem(), method, {}, kernel_set());
  for (size_t row = 0; row < 64; ++row) {
    const bool is_asked = row % 7 == 0 && row / 7 < 8;
    const double of_a_new_row = of_lookup[63] * std::pow(static_cast<double>(row + 1) / 64, 0.25);
    EXPECT_NEAR(of_lookup[row], is_asked ? 1 : of_a_new_row, 0.02) << row;
    if (row >= 2) {
      EXPECT_LT(of_few[row], 0.01f) << row;
    }
  }
  EXPECT_NEAR(of_lookup[63], 0.5f, 0.02f) << "every token asked for a row of its own";
}

TEST(Score, RecencyPrefersTheEndAndNeedsNoQueries) {
  testing::Head head = clustered_head(5, 40, 8);
  head.queries = Mat<float>();
  head.query_pos.clear(), head.lse.clear(), head.out = Mat<float>();
  const auto scores = score_rows(head.problem(), testing::scoring(RowScore::recency, Weighting::none), {}, kernel_set());
  EXPECT_EQ(top_rows(scores, 3), (std::vector<int32_t>{37, 38, 39}));
}

TEST(Score, QueriesAndRowsThatAreNotFiniteAreLeftOut) {
  testing::Head head = clustered_head(6, 50, 60);
  const auto clean = score_rows(head.problem(), testing::scoring(RowScore::mean, Weighting::attention_share), {}, kernel_set());
  testing::Head dirty = head;
  const Rng rng(1);
  dirty.queries = Mat<float>(62, head.queries.cols);
  std::copy(head.queries.data.begin(), head.queries.data.end(), dirty.queries.data.begin());
  dirty.queries(60, 3) = std::nanf("");
  dirty.queries(61, 0) = INFINITY;
  dirty.query_pos.resize(62, 1000);
  dirty.lse.resize(62, 0.0f);
  dirty.out = Mat<float>();
  const auto scores = score_rows(dirty.problem(), testing::scoring(RowScore::mean, Weighting::attention_share), {}, kernel_set());
  for (size_t row = 0; row < 50; ++row) EXPECT_FLOAT_EQ(scores[row], clean[row]);
  dirty.keys(7, 2) = std::nanf("");
  dirty.values(9, 2) = INFINITY;
  const auto without = score_rows(dirty.problem(), testing::scoring(RowScore::max, Weighting::none), {}, kernel_set());
  for (size_t row = 0; row < 50; ++row) EXPECT_EQ(std::isinf(without[row]), row == 7 || row == 9);
}

// A reader as a cache has it: a stretch is gone when the next one is read.
class Decoder final : public RowReader {
 public:
  explicit Decoder(const HeadProblem& problem) : keys_of_(problem.keys), values_of_(problem.values) {}
  MatView<const float> keys(int64_t begin, int64_t end) override { return copy(keys_of_, begin, end, keys_); }
  MatView<const float> values(int64_t begin, int64_t end) override {
    return copy(values_of_, begin, end, values_);
  }
  int64_t n_longest = 0;

 private:
  MatView<const float> copy(MatView<const float> from, int64_t begin, int64_t end, Mat<float>& to) {
    n_longest = std::max(n_longest, end - begin);
    to = Mat<float>(end - begin, from.cols);
    for (int64_t row = begin; row < end; ++row) std::copy_n(from.row(row), from.cols, to.row(row - begin));
    return to.view();
  }
  MatView<const float> keys_of_, values_of_;
  Mat<float> keys_, values_;
};

TEST(Score, RowsReadInStretchesGiveTheSame) {
  for (const bool is_dirty : {false, true}) {
    SCOPED_TRACE(is_dirty);
    testing::Head head = clustered_head(11, 1300, 70);
    if (is_dirty) head.keys(3, 2) = std::nanf(""), head.values(900, 1) = INFINITY;
    const CompactionMethod method = testing::scoring(RowScore::max, Weighting::attention_share);
    std::vector<int64_t> wanted;
    for (int64_t query = 1; query < 70; query += 4) wanted.push_back(query);
    const HeadProblem ready = head.problem();
    RegionSummary of_ready{.queries = wanted}, of_read{.queries = wanted};
    const auto scores = score_rows(ready, method, {}, kernel_set(), &of_ready);

    Decoder decoder(ready);
    HeadProblem streamed = ready;
    streamed.reader = &decoder;
    streamed.keys.data = streamed.values.data = nullptr;
    // Sums over the rows are taken in another order, scores are not.
    EXPECT_EQ(score_rows(streamed, method, {}, kernel_set(), &of_read), scores);
    EXPECT_EQ(decoder.n_longest, kStretchRows);
    EXPECT_EQ(of_read.lse, of_ready.lse);
    EXPECT_EQ(of_read.n_finite_rows, of_ready.n_finite_rows);
    EXPECT_EQ(of_read.n_finite_rows, is_dirty ? 1298 : 1300);
    EXPECT_EQ(of_read.longest_value, of_ready.longest_value);
    for (int64_t q = 0; q < std::ssize(wanted); ++q)
      for (int64_t c = 0; c < head.values.cols; ++c)
        EXPECT_NEAR(of_read.output(q, c), of_ready.output(q, c), 1e-5 * (1 + std::abs(of_ready.output(q, c))));
  }
}

// Nothing else asks for their values then, and without a query that counts not for their keys either.
TEST(Score, RowsReadInStretchesAreLeftOutWhenTheyAreNotFiniteWhateverIsAskedOfThem) {
  testing::Head head = clustered_head(12, 1300, 20);
  head.keys(3, 2) = std::nanf(""), head.values(900, 1) = INFINITY;
  head.bias.assign(1300, 0.0f);
  head.bias[1299] = std::nanf("");
  for (const bool asks : {true, false}) {
    SCOPED_TRACE(asks);
    if (!asks) std::fill(head.queries.data.begin(), head.queries.data.end(), std::nanf(""));
    HeadProblem streamed = head.problem();
    Decoder decoder(streamed);
    streamed.reader = &decoder;
    streamed.keys.data = streamed.values.data = nullptr;
    const CompactionMethod method = testing::scoring(RowScore::max_or_unasked, Weighting::none);
    const auto scores = score_rows(streamed, method, {}, kernel_set());
    EXPECT_EQ(scores, score_rows(head.problem(), method, {}, kernel_set()));
    for (size_t row = 0; row < 1300; ++row)
      EXPECT_EQ(std::isinf(scores[row]), row == 3 || row == 900 || row == 1299) << row;
  }
}

TEST(Score, AConstantShiftOfAllScoresChangesNothing) {
  testing::Head head = clustered_head(7, 100, 200);
  const auto scores = score_rows(head.problem(), testing::scoring(RowScore::rms, Weighting::attention_share), {}, kernel_set());
  testing::Head shifted = head;
  shifted.bias.assign(100, 50.0f);
  for (float& lse : shifted.lse) lse += 50.0f;
  const auto again = score_rows(shifted.problem(), testing::scoring(RowScore::rms, Weighting::attention_share), {}, kernel_set());
  for (size_t row = 0; row < 100; ++row)
    EXPECT_NEAR(again[row], scores[row], 3e-5f * scores[row] + 1e-9f);  // 60 · 2^-24 in the exponent
}

TEST(Score, WeightingLowersHeadsThatTheQueryHardlyLooksAt) {
  testing::Head busy = clustered_head(8, 64, 128), idle = busy;
  for (float& shift : idle.live_shift) shift += 6.0f;  // live rows get e^6 times the weight
  testing::finish(idle);
  const auto share_busy = score_rows(busy.problem(), testing::scoring(RowScore::max, Weighting::attention_share), {}, kernel_set());
  const auto share_idle = score_rows(idle.problem(), testing::scoring(RowScore::max, Weighting::attention_share), {}, kernel_set());
  EXPECT_EQ(score_rows(busy.problem(), testing::scoring(RowScore::max, Weighting::none), {}, kernel_set()),
            score_rows(idle.problem(), testing::scoring(RowScore::max, Weighting::none), {}, kernel_set()));
  for (size_t row = 0; row < 64; ++row) EXPECT_LT(share_idle[row], share_busy[row]);
}

TEST(Queries, ThinningTakesOneOfEachStretchAndNoHeadAlone) {
  testing::Head head = clustered_head(9, 8, 4000, 16, false);
  for (const int64_t group : {1, 2, 4, 5, 7, 8}) {
    const auto picked = pick_queries(head.problem(), 1000);
    ASSERT_EQ(picked.size(), 1000u);
    std::vector<int> of_head(static_cast<size_t>(group), 0);
    for (size_t i = 0; i < picked.size(); ++i) {
      EXPECT_EQ(picked[i] / 4, static_cast<int64_t>(i));  // one of each four
      ++of_head[static_cast<size_t>(picked[i] % group)];
    }
    // Binomial: mean 1000/G, standard deviation below sqrt(1000/G); five of them.
    for (const int n : of_head)
      EXPECT_NEAR(n, 1000.0 / static_cast<double>(group),
                  group == 1 ? 0 : 5 * std::sqrt(1000.0 / static_cast<double>(group)));
  }
  EXPECT_EQ(pick_queries(head.problem(), 1000), pick_queries(head.problem(), 1000));
  EXPECT_EQ(pick_queries(head.problem(), 5000).size(), 4000u);
}

}  // namespace
}  // namespace sh::compaction
