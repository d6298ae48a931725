// SPDX-License-Identifier: MIT
#include <set>

#include "engine/reference_queries.h"
#include "engine/scribe.h"

namespace sh::engine {
namespace {

constexpr int64_t kCap = int64_t{32} << 20;

class SelfStudy : public ::testing::Test {
 protected:
  void SetUp() override {
    engine_ = open_scribe({.n_ctx = 512, .n_ubatch = 256});
    ids_ = document_ids(*engine_, read_document("512", 2));
    sequence_.emplace(engine_->block_pool());
    ASSERT_TRUE(engine_->prefill(*sequence_, ids_).ok());
  }
  void TearDown() override { sequence_.reset(); }

  Result<QuerySets> study(const SelfStudyOptions& options, StudyStats* stats = nullptr, const std::atomic<bool>* cancel = nullptr,
                          const std::function<void(double)>& on_progress = {}) {
    return self_study(engine_->executor(), *sequence_, ids_, options,
                      {.cancel = cancel, .on_progress = on_progress, .max_query_bytes = kCap}, nullptr, stats);
  }
  std::vector<std::string> questions(const SelfStudyOptions& options) {
    StudyStats stats;
    EXPECT_TRUE(study(options, &stats).ok());
    return stats.questions;
  }

  std::unique_ptr<Engine> engine_;
  std::vector<int32_t> ids_;
  std::optional<kv::SequenceCache> sequence_;
};

constexpr SelfStudyOptions kOptions{.n_conversations = 12, .max_question_tokens = 24, .max_answer_tokens = 8};

TEST_F(SelfStudy, StatsSayWhatHappened) {
  StudyStats stats;
  const std::string before = fingerprint(*sequence_);
  const int64_t bytes_used = engine_->block_pool().stats().bytes_used;
  std::vector<double> progress;
  const auto sets = study(kOptions, &stats, nullptr, [&](double fraction) { progress.push_back(fraction); });
  ASSERT_TRUE(sets.ok()) << sets.error().message;
  EXPECT_EQ(stats.n_conversations, 12);
  EXPECT_EQ(stats.questions.size(), 12u);
  EXPECT_GT(stats.seconds, 0);
  ASSERT_FALSE(progress.empty());
  EXPECT_EQ(progress.back(), 1.0);
  // Two query heads a KV head and token; the opening of the user turn is no query of anybody's.
  const int64_t n_captured = (*sets)[0][0].queries.rows / 2;
  EXPECT_EQ(n_captured, stats.n_tokens - 1);
  EXPECT_GT(n_captured, 12 * 3);
  EXPECT_LE(n_captured, 12 * (24 + 2 + 8));
  for (const int32_t pos : (*sets)[4][1].pos) EXPECT_GT(pos, static_cast<int32_t>(ids_.size()));
  EXPECT_TRUE(fingerprint(*sequence_) == before);
  EXPECT_EQ(engine_->block_pool().stats().bytes_used, bytes_used);
}

TEST_F(SelfStudy, TheSeedDecidesTheQuestions) {
  SelfStudyOptions other = kOptions;
  other.seed = 2;
  const auto first = questions(kOptions);
  EXPECT_EQ(first, questions(kOptions));
  EXPECT_NE(first, questions(other));
  const std::set<std::string> different(first.begin(), first.end());
  EXPECT_GT(different.size(), 6u) << "conversations of one study must differ";
}

// The model was trained to answer questions about its document: so those that it asks itself are about it.
TEST_F(SelfStudy, QuestionsLookLikeQuestions) {
  int n_asking = 0;
  for (const std::string& question : questions(kOptions)) n_asking += question.find(" of ") != std::string::npos || question.find("'s ") != std::string::npos;
  EXPECT_GT(n_asking, 6);
}

TEST_F(SelfStudy, ANearlyFullPoolTakesSeveralWaves) {
  const auto expected = questions(kOptions);
  // A conversation of 34 tokens takes 4 blocks of 4 KiB and an annotation in 10 heads: room for three, and for the opening.
  const PoolFiller filler(engine_->block_pool(), 10 * 4096 + 3 * 10 * (4 * 4096 + 128));
  StudyStats stats;
  int n_waves = 0;
  const auto sets = study(kOptions, &stats, nullptr, [&](double) { ++n_waves; });
  ASSERT_TRUE(sets.ok()) << sets.error().message;
  EXPECT_EQ(stats.n_conversations, 12);
  EXPECT_GE(n_waves, 4);
  EXPECT_EQ(stats.questions, expected);
}

TEST_F(SelfStudy, AFullPoolIsAnError) {
  const std::string before = fingerprint(*sequence_);
  const PoolFiller filler(engine_->block_pool(), 10 * 4096 + 1000);
  const auto sets = study(kOptions);
  ASSERT_FALSE(sets.ok());
  EXPECT_EQ(sets.error().kind, ErrorKind::out_of_memory);
  EXPECT_TRUE(fingerprint(*sequence_) == before);
}

TEST_F(SelfStudy, CancelStopsBetweenSteps) {
  std::atomic<bool> cancel{true};
  const auto sets = study(kOptions, nullptr, &cancel);
  ASSERT_FALSE(sets.ok());
  EXPECT_EQ(sets.error().kind, ErrorKind::cancelled);
  cancel = false;
  // After the first wave of a pool that takes three at once.
  const PoolFiller filler(engine_->block_pool(), 10 * 4096 + 3 * 10 * (4 * 4096 + 128));
  const auto later = study(kOptions, nullptr, &cancel, [&](double) { cancel = true; });
  ASSERT_FALSE(later.ok());
  EXPECT_EQ(later.error().kind, ErrorKind::cancelled);
}

TEST_F(SelfStudy, WorksWithTheSmallestUbatch) {
  const auto engine = open_scribe({.n_ctx = 512, .n_ubatch = 1});
  kv::SequenceCache sequence(engine->block_pool());
  ASSERT_TRUE(engine->prefill(sequence, ids_).ok());
  SelfStudyOptions two = kOptions;
  two.n_conversations = 2;
  StudyStats stats, expected;
  ASSERT_TRUE(self_study(engine->executor(), sequence, ids_, two, {.max_query_bytes = kCap}, nullptr, &stats).ok());
  ASSERT_TRUE(study(two, &expected).ok());
  EXPECT_EQ(stats.questions, expected.questions);
  EXPECT_EQ(stats.n_tokens, expected.n_tokens);
}

TEST(RepeatPrefill, PiecesStayNearTheEndOfTheContext) {
  const auto engine = open_scribe({.n_ctx = 2048, .n_ubatch = 300});
  const std::vector<int32_t> ids = document_ids(*engine, read_document("2048", 0));
  const auto n = static_cast<int32_t>(ids.size());
  ASSERT_GT(n, 1024);
  ASSERT_LT(n, 2048);
  kv::SequenceCache sequence(engine->block_pool());
  ASSERT_TRUE(engine->prefill(sequence, ids).ok());
  const std::string before = fingerprint(sequence);
  StudyStats stats;
  const auto sets = repeat_prefill(engine->executor(), sequence, ids, 1.0, {}, nullptr, &stats);
  ASSERT_TRUE(sets.ok()) << sets.error().message;
  EXPECT_TRUE(fingerprint(sequence) == before);
  // Two pieces, the second with a lead-in of 8 tokens, behind one opening and instruction.
  const auto n_opening = static_cast<int32_t>(encode(*engine, "<|user|>").size() + encode(*engine, "Repeat the text above.").size() +
                                              encode(*engine, "<|end|><|assistant|>").size());
  EXPECT_EQ(stats.n_tokens, n_opening + n + 8);
  const QuerySet& set = (*sets)[0][0];
  std::vector<int32_t> begins;
  for (size_t i = 0; i < set.pos.size(); i += 2) {
    EXPECT_GE(set.pos[i], n + n_opening);
    EXPECT_LT(set.pos[i], n + n_opening + 1024 + 8);
    if (i == 0 || set.pos[i] < set.pos[i - 2]) begins.push_back(set.pos[i]);
  }
  EXPECT_EQ(begins, (std::vector<int32_t>{n + n_opening, n + n_opening}));
  EXPECT_EQ(set.queries.rows / 2, n + 8);

  std::atomic<bool> cancel{true};
  const auto cancelled = repeat_prefill(engine->executor(), sequence, ids, 1.0, {.cancel = &cancel}, nullptr, nullptr);
  ASSERT_FALSE(cancelled.ok());
  EXPECT_EQ(cancelled.error().kind, ErrorKind::cancelled);
}

}  // namespace
}  // namespace sh::engine
