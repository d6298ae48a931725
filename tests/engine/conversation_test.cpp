// SPDX-License-Identifier: MIT
#include "engine/conversation.h"

#include <gtest/gtest.h>

#include <algorithm>

#include "engine/generate.h"
#include "engine/scribe.h"

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
  EXPECT_FALSE(conversation.compact_automatically({.n_keep = 80}, nullptr, {}).ok());
  EXPECT_FALSE(conversation.wants_compaction());
  ASSERT_TRUE(conversation.append(std::span(ids).first(10), {}).ok());
  EXPECT_TRUE(conversation.wants_compaction());
  ASSERT_TRUE(conversation.compact_automatically({.n_keep = 0}, nullptr, {}).ok());
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
  EXPECT_FALSE(conversation.compact_automatically({.n_keep = 64}, nullptr).ok());
  EXPECT_TRUE(conversation.wants_compaction());
}

TEST(Conversation, AnAttemptThatWasCancelledOrForgottenIsDueAgain) {
  const auto engine =
      open({.model_path = kScribe, .n_ctx = 160, .compact_threshold = 0.5, .compact_method = "select"});
  Conversation conversation(*engine, true);
  ASSERT_TRUE(conversation.append(std::vector<int32_t>(80, 100), {}).ok());
  const std::atomic<bool> cancel{true};
  const auto cancelled = conversation.compact_automatically({.n_keep = 0}, &cancel);
  ASSERT_FALSE(cancelled.ok());
  EXPECT_EQ(cancelled.error().kind, ErrorKind::cancelled);
  EXPECT_TRUE(conversation.wants_compaction());
  EXPECT_FALSE(conversation.compact_automatically({.n_keep = 80}, nullptr).ok());
  EXPECT_FALSE(conversation.wants_compaction());
  conversation.forget_last_attempt();
  EXPECT_TRUE(conversation.wants_compaction());
}

TEST(Conversation, ASnapshotIsCompactedWhileTheConversationGoesOn) {
  const auto engine = open({.model_path = kScribe, .n_ctx = 512});
  const std::vector<int32_t> start =
      encode_opening(*engine, "It was the best of times, it was the worst of times");
  std::vector<int32_t> text = start;
  while (text.size() < 200) text.insert(text.end(), start.begin() + 1, start.end());
  const std::vector<int32_t> more = encode_following(*engine, " and so on and on");
  const CompactionRequest request{.method = "solver", .ratio = 4};

  Conversation foreground(*engine, false), conversation(*engine, false);
  for (Conversation* c : {&foreground, &conversation}) ASSERT_TRUE(c->append(text, {}).ok());
  const std::string before = fingerprint(conversation.cache());
  Executor executor(*engine, 2, ThreadPriority::background);
  {
    Conversation::Snapshot cancelled = conversation.snapshot(request);
    const std::atomic<bool> cancel{true};
    const auto report = compact_sequence(executor, cancelled.cache, cancelled.tokens, nullptr, request, &cancel);
    ASSERT_FALSE(report.ok());
    EXPECT_EQ(report.error().kind, ErrorKind::cancelled);
  }
  EXPECT_EQ(fingerprint(conversation.cache()), before) << "bit for bit";

  // Both have been sealed once: where blocks end decides in which order a forward sums.
  foreground.snapshot(request);
  Conversation::Snapshot snapshot = conversation.snapshot(request);
  ASSERT_TRUE(conversation.append(more, {}).ok());
  ASSERT_TRUE(compact_sequence(executor, snapshot.cache, snapshot.tokens, nullptr, request).ok());
  const auto n_snapshot = static_cast<int64_t>(text.size()), n_more = static_cast<int64_t>(more.size());
  const std::vector<kv::HeadRows> live = [&] {
    std::vector<kv::HeadRows> rows;
    for (int32_t layer = 0; layer < 5; ++layer) rows.push_back(conversation.cache().copy_head(layer, 0));
    return rows;
  }();
  ASSERT_TRUE(conversation.adopt(snapshot.cache, n_snapshot).ok());
  ASSERT_TRUE(foreground.compact(request).ok());
  EXPECT_EQ(conversation.n_tokens(), n_snapshot + n_more);
  EXPECT_NEAR(conversation.n_physical(), foreground.n_physical() + static_cast<double>(n_more), 1e-9);
  // Before the boundary the rows of the compaction, from there on those that were there.
  for (int32_t layer = 0; layer < 5; ++layer) {
    const kv::HeadRows rows = conversation.cache().copy_head(layer, 0),
                       expected = foreground.cache().copy_head(layer, 0);
    const size_t n = expected.pos.size(), n_old = live[static_cast<size_t>(layer)].pos.size();
    ASSERT_EQ(rows.pos.size(), n + more.size());
    EXPECT_TRUE(std::equal(expected.pos.begin(), expected.pos.end(), rows.pos.begin()));
    EXPECT_TRUE(std::equal(expected.bias.begin(), expected.bias.end(), rows.bias.begin()));
    EXPECT_TRUE(std::equal(expected.keys.begin(), expected.keys.end(), rows.keys.begin()));
    EXPECT_TRUE(std::equal(expected.values.begin(), expected.values.end(), rows.values.begin()));
    const kv::HeadRows& old = live[static_cast<size_t>(layer)];
    const size_t key_bytes = rows.keys.size() / rows.pos.size();
    EXPECT_TRUE(std::equal(rows.keys.begin() + static_cast<std::ptrdiff_t>(n * key_bytes), rows.keys.end(),
                           old.keys.begin() + static_cast<std::ptrdiff_t>((n_old - more.size()) * key_bytes)));
  }
  // A roll-back stops at what was compacted.
  EXPECT_TRUE(conversation.truncate(n_snapshot).ok());
  const auto refused = conversation.truncate(100);
  ASSERT_FALSE(refused.ok());
  EXPECT_EQ(refused.error().kind, ErrorKind::unsupported);
}

TEST(Conversation, AutomaticRequestsFollowTheOptions) {
  const auto engine = open({.model_path = kScribe,
                            .n_ctx = 320,
                            .compact_threshold = 0.5,
                            .compact_ratio = 4,
                            .compact_method = "select",
                            .compact_keep = -1,
                            .compact_pinned = {{50, 60}, {150, 900}},
                            .compact_max_kl = 0.5,
                            .compact_target_kl = 0.25,
                            .compact_options = {{"fit", "both"}, {"conversations", "7"}}});
  Conversation conversation(*engine, false);
  conversation.set_first_prompt(12);
  ASSERT_TRUE(conversation.append(std::vector<int32_t>(160, 100), {}).ok());
  const auto request = conversation.automatic_request({});
  ASSERT_TRUE(request.ok()) << request.error().message;
  EXPECT_EQ(request->method, "select");
  EXPECT_EQ(request->n_protected_prefix, 12) << "the first prompt";
  EXPECT_EQ(request->n_live_suffix, 20);
  EXPECT_EQ(request->max_kl, 0.5);
  EXPECT_EQ(request->target.kl, 0.25);
  EXPECT_EQ(request->fit, compaction::Fit::both);
  EXPECT_EQ(request->self_study.n_conversations, 7);
  ASSERT_EQ(request->pinned.size(), 2u);
  EXPECT_EQ(request->pinned[1].end, 160) << "what has not been said cannot be pinned";
  // 40 rows are the low watermark; 12, 10 and the last 20 of them stay: a tenth of the others is too few, so that
  // half of the ratio is taken.
  EXPECT_EQ(request->target_rows, (160 - 12 - 10 - 20) / 8);
  EXPECT_EQ(conversation.automatic_request({.n_keep = 30})->n_protected_prefix, 30);
  const auto delayed = conversation.automatic_request({.turn_begin = 140});
  EXPECT_EQ(delayed->n_live_suffix, 20);
  EXPECT_EQ(delayed->n_recent_queries, 20);
  EXPECT_TRUE(delayed->queries->has(compaction::QuerySource::recent));
  EXPECT_EQ(conversation.automatic_request({.n_keep = -1})->n_protected_prefix, 12) << "of the first prompt";
  EXPECT_EQ(conversation.requested_by_flags(-1)->n_protected_prefix, 12);
  const auto held = conversation.automatic_request({.n_keep = 160});
  ASSERT_FALSE(held.ok()) << "everything is to stay";
  EXPECT_NE(held.error().message.find("of 160 positions 160 at the start, 0 at the end and 0 in pinned"),
            std::string::npos)
      << held.error().message;
  EXPECT_NE(conversation.full_error("no", -1).message.find("--keep, n_keep in a request, holds 12 tokens"),
            std::string::npos);
  const auto by_error = open({.model_path = kScribe, .n_ctx = 320, .compact_target_head_error = 0.125});
  EXPECT_EQ(Conversation(*by_error, false).requested_by_flags(0)->target.head_error, 0.125);
  EngineOptions bad{.model_path = kScribe, .compact_options = {{"fit", "perhaps"}}};
  EXPECT_FALSE(Engine::open(bad).ok());
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

// 452 rows of 512 are held and the newest 32 stay, too: nothing worth a compaction.
TEST(Generate, NextToNothingIsNotCompactedAndThatIsToldOnce) {
  const auto engine =
      open({.model_path = kScribe, .n_ctx = 512, .compact_threshold = 0.9, .compact_method = "select"});
  Conversation conversation(*engine, false);
  const std::vector<int32_t> prompt(452, 100), more(5, 101);
  const auto report =
      generate(*engine, conversation, prompt, {.n_predict = 50, .ignore_eos = true, .n_keep = -1}, {});
  ASSERT_TRUE(report.ok()) << report.error().message;
  EXPECT_EQ(report->n_answer, 50) << "past two attempts";
  EXPECT_TRUE(report->compactions.empty());
  ASSERT_EQ(report->compaction_failures.size(), 1u);
  EXPECT_NE(report->compaction_failures[0].find("452 at the start"), std::string::npos)
      << report->compaction_failures[0];
  const auto held = conversation.automatic_request({.n_keep = -1});
  ASSERT_FALSE(held.ok());
  EXPECT_EQ(
      held.error().message,
      "too few rows may go: of 502 positions 452 at the start, 32 at the end and 0 in pinned spans stay as they "
      "are, and 15 rows a head could be gained, of 16 that are worth a compaction");
  const auto next = generate(*engine, conversation, more, {.n_predict = 1, .n_keep = -1}, {});
  ASSERT_TRUE(next.ok()) << next.error().message;
  EXPECT_TRUE(next->compaction_failures.empty()) << "nothing new";
  const auto freed = generate(*engine, conversation, more, {.n_predict = 1}, {});
  ASSERT_TRUE(freed.ok()) << freed.error().message;
  EXPECT_EQ(freed->compactions.size(), 1u) << "nothing is held now";
}

TEST(Conversation, FlagsThatHoldNearlyAllRowsAreToldAtTheStart) {
  const auto text = [](int64_t n_keep, EngineOptions options) {
    options.model_path = kScribe;
    options.n_ctx = 512;
    return held_rows_text(*open(options), n_keep);
  };
  EXPECT_EQ(text(500, {}), "") << "nothing is compacted at all";
  EXPECT_EQ(text(0, {.compact_threshold = 0.9}), "");
  EXPECT_EQ(text(-1, {.compact_threshold = 0.9, .compact_keep = -1}), "") << "nobody knows the first prompt yet";
  EXPECT_EQ(text(300, {.compact_threshold = 0.9, .compact_pinned = {{250, 350}}}), "");
  EXPECT_NE(text(450, {.compact_threshold = 0.9}).find("hold 450 of the 512 rows"), std::string::npos);
  EXPECT_NE(text(0, {.compact_threshold = 0.9, .compact_keep = 200, .compact_pinned = {{100, 460}, {470, 9000}}})
                .find("hold 502 of the 512 rows"),
            std::string::npos);
}

TEST(Conversation, ARatioThatIsNotReachedIsTold) {
  const auto engine = open({.model_path = kScribe,
                            .n_ctx = 320,
                            .compact_threshold = 0.5,
                            .compact_ratio = 4,
                            .compact_method = "select"});
  for (const int64_t n_keep : {0, 80}) {
    Conversation conversation(*engine, false);
    ASSERT_TRUE(conversation.append(std::vector<int32_t>(160, 100), {}).ok());
    const auto report = conversation.compact_automatically({.n_keep = n_keep}, nullptr);
    ASSERT_TRUE(report.ok()) << report.error().message;
    EXPECT_EQ(shortfall_text(*report),
              n_keep == 0 ? "" : ", not the 40 that --compact-ratio asks for: 100 stay as they are");
  }
}

// What ends a conversation that is compacted is not -c.
TEST(Generate, TheLimitThatBindsIsNamed) {
  const auto limit = [](double threshold, int64_t n_ctx, bool rebases) {
    return open({.model_path = kScribe, .n_ctx = n_ctx, .compact_threshold = threshold, .compact_rebase = rebases})
        ->length_limit();
  };
  EXPECT_NE(limit(0, 128, false).find("the context has 128 tokens (raise -c, or let it be"), std::string::npos);
  EXPECT_NE(limit(0.9, 128, false).find("the model was trained for 8192 tokens (--compact-rebase"),
            std::string::npos);
  EXPECT_NE(limit(0.9, 9000, false).find("the context has 9000 tokens (raise -c, or give positions anew"),
            std::string::npos);
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
