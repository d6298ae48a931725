// SPDX-License-Identifier: MIT
#include <chrono>
#include <set>
#include <thread>

#include "engine/reference_queries.h"
#include "engine/region_plan.h"
#include "engine/row_coverage.h"
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

  Result<QuerySets> study(const SelfStudyOptions& options, StudyStats* stats = nullptr,
                          const std::atomic<bool>* cancel = nullptr,
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

constexpr SelfStudyOptions kOptions{
    .n_conversations = 12, .max_question_tokens = 24, .max_answer_tokens = 8, .uses_prompts = false};

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
  for (const std::string& question : questions(kOptions))
    n_asking += question.find(" of ") != std::string::npos || question.find("'s ") != std::string::npos;
  EXPECT_GT(n_asking, 6);
}

TEST_F(SelfStudy, ANearlyFullPoolTakesSeveralWaves) {
  const auto expected = questions(kOptions);
  // A conversation of 34 tokens takes 4 blocks of 4 KiB and an annotation in 10 heads: room for three, and for the
  // opening.
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

// Batches differ in every case: n_ubatch below the number of conversations and below a prompt, one thread, a pool
// with room for three, and a capture that has to be thinned.
TEST_F(SelfStudy, NeitherBatchesNorThreadsNorMemoryChangeAnything) {
  struct Outcome {
    StudyStats stats;
    QuerySets sets;
    Replay replay;
    std::vector<std::vector<float>> scores;
  };
  SelfStudyOptions options = kOptions;
  options.n_conversations = 14;
  options.round_conversations = 8;
  options.uses_prompts = true;
  options.max_prompt_answer_tokens = 20;
  const auto run = [&](EngineOptions engine_options, bool fills_pool) {
    Outcome out;
    engine_options.n_ctx = 512;
    const auto engine = open_scribe(engine_options);
    kv::SequenceCache sequence(engine->block_pool());
    EXPECT_TRUE(engine->prefill(sequence, ids_).ok());
    const int64_t n_used = engine->block_pool().stats().n_blocks_used;
    std::optional<PoolFiller> filler;
    if (fills_pool) filler.emplace(engine->block_pool(), 10 * 4096 + 3 * 10 * (5 * 4096 + 128));
    const auto plans = plan_heads(sequence, Region{kv::Pos(4), sequence.next_pos(), {}}, false);
    RowCoverage coverage(engine->executor(), sequence, plans);
    auto sets = self_study(engine->executor(), sequence, ids_, options,
                           {.max_query_bytes = 100 * 10400, .coverage = &coverage}, &out.replay, &out.stats);
    EXPECT_TRUE(sets.ok()) << (sets.ok() ? "" : sets.error().message);
    out.sets = std::move(*sets);
    out.scores = coverage.scores();
    filler.reset();
    EXPECT_EQ(engine->block_pool().stats().n_blocks_used, n_used);
    return out;
  };
  const Outcome expected = run({.n_ubatch = 256, .n_threads = 2}, false);
  EXPECT_EQ(expected.stats.n_conversations, 14);
  EXPECT_EQ(expected.stats.n_rounds, 2);
  EXPECT_LE(expected.sets[0][0].queries.rows, 2 * 100);
  EXPECT_GT(expected.stats.n_tokens, 200) << "otherwise nothing was thinned";
  const std::pair<EngineOptions, bool> cases[] = {{{.n_ubatch = 1, .n_threads = 2}, false},
                                                  {{.n_ubatch = 7, .n_threads = 1}, false},
                                                  {{.n_ubatch = 256, .n_threads = 2}, true}};
  for (const auto& [engine_options, fills_pool] : cases) {
    SCOPED_TRACE(engine_options.n_ubatch);
    const Outcome outcome = run(engine_options, fills_pool);
    EXPECT_EQ(outcome.stats.questions, expected.stats.questions);
    EXPECT_EQ(outcome.stats.n_tokens, expected.stats.n_tokens);
    EXPECT_EQ(outcome.stats.last_round_change, expected.stats.last_round_change);
    EXPECT_EQ(outcome.scores, expected.scores);
    ASSERT_EQ(outcome.replay.parts.size(), expected.replay.parts.size());
    for (size_t i = 0; i < expected.replay.parts.size(); ++i)
      EXPECT_EQ(outcome.replay.parts[i].ids, expected.replay.parts[i].ids);
    for (size_t l = 0; l < expected.sets.size(); ++l)
      for (size_t h = 0; h < expected.sets[l].size(); ++h) {
        EXPECT_EQ(outcome.sets[l][h].pos, expected.sets[l][h].pos);
        EXPECT_EQ(outcome.sets[l][h].lse, expected.sets[l][h].lse);
        EXPECT_EQ(outcome.sets[l][h].queries.data, expected.sets[l][h].queries.data);
        EXPECT_EQ(outcome.sets[l][h].out.data, expected.sets[l][h].out.data);
      }
  }
}

// ---- rounds ----

TEST_F(SelfStudy, EveryRoundAsksOtherQuestions) {
  SelfStudyOptions options = kOptions;
  options.n_conversations = 24;
  options.round_conversations = 8;
  StudyStats stats;
  ASSERT_TRUE(study(options, &stats).ok());
  EXPECT_EQ(stats.n_rounds, 3);
  ASSERT_EQ(stats.questions.size(), 24u);
  const auto round = [&](int i) {
    return std::set<std::string>(stats.questions.begin() + 8 * i, stats.questions.begin() + 8 * i + 8);
  };
  EXPECT_NE(round(0), round(1));
  EXPECT_NE(round(1), round(2));
  const std::set<std::string> all(stats.questions.begin(), stats.questions.end());
  EXPECT_EQ(all.size(), 24u - static_cast<size_t>(stats.n_repeated));
  EXPECT_LT(stats.n_repeated, 4);
}

TEST_F(SelfStudy, ARoundIsLongerForALongerText) {
  const SelfStudyOptions options{.n_conversations = 100, .round_conversations = 24};
  for (const auto& [n_rows, expected] :
       {std::pair{0, 24}, {512, 24}, {6143, 24}, {6144, 48}, {8192, 48}, {16384, 96}, {100000, 100}})
    EXPECT_EQ(study_round(options, n_rows), expected) << n_rows;
}

TEST_F(SelfStudy, RepeatedQuestionsAreNotAnswered) {
  SelfStudyOptions options = kOptions;
  options.temperature = 0.001f;  // the same question every time
  options.round_conversations = 5;
  StudyStats stats;
  Replay replay;
  ASSERT_TRUE(
      self_study(engine_->executor(), *sequence_, ids_, options, {.max_query_bytes = kCap}, &replay, &stats).ok());
  EXPECT_EQ(stats.n_conversations, 12);
  EXPECT_EQ(stats.n_repeated, 11);
  ASSERT_EQ(replay.parts.size(), 1u) << "what was not answered cannot be compared";
  const auto n_question = static_cast<int64_t>(encode(*engine_, stats.questions[0]).size());
  EXPECT_EQ(replay.parts[0].n_prompt, n_question + 2);
  EXPECT_EQ(stats.n_tokens, 1 + 12 * n_question + (static_cast<int64_t>(replay.parts[0].ids.size()) - n_question));
}

TEST_F(SelfStudy, ATimeLimitEndsItAfterTheRoundThatRuns) {
  SelfStudyOptions options = kOptions;
  options.round_conversations = 4;
  options.time_limit_seconds = 1e-9;
  StudyStats stats;
  ASSERT_TRUE(study(options, &stats).ok());
  EXPECT_TRUE(stats.hit_time_limit);
  EXPECT_EQ(stats.n_conversations, 4);
  options.time_limit_seconds = 3600;
  ASSERT_TRUE(study(options, &stats).ok());
  EXPECT_FALSE(stats.hit_time_limit);
  EXPECT_EQ(stats.n_conversations, 12);
}

// ---- openings with known questions ----

TEST_F(SelfStudy, KnownQuestionsComeFirstAndOnce) {
  SelfStudyOptions options = kOptions;
  options.n_conversations = 20;
  options.round_conversations = 10;
  options.uses_prompts = true;
  options.max_prompt_answer_tokens = 64;
  StudyStats stats;
  Replay replay;
  ASSERT_TRUE(
      self_study(engine_->executor(), *sequence_, ids_, options, {.max_query_bytes = kCap}, &replay, &stats).ok());
  ASSERT_EQ(stats.questions.size(), 20u);
  const char* words[] = {"Repeat", "Summarise", "List", "Restructure", "questions"};
  for (size_t i = 0; i < std::size(words); ++i)
    for (size_t k = 0; k < stats.questions.size(); ++k)
      EXPECT_EQ(stats.questions[k].find(words[i]) != std::string::npos, k == i) << words[i] << " in " << k;
  size_t longest = 0;
  for (size_t i = 0; i < 5; ++i) {
    const Replay::Part& part = replay.parts[i];
    EXPECT_EQ(part.n_prompt, static_cast<int64_t>(encode(*engine_, stats.questions[i]).size()) + 2);
    longest = std::max(longest, part.ids.size() - static_cast<size_t>(part.n_prompt));
    EXPECT_LE(part.ids.size() - static_cast<size_t>(part.n_prompt), 64u);
  }
  EXPECT_GT(longest, static_cast<size_t>(options.max_answer_tokens)) << "they may answer at length";
}

// ---- what goes wrong ----

TEST_F(SelfStudy, ACancelAtAnyMomentLeavesNothingBehind) {
  const int64_t n_used = engine_->block_pool().stats().n_blocks_used;
  const std::string before = fingerprint(*sequence_);
  SelfStudyOptions options = kOptions;
  options.n_conversations = 48;
  options.uses_prompts = true;
  int n_cancelled = 0;
  for (int i = 0; i < 8; ++i) {
    std::atomic<bool> cancel{false};
    std::thread canceller([&] {
      std::this_thread::sleep_for(std::chrono::milliseconds(3 * i * i));
      cancel = true;
    });
    const auto sets = study(options, nullptr, &cancel);
    canceller.join();
    EXPECT_TRUE(sets.ok() || sets.error().kind == ErrorKind::cancelled);
    n_cancelled += sets.ok() ? 0 : 1;
    EXPECT_EQ(engine_->block_pool().stats().n_blocks_used, n_used);
  }
  EXPECT_GT(n_cancelled, 0);
  EXPECT_TRUE(fingerprint(*sequence_) == before);
}

TEST_F(SelfStudy, OptionsOutOfRangeAreErrors) {
  const auto kind_of = [&](auto change) {
    SelfStudyOptions options = kOptions;
    change(options);
    const auto sets = study(options);
    return sets.ok() ? ErrorKind::io : sets.error().kind;
  };
  const ErrorKind expected = ErrorKind::invalid_argument;
  EXPECT_EQ(kind_of([](SelfStudyOptions& o) { o.n_conversations = 0; }), expected);
  EXPECT_EQ(kind_of([](SelfStudyOptions& o) { o.round_conversations = 0; }), expected);
  EXPECT_EQ(kind_of([](SelfStudyOptions& o) { o.max_question_tokens = 0; }), expected);
  EXPECT_EQ(kind_of([](SelfStudyOptions& o) { o.max_answer_tokens = 5000; }), expected);
  EXPECT_EQ(kind_of([](SelfStudyOptions& o) { o.max_prompt_answer_tokens = -1; }), expected);
  EXPECT_EQ(kind_of([](SelfStudyOptions& o) { o.temperature = 0; }), expected);
  EXPECT_EQ(kind_of([](SelfStudyOptions& o) { o.temperature = std::nanf(""); }), expected);
  EXPECT_EQ(kind_of([](SelfStudyOptions& o) { o.coverage_tolerance = 2; }), expected);
  EXPECT_EQ(kind_of([](SelfStudyOptions& o) { o.time_limit_seconds = -1; }), expected);
}

TEST_F(SelfStudy, ATemplateWithoutTurnsIsUnsupported) {
  const auto engine = open_scribe({.n_ctx = 512, .chat_template = "{{ messages[0].content }}"});
  kv::SequenceCache sequence(engine->block_pool());
  ASSERT_TRUE(engine->prefill(sequence, ids_).ok());
  const auto sets =
      self_study(engine->executor(), sequence, ids_, kOptions, {.max_query_bytes = kCap}, nullptr, nullptr);
  ASSERT_FALSE(sets.ok());
  EXPECT_EQ(sets.error().kind, ErrorKind::unsupported);
}

// A user turn that opens with a whole question: all that is left to the model is to end it.
TEST_F(SelfStudy, AModelThatEndsEveryQuestionAtOnce) {
  const auto engine =
      open_scribe({.n_ctx = 512,
                   .chat_template = "{% for m in messages %}{% if m.role == 'user' %}<|user|>What is "
                                    "the badge number of Rachel Young?{{ m.content }}<|end|>{% else %}"
                                    "<|assistant|>{{ m.content }}<|end|>{% endif %}{% endfor %}"
                                    "{% if add_generation_prompt %}<|assistant|>{% endif %}"});
  kv::SequenceCache sequence(engine->block_pool());
  ASSERT_TRUE(engine->prefill(sequence, ids_).ok());
  const int64_t n_used = engine->block_pool().stats().n_blocks_used;
  SelfStudyOptions options = kOptions;
  options.temperature = 0.001f;
  const auto ask = [&](StudyStats* stats) {
    return self_study(engine->executor(), sequence, ids_, options, {.max_query_bytes = kCap}, nullptr, stats);
  };
  const auto nothing = ask(nullptr);
  ASSERT_FALSE(nothing.ok());
  EXPECT_EQ(nothing.error().kind, ErrorKind::unsupported);
  // With prompts there is something to learn from.
  options.uses_prompts = true;
  StudyStats stats;
  const auto sets = ask(&stats);
  ASSERT_TRUE(sets.ok()) << sets.error().message;
  EXPECT_EQ(stats.n_conversations, 12);
  EXPECT_EQ(stats.questions[11], "");
  EXPECT_EQ(stats.n_repeated, 0);
  EXPECT_EQ(engine->block_pool().stats().n_blocks_used, n_used);
}

}  // namespace
}  // namespace sh::engine
