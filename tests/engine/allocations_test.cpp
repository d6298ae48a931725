// SPDX-License-Identifier: MIT
// Of a decoded token no buffer is new: neither of the forward, nor of what leads to it and makes text of it.
#include <gtest/gtest.h>

#include "counted_new.h"
#include "engine/conversation.h"
#include "engine/generate.h"
#include "engine/scribe.h"

namespace sh::engine {
namespace {

// Lists double now and then: of blocks, one a head; of tokens, of the text, of the pool's slots; of each worker.
constexpr int64_t kRareGrowth = 20;

TEST(Allocations, AnAnswerMakesNonePerToken) {
  const auto engine = open_scribe();
  Conversation conversation(*engine, true);
  int64_t n_texts = 0, at_begin = 0, at_end = 0;
  GenerateHooks hooks;
  hooks.on_text = [&](std::string_view) {
    if (++n_texts == 40) at_begin = n_allocations;
    if (n_texts == 40 + 64) at_end = n_allocations;
  };
  const GenerateOptions options{
      .sampling = {.seed = 1}, .n_predict = 150, .ignore_eos = true, .renders_special = true};
  const auto report =
      generate(*engine, conversation, document_ids(*engine, read_document("512", 0)), options, hooks);
  ASSERT_TRUE(report.ok());
  ASSERT_GE(n_texts, 40 + 64);
  EXPECT_LE(at_end - at_begin, kRareGrowth);
}

TEST(Allocations, ConversationsInOneBatchMakeNonePerToken) {
  // Captured queries go to memory that was there from the start.
  const auto engine = open_scribe({.n_parallel = 3, .capture_bytes = int64_t{1} << 20});
  std::vector<Conversation> conversations;
  for (int i = 0; i < 3; ++i) conversations.emplace_back(*engine, true);
  const int32_t id = 100;
  std::vector<Conversation::Piece> pieces;
  for (Conversation& conversation : conversations) pieces.push_back({&conversation, std::span(&id, 1), true});
  Mat<float> logits(3, engine->model().info().n_vocab);
  int64_t at_begin = 0;
  for (int64_t token = 0; token < 70 + 64; ++token) {
    if (token == 70) at_begin = n_allocations;
    ASSERT_TRUE(Conversation::append_all(*engine, pieces, logits.view()).ok());
  }
  EXPECT_LE(n_allocations - at_begin, 3 * kRareGrowth);
}

}  // namespace
}  // namespace sh::engine
