// SPDX-License-Identifier: MIT
#include "engine/conversation.h"

#include <gtest/gtest.h>

#include <algorithm>

#include "engine/generate.h"

namespace sh::engine {
namespace {

std::unique_ptr<Engine> open(EngineOptions options) {
  options.n_threads = 1;
  auto engine = Engine::open(std::move(options));
  EXPECT_TRUE(engine.ok()) << (engine.ok() ? "" : engine.error().message);
  return std::move(*engine);
}
const std::string kScribe = std::string(SH_SOURCE_DIR) + "/models/scribe.gguf";
const std::string kWithoutTemplate = std::string(SH_SOURCE_DIR) + "/tests/golden/llama.gguf";

TEST(TurnFormat, JoinsTurnsWithEveryCharacterOfTheTemplate) {
  const auto chat_ml = open({.model_path = kWithoutTemplate, .n_ctx = 64});
  const TurnFormat format(*chat_ml);
  const auto first = format.first_turn("S", "A"), next = format.next_turn("B");
  ASSERT_TRUE(first.ok() && next.ok());
  EXPECT_EQ(*first, "<|im_start|>system\nS<|im_end|>\n<|im_start|>user\nA<|im_end|>\n<|im_start|>assistant\n");
  EXPECT_EQ(*next, "<|im_end|>\n<|im_start|>user\nB<|im_end|>\n<|im_start|>assistant\n");
}

TEST(TurnFormat, ATemplateThatHidesAnswersIsRefused) {
  const auto engine = open({.model_path = kScribe, .n_ctx = 64, .chat_template = "{{ messages[-1]['content'] }}"});
  const auto next = TurnFormat(*engine).next_turn("B");
  ASSERT_FALSE(next.ok());
  EXPECT_EQ(next.error().kind, ErrorKind::unsupported);
}

TEST(EncodeOpening, HasOneBos) {
  const auto engine = open({.model_path = kScribe, .n_ctx = 64});
  const int32_t bos = engine->tokenizer().data().bos;
  for (const char* text : {"Hello", "<|bos|>Hello"}) {
    const std::vector<int32_t> ids = encode_opening(*engine, text);
    EXPECT_EQ(std::count(ids.begin(), ids.end(), bos), 1) << text;
    EXPECT_EQ(ids.front(), bos) << text;
  }
  const std::vector<int32_t> following = encode_following(*engine, "Hello");
  EXPECT_EQ(std::count(following.begin(), following.end(), bos), 0);
}

TEST(Conversation, CutBackItAnswersAsIfNothingHadFollowed) {
  const auto engine = open({.model_path = kScribe, .n_ctx = 128});
  const std::vector<int32_t> prompt = encode_opening(*engine, "It was the best of times");
  const GenerateOptions options{.sampling = {.temperature = 0}, .n_predict = 12, .ignore_eos = true};
  Conversation conversation(*engine, true);
  const auto first = generate(*engine, conversation, prompt, options, {});
  ASSERT_TRUE(first.ok()) << first.error().message;
  EXPECT_EQ(conversation.n_tokens(), static_cast<int64_t>(prompt.size()) + 12)
      << "the whole answer is in the cache";
  ASSERT_TRUE(conversation.truncate(3).ok());
  EXPECT_EQ(conversation.n_tokens(), 3);
  const auto again = generate(*engine, conversation, std::span(prompt).subspan(3), options, {});
  ASSERT_TRUE(again.ok()) << again.error().message;
  EXPECT_EQ(again->text, first->text);
  EXPECT_EQ(again->logits_hash, first->logits_hash);
}

TEST(Conversation, CompactionIsDueAtTheThresholdAndNotAgainRightAfterAnAttempt) {
  const auto engine =
      open({.model_path = kScribe, .n_ctx = 160, .compact_threshold = 0.5, .compact_method = "select"});
  Conversation conversation(*engine, true);
  const std::vector<int32_t> ids(79, 100);
  ASSERT_TRUE(conversation.append(ids, {}).ok());
  EXPECT_FALSE(conversation.wants_compaction());
  ASSERT_TRUE(conversation.append(std::span(ids).first(1), {}).ok());
  EXPECT_TRUE(conversation.wants_compaction());
  // All 80 tokens are to stay, so the attempt fails; the next one is due after a 16th of the cache.
  EXPECT_FALSE(conversation.compact_automatically(80, nullptr, {}).ok());
  EXPECT_FALSE(conversation.wants_compaction());
  ASSERT_TRUE(conversation.append(std::span(ids).first(10), {}).ok());
  EXPECT_TRUE(conversation.wants_compaction());
  ASSERT_TRUE(conversation.compact_automatically(0, nullptr, {}).ok());
  EXPECT_FALSE(conversation.wants_compaction());
  EXPECT_LT(conversation.n_physical(), 60);
  EXPECT_EQ(conversation.n_tokens(), 90);
}

TEST(Conversation, AFullCacheIsDueRightAfterAnAttempt) {
  const auto engine =
      open({.model_path = kScribe, .n_ctx = 64, .compact_threshold = 1, .compact_method = "select"});
  Conversation conversation(*engine, false);
  const std::vector<int32_t> ids(64, 100);
  ASSERT_TRUE(conversation.append(ids, {}).ok());
  EXPECT_EQ(conversation.rows_left(), 0);
  EXPECT_FALSE(conversation.compact_automatically(-1, nullptr).ok());
  EXPECT_TRUE(conversation.wants_compaction());
}

TEST(Conversation, AnAttemptThatWasCancelledOrForgottenIsDueAgain) {
  const auto engine =
      open({.model_path = kScribe, .n_ctx = 160, .compact_threshold = 0.5, .compact_method = "select"});
  Conversation conversation(*engine, true);
  ASSERT_TRUE(conversation.append(std::vector<int32_t>(80, 100), {}).ok());
  const std::atomic<bool> cancel{true};
  const auto cancelled = conversation.compact_automatically(0, &cancel);
  ASSERT_FALSE(cancelled.ok());
  EXPECT_EQ(cancelled.error().kind, ErrorKind::cancelled);
  EXPECT_TRUE(conversation.wants_compaction());
  EXPECT_FALSE(conversation.compact_automatically(-1, nullptr).ok());
  EXPECT_FALSE(conversation.wants_compaction());
  conversation.forget_last_attempt();
  EXPECT_TRUE(conversation.wants_compaction());
}

TEST(Conversation, PiecesOfOneForwardGiveWhatEachGivesAlone) {
  const auto engine = open({.model_path = kScribe, .n_ctx = 128});
  const std::vector<int32_t> first = encode_opening(*engine, "It was the best of times"),
                             second = encode_opening(*engine, "Call me");
  const int32_t n_vocab = engine->model().info().n_vocab;
  Mat<float> together(2, n_vocab), alone(1, n_vocab);
  Conversation a(*engine, false), b(*engine, false), silent(*engine, false);
  const Conversation::Piece pieces[] = {{&a, first, true}, {&silent, first, false}, {&b, second, true}};
  ASSERT_TRUE(Conversation::append_all(*engine, pieces, together.view()).ok());
  EXPECT_EQ(a.tokens(), first);
  EXPECT_EQ(silent.tokens(), first);
  EXPECT_EQ(b.tokens(), second);
  int64_t row = 0;
  for (const auto* ids : {&first, &second}) {
    Conversation c(*engine, false);
    ASSERT_TRUE(c.append(*ids, alone.view()).ok());
    const float* expected = alone.row(0);
    const float* got = together.row(row++);
    EXPECT_EQ(std::max_element(got, got + n_vocab) - got,
              std::max_element(expected, expected + n_vocab) - expected);
  }
}

TEST(Generate, RefusesWhatDoesNotFit) {
  const auto engine = open({.model_path = kScribe, .n_ctx = 32});
  Conversation conversation(*engine, false);
  EXPECT_FALSE(generate(*engine, conversation, {}, {}, {}).ok());
  const std::vector<int32_t> long_prompt(32, 100);
  const auto refused = generate(*engine, conversation, long_prompt, {}, {});
  ASSERT_FALSE(refused.ok());
  EXPECT_EQ(refused.error().kind, ErrorKind::context_exceeded);
  EXPECT_EQ(conversation.n_tokens(), 0);
}

TEST(Generate, ACancelledAnswerEndsInOrder) {
  const auto engine = open({.model_path = kScribe, .n_ctx = 128});
  Conversation conversation(*engine, false);
  std::atomic<bool> cancel{false};
  GenerateHooks hooks;
  hooks.cancel = &cancel;
  int n_pieces = 0;
  hooks.on_text = [&](std::string_view) { cancel = ++n_pieces == 3; };
  const auto report = generate(*engine, conversation, encode_opening(*engine, "It was the best of times"),
                               {.sampling = {.temperature = 0}, .ignore_eos = true}, hooks);
  ASSERT_TRUE(report.ok());
  EXPECT_EQ(report->stop_reason, StopReason::cancelled);
  EXPECT_GE(report->n_answer, 3);
  EXPECT_LT(report->n_answer, 10);
}

}  // namespace
}  // namespace sh::engine
