// SPDX-License-Identifier: MIT
#include "engine/reference_queries.h"
#include "engine/scribe.h"

namespace sh::engine {
namespace {

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
  const auto n_opening =
      static_cast<int32_t>(encode(*engine, "<|user|>").size() + encode(*engine, "Repeat the text above.").size() +
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
  const auto cancelled =
      repeat_prefill(engine->executor(), sequence, ids, 1.0, {.cancel = &cancel}, nullptr, nullptr);
  ASSERT_FALSE(cancelled.ok());
  EXPECT_EQ(cancelled.error().kind, ErrorKind::cancelled);
}

}  // namespace
}  // namespace sh::engine
