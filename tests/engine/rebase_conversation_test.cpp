// SPDX-License-Identifier: MIT
// A conversation past the range that the model was trained for, compacted and renumbered as it grows.
#include "engine/conversation.h"
#include "engine/scheduler_bench.h"

namespace sh::engine {
namespace {

EngineOptions growing_options(bool rebases) {
  return {.n_ctx = 512,
          .compact_threshold = 0.9,
          .compact_ratio = 3,
          .compact_method = "select",
          .compact_rebase = rebases};
}

TEST(RebasedConversation, GoesOnPastTheTrainedRangeAndStillReads) {
  const auto engine = open_scribe(growing_options(true));
  const int64_t n_trained = engine->model().info().n_ctx_train;
  EXPECT_GT(engine->n_ctx_logical(), 100 * n_trained);
  Conversation conversation(*engine, false);
  const std::string prose = read_file(std::string(SH_SOURCE_DIR) + "/models/prose/sherlock_holmes.txt").value();
  const std::vector<int32_t> text = encode(*engine, prose.substr(0, 60000));
  ASSERT_GT(std::ssize(text), n_trained + 1024);
  ASSERT_TRUE(conversation.append(encode(*engine, "<|bos|><|system|>"), {}).ok());
  size_t at = 0;
  int64_t n_before = 0;  // positions given anew before
  int n_times = 0;
  while (conversation.n_tokens() < n_trained + 1024) {
    const size_t n_piece = 64;
    ASSERT_TRUE(conversation.append(std::span(text).subspan(at, n_piece), {}).ok());
    at += n_piece;
    EXPECT_LT(conversation.cache().next_pos().value, n_trained);
    if (!conversation.wants_compaction()) continue;
    const auto report = conversation.compact_automatically({}, nullptr);
    ASSERT_TRUE(report.ok()) << report.error().message;
    EXPECT_GE(conversation.n_rebased(), n_before);
    n_times += conversation.n_rebased() > n_before;
    n_before = conversation.n_rebased();
    EXPECT_EQ(conversation.cache().usage().n_logical, conversation.n_tokens());
    EXPECT_EQ(conversation.cache().usage().n_rebases, n_times);
    EXPECT_LE(conversation.n_physical(), 512);
  }
  EXPECT_GE(n_times, 1);
  EXPECT_EQ(conversation.n_tokens(), conversation.cache().next_pos().value + conversation.n_rebased());
  EXPECT_GT(conversation.n_compactions(), 12);

  // What is read now is understood: a fact and a question about it.
  ASSERT_TRUE(
      conversation
          .append(encode(*engine, " The badge number of Rachel Young is 70623. The sky was blue.<|end|>"), {})
          .ok());
  EXPECT_EQ(ask(*engine, conversation.cache(), "Tell me the badge number of Rachel Young."), "70623");
  // And cutting the conversation back still counts in tokens.
  const int64_t n = conversation.n_tokens();
  ASSERT_TRUE(conversation.truncate(n - 5).ok());
  EXPECT_EQ(conversation.n_tokens(), n - 5);
  EXPECT_EQ(conversation.cache().usage().n_logical, n - 5);
  EXPECT_FALSE(conversation.truncate(conversation.n_compacted_tokens() - 1).ok());
}

// Through the scheduler, where requests bring the whole conversation every time: it must be found again although
// its rows have other positions now.
TEST(RebasedConversation, ASlotAnswersOnPastTheTrainedRange) {
  for (const bool rebases : {true, false}) {
    EngineOptions options = growing_options(rebases);
    options.n_parallel = 1;
    Bench bench(options);
    const int64_t n_trained = bench.engine->model().info().n_ctx_train;
    std::vector<int32_t> tokens = bench.ids;
    const std::string prose = read_file(std::string(SH_SOURCE_DIR) + "/models/prose/sherlock_holmes.txt").value();
    const std::vector<int32_t> text = encode(*bench.engine, prose.substr(0, 60000));
    size_t at = 0;
    bool has_ended = false;
    int64_t n_rebases = 0;
    while (std::ssize(tokens) < n_trained + 600) {
      const std::vector<int32_t> more(text.begin() + static_cast<std::ptrdiff_t>(at),
                                      text.begin() + static_cast<std::ptrdiff_t>(at + 700));
      at += 700;
      const std::vector<int32_t> prompt = joined(tokens, more);
      Client client;
      if (!bench.scheduler->submit(bench.greedy(prompt, 4), client.sink()).ok()) {
        has_ended = true;
        break;
      }
      const GenerationEvent last = client.last();
      ASSERT_NE(last.stop_reason, StopReason::failed) << (last.error ? last.error->message : "");
      EXPECT_EQ(last.timings.prompt_n + last.timings.cache_n, std::ssize(prompt));
      if (std::ssize(tokens) > std::ssize(bench.ids)) {
        EXPECT_EQ(last.timings.cache_n, std::ssize(tokens)) << "the conversation was not found again";
      }
      n_rebases = last.n_rebases;
      tokens = Bench::conversation(prompt, client.ids());
    }
    EXPECT_EQ(has_ended, !rebases) << "without new positions it ends at the trained range";
    if (!rebases) continue;
    EXPECT_GE(n_rebases, 1);
    const SlotStatus slot = bench.scheduler->slots()[0];
    EXPECT_GT(slot.n_logical, n_trained);
    EXPECT_EQ(slot.usage.n_logical, slot.n_logical);
    EXPECT_LT(slot.usage.n_positions, n_trained);
    EXPECT_EQ(slot.usage.n_rebases, n_rebases);
    EXPECT_LE(bench.scheduler->slots()[0].usage.n_physical, 512);
  }
}

}  // namespace
}  // namespace sh::engine
