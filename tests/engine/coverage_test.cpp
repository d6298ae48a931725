// SPDX-License-Identifier: MIT
#include <algorithm>
#include <cmath>
#include <limits>

#include "compaction/score.h"
#include "engine/compact_sequence.h"
#include "engine/region_plan.h"
#include "engine/row_coverage.h"
#include "engine/scribe.h"

namespace sh::engine {
namespace {

constexpr int64_t kCap = int64_t{64} << 20;
constexpr SelfStudyOptions kStudy{
    .n_conversations = 16, .max_question_tokens = 24, .max_answer_tokens = 8, .uses_prompts = false};

class Coverage : public ::testing::Test {
 protected:
  void SetUp() override {
    engine_ = open_scribe({.n_ctx = 512, .n_ubatch = 256});
    ids_ = document_ids(*engine_, read_document("512", 5));
    sequence_.emplace(engine_->block_pool());
    ASSERT_TRUE(engine_->prefill(*sequence_, ids_).ok());
    plan(Region{kv::Pos(4), kv::Pos(static_cast<int64_t>(ids_.size()) - 4), {}});
  }
  void TearDown() override { sequence_.reset(); }
  void plan(const Region& region) { plans_ = plan_heads(*sequence_, region, false); }

  Result<QuerySets> study(RowCoverage* coverage, const SelfStudyOptions& options, int64_t max_query_bytes = kCap,
                          StudyStats* stats = nullptr) {
    return self_study(engine_->executor(), *sequence_, ids_, options,
                      {.max_query_bytes = max_query_bytes, .coverage = coverage}, nullptr, stats);
  }
  /// What compaction makes of the captured queries.
  std::vector<std::vector<float>> scores_of(const QuerySets& sets) const {
    const CacheProblems problems(*engine_, *sequence_, plans_, sets, false);
    compaction::CompactionMethod method = *compaction::find_method("self_study").value();
    EXPECT_TRUE(method.weighting == compaction::Weighting::attention_share);
    method.score = compaction::RowScore::max;  // what was asked for, without what might be
    std::vector<std::vector<float>> scores;
    compaction::HeadStorage storage;
    for (int64_t head = 0; head < problems.n_heads(); ++head)
      scores.push_back(compaction::score_rows(problems.load(head, storage), method, {}, engine_->kernels()));
    return scores;
  }

  std::unique_ptr<Engine> engine_;
  std::vector<int32_t> ids_;
  std::optional<kv::SequenceCache> sequence_;
  std::vector<HeadPlan> plans_;
};

double worst_difference(const std::vector<std::vector<float>>& a, const std::vector<std::vector<float>>& b) {
  double worst = 0;
  for (size_t head = 0; head < a.size(); ++head)
    for (size_t row = 0; row < a[head].size(); ++row)
      worst = std::max(worst, std::fabs(double{a[head][row]} - b[head][row]));
  return worst;
}

// Both sides are shares of attention from products in float32, one by way of the region's own softmax.
constexpr double kTolerance = 1e-4;

TEST_F(Coverage, ScoresAreThoseOfTheCapturedQueries) {
  RowCoverage coverage(engine_->executor(), *sequence_, plans_);
  const auto sets = study(&coverage, kStudy);
  ASSERT_TRUE(sets.ok()) << sets.error().message;
  const auto expected = scores_of(*sets), scores = coverage.scores();
  ASSERT_EQ(scores.size(), 10u);
  double highest = 0;
  for (size_t head = 0; head < scores.size(); ++head) {
    ASSERT_EQ(scores[head].size(), expected[head].size());
    for (const float score : scores[head]) highest = std::max<double>(highest, score);
  }
  EXPECT_GT(highest, 0.5);
  EXPECT_LT(worst_difference(scores, expected), kTolerance);
}

// A query of the text itself sees only what is before it.
TEST_F(Coverage, QueriesSeeNoRowsBehindThem) {
  RowCoverage coverage(engine_->executor(), *sequence_, plans_);
  const auto n = static_cast<int64_t>(ids_.size());
  const auto sets = reread(engine_->executor(), *sequence_, ids_, kv::Pos(n - 200), kv::Pos(n), 1.0,
                           {.max_query_bytes = kCap, .coverage = &coverage}, nullptr);
  ASSERT_TRUE(sets.ok()) << sets.error().message;
  EXPECT_LT(worst_difference(coverage.scores(), scores_of(*sets)), kTolerance);
}

TEST_F(Coverage, WhatTheCaptureDropsIsStillScored) {
  RowCoverage whole(engine_->executor(), *sequence_, plans_), thinned(engine_->executor(), *sequence_, plans_);
  const auto all = study(&whole, kStudy);
  const auto some = study(&thinned, kStudy, kCap / 512);
  ASSERT_TRUE(all.ok() && some.ok());
  ASSERT_LT((*some)[0][0].queries.rows, (*all)[0][0].queries.rows / 8);
  EXPECT_EQ(whole.scores(), thinned.scores());
  EXPECT_GT(worst_difference(scores_of(*some), whole.scores()), 0.1) << "the capture must have lost something";
}

// Groups of 1, 2 and more query heads a KV head, head sizes 16 to 128, biases, experts.
TEST(RowCoverage, EveryTinyModel) {
  for (const char* name : {"llama", "llama-bias", "llama-hd32", "llama-moe", "llama-yarn", "qwen2", "qwen3"}) {
    SCOPED_TRACE(name);
    EngineOptions options{.n_ctx = 512, .n_threads = 2};
    options.model_path = std::string(SH_SOURCE_DIR) + "/tests/golden/" + name + ".gguf";
    const auto engine = Engine::open(options).value();
    std::vector<int32_t> ids;
    for (int32_t i = 0; i < 300; ++i) ids.push_back(i * 37 % engine->model().info().n_vocab);
    kv::SequenceCache sequence(engine->block_pool());
    ASSERT_TRUE(engine->prefill(sequence, ids).ok());
    const auto plans = plan_heads(sequence, Region{kv::Pos(4), kv::Pos(290), {}}, false);
    RowCoverage coverage(engine->executor(), sequence, plans);
    const auto sets = reread(engine->executor(), sequence, ids, kv::Pos(100), kv::Pos(300), 1.0,
                             {.max_query_bytes = kCap, .coverage = &coverage}, nullptr);
    ASSERT_TRUE(sets.ok());
    const CacheProblems problems(*engine, sequence, plans, *sets, false);
    compaction::CompactionMethod method = *compaction::find_method("self_study").value();
    method.score = compaction::RowScore::max;
    const auto scores = coverage.scores();
    compaction::HeadStorage storage;
    for (int64_t head = 0; head < problems.n_heads(); ++head) {
      const auto expected = compaction::score_rows(problems.load(head, storage), method, {}, engine->kernels());
      EXPECT_LT(worst_difference({scores[static_cast<size_t>(head)]}, {expected}), kTolerance) << "head " << head;
    }
  }
}

TEST_F(Coverage, OnlyRowsOfTheRegionCount) {
  const int64_t n = sequence_->next_pos().value;
  const int64_t n_all = RowCoverage(engine_->executor(), *sequence_, plans_).n_rows();
  EXPECT_EQ(n_all, 10 * (n - 8));
  plan(Region{kv::Pos(4), kv::Pos(n - 4), {{100, 300}}});
  RowCoverage coverage(engine_->executor(), *sequence_, plans_);
  EXPECT_EQ(coverage.n_rows(), n_all - 10 * 200);
  const auto sets = study(&coverage, kStudy);
  ASSERT_TRUE(sets.ok());
  EXPECT_LT(worst_difference(coverage.scores(), scores_of(*sets)), kTolerance);
}

// ---- rounds, with made-up queries ----

/// Folds one query of head 0 of layer 0 that gives a row the share `share`.
void ask_for(RowCoverage& coverage, const Engine& engine, const kv::SequenceCache& sequence, const HeadPlan& plan,
             size_t row, float share) {
  const auto head = sequence.decode_head(engine.kernels(), plan.layer, plan.head);
  const float scale = engine.model().attention_scale(plan.layer);
  Mat<float> queries(1, 4 * 64), lse(1, 4);
  std::fill(lse.data.begin(), lse.data.end(), 1e9f);  // the other query heads ask for nothing
  const float* key = head.keys.row(plan.rows[row]);
  double product = 0;
  for (int64_t i = 0; i < 64; ++i) {
    queries(0, i) = key[i];
    product += double{key[i]} * key[i];
  }
  lse(0, 0) = static_cast<float>(product * scale - std::log(double{share}));
  const kv::Pos pos[] = {sequence.next_pos()};
  coverage.fold(plan.layer, pos, queries.view(), lse.view());
}

TEST_F(Coverage, ARoundChangesWhatItAsksForAnew) {
  // Of one head, so that only the rows asked for and rows with smaller products have a score.
  const std::vector<HeadPlan> one(plans_.begin(), plans_.begin() + 1);
  RowCoverage coverage(engine_->executor(), *sequence_, one);
  const auto ask = [&](size_t row, float share) { ask_for(coverage, *engine_, *sequence_, one[0], row, share); };
  ask(10, 1.0f);
  EXPECT_NEAR(coverage.scores()[0][10], 1.0, 1e-4);
  EXPECT_EQ(coverage.end_round(40), 1.0) << "before the first round nothing was kept";
  EXPECT_EQ(coverage.end_round(40), 0.0) << "nobody asked";
  ask(10, 0.5f);
  EXPECT_NEAR(coverage.scores()[0][10], 1.0, 1e-4) << "the highest share stays";
  EXPECT_EQ(coverage.end_round(40), 0.0);
  // Every other row gets more than any of the 40 has had: of 4 kept rows all are new.
  for (const size_t row : {100, 150, 200, 250}) ask(row, 1.0f);
  const double change = coverage.end_round(4);
  EXPECT_GE(change, 0.5);
  EXPECT_LE(change, 1.0);
  EXPECT_EQ(coverage.end_round(0), 0.0);
  EXPECT_EQ(coverage.end_round(1 << 30), 1.0) << "all rows, of which none was kept";
}

TEST_F(Coverage, AQueryThatIsNotFiniteAsksForNothing) {
  RowCoverage coverage(engine_->executor(), *sequence_, plans_), clean(engine_->executor(), *sequence_, plans_);
  ask_for(clean, *engine_, *sequence_, plans_[0], 7, 1.0f);
  ask_for(coverage, *engine_, *sequence_, plans_[0], 7, 1.0f);
  constexpr float kNan = std::numeric_limits<float>::quiet_NaN(), kInf = std::numeric_limits<float>::infinity();
  const kv::Pos pos[] = {sequence_->next_pos()};
  for (const auto& [query, lse] :
       {std::pair{kNan, 1.0f}, {kInf, 1.0f}, {1e30f, 1.0f}, {1.0f, kNan}, {1.0f, -kInf}}) {
    Mat<float> queries(1, 4 * 64), sums(1, 4);
    std::fill(queries.data.begin(), queries.data.end(), query);
    std::fill(sums.data.begin(), sums.data.end(), lse);
    coverage.fold(0, pos, queries.view(), sums.view());
  }
  EXPECT_EQ(coverage.scores(), clean.scores());
}

TEST_F(Coverage, ARowThatIsNotFiniteIsNeverWanted) {
  const auto engine = open_scribe({.n_ctx = 64, .type_k = DType::f32, .type_v = DType::f32});
  kv::SequenceCache sequence(engine->block_pool());
  const std::vector<int32_t> ids(ids_.begin(), ids_.begin() + 40);
  ASSERT_TRUE(engine->prefill(sequence, ids).ok());
  std::vector<std::vector<kv::HeadRows>> rows(5);
  for (int32_t l = 0; l < 5; ++l)
    for (int32_t h = 0; h < 2; ++h) rows[static_cast<size_t>(l)].push_back(sequence.copy_head(l, h));
  const float nan = std::numeric_limits<float>::quiet_NaN();
  std::memcpy(rows[0][0].values.data() + 20 * 64 * sizeof(float), &nan, sizeof nan);
  ASSERT_TRUE(sequence.replace(rows, kv::Pos(0)).ok());
  const std::vector<HeadPlan> plans = plan_heads(sequence, Region{kv::Pos(10), kv::Pos(30), {}}, false);
  RowCoverage coverage(engine->executor(), sequence, plans);
  ask_for(coverage, *engine, sequence, plans[0], 10, 1.0f);
  EXPECT_EQ(coverage.scores()[0][10], -std::numeric_limits<float>::infinity());
  EXPECT_GT(coverage.scores()[0][9], 0.0f);
  EXPECT_EQ(coverage.end_round(1 << 30), 1.0);
}

// ---- a study that stops by it ----

TEST_F(Coverage, AStudyStopsWhenARoundChangesLittle) {
  SelfStudyOptions options = kStudy;
  options.n_conversations = 400;
  options.round_conversations = 20;
  options.coverage_tolerance = 0.1;
  StudyStats stats;
  RowCoverage coverage(engine_->executor(), *sequence_, plans_);
  ASSERT_TRUE(study(&coverage, options, kCap, &stats).ok());
  EXPECT_GT(stats.n_rounds, 2);
  EXPECT_LT(stats.n_conversations, 400);
  EXPECT_EQ(stats.n_conversations, 20 * stats.n_rounds);
  EXPECT_LE(stats.last_round_change, 0.1);
  EXPECT_GT(stats.last_round_change, 0);
  EXPECT_GT(stats.coverage_seconds, 0);
  EXPECT_LT(stats.coverage_seconds, stats.seconds);

  options.coverage_tolerance = 0;
  options.n_conversations = 40;
  StudyStats all;
  RowCoverage again(engine_->executor(), *sequence_, plans_);
  ASSERT_TRUE(study(&again, options, kCap, &all).ok());
  EXPECT_EQ(all.n_conversations, 40);
  EXPECT_EQ(all.n_rounds, 2);
  EXPECT_GT(all.last_round_change, stats.last_round_change) << "an early round changes more than a late one";
}

TEST_F(Coverage, ACompactionSaysWhatTheLastRoundChanged) {
  CompactionRequest request{.method = "self_study", .ratio = 4, .self_study = kStudy};
  request.self_study.round_conversations = 8;
  const auto report = compact_sequence(engine_->executor(), *sequence_, ids_, nullptr, request);
  ASSERT_TRUE(report.ok()) << report.error().message;
  EXPECT_EQ(report->study.n_rounds, 2);
  EXPECT_GT(report->study.last_round_change, 0);
  EXPECT_LT(report->study.last_round_change, 1);
}

}  // namespace
}  // namespace sh::engine
