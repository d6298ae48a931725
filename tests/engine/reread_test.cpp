// SPDX-License-Identifier: MIT
#include <numeric>

#include "engine/compact_sequence.h"
#include "engine/reference_queries.h"
#include "engine/row_coverage.h"
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
  // Two pieces, the second with a lead-in of 8 tokens, each behind the opening and instruction.
  const auto n_opening =
      static_cast<int32_t>(encode(*engine, "<|user|>").size() + encode(*engine, "Repeat the text above.").size() +
                           encode(*engine, "<|end|><|assistant|>").size());
  EXPECT_EQ(stats.n_tokens, 2 * n_opening + n + 8);
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

// The text is read in samples: a share of it in pieces of equal length, what leads in among them, but never less
// than 24 tokens.
TEST(RepeatPrefill, ASampleIsAShareInEvenPieces) {
  const auto engine = open_scribe({.n_ctx = 4096});
  const std::vector<int32_t> ids = document_ids(*engine, read_document("2048", 0));
  kv::SequenceCache sequence(engine->block_pool());
  ASSERT_TRUE(engine->prefill(sequence, ids).ok());
  const auto lengths = [&](double fraction) {
    Replay replay;
    StudyStats stats;
    EXPECT_TRUE(repeat_prefill(engine->executor(), sequence, ids, fraction, {}, &replay, &stats).ok());
    std::vector<int64_t> n;
    for (const Replay::Part& part : replay.parts) n.push_back(std::ssize(part.ids));
    EXPECT_EQ(stats.n_tokens, std::accumulate(n.begin(), n.end(), int64_t{0})) << "nothing is fed before a sample";
    return n;
  };
  const auto n = static_cast<double>(ids.size());
  EXPECT_EQ(lengths(1 / n), (std::vector<int64_t>{20}));
  EXPECT_EQ(lengths(32 / n), (std::vector<int64_t>{32}));
  EXPECT_EQ(lengths(41 / n), (std::vector<int64_t>{41}));
  EXPECT_EQ(lengths(100 / n), (std::vector<int64_t>{34, 34, 34}));
}

// Rows and queries that both grew with the text would make a compaction's cost grow with its square.
TEST(RepeatPrefill, PresetsThatSampleReadNoMoreOfALongText) {
  for (const char* name : {"select", "solver", "omp"}) {
    SCOPED_TRACE(name);
    const compaction::CompactionMethod method = method_of({.method = name}).value();
    const auto n = [&](int64_t n_text) { return method.fraction_to_read(n_text) * static_cast<double>(n_text); };
    EXPECT_LE(n(1024), n(4096));
    EXPECT_LT(n(4096), 100);
    EXPECT_NEAR(n(16384), n(131072), 1e-6);
    // A share that is asked for is the share that is read.
    const auto asked = method_of({.method = name, .reread_fraction = 0.5}).value();
    EXPECT_EQ(asked.fraction_to_read(131072), 0.5);
  }
  EXPECT_EQ(method_of({.method = "kvzip"}).value().fraction_to_read(131072), 1.0);
}

/// What a gathering gave, under different batches, threads and room.
class RepeatPrefillBatches : public ::testing::Test {
 protected:
  struct Outcome {
    int64_t n_fed = 0;
    QuerySets sets;
    std::vector<std::vector<float>> scores;
    ReplayCheck check;
  };
  /// `tokens_free`: > 0 leaves the pool room for about so many tokens in every head beside the document.
  static Outcome run(const EngineOptions& options, double fraction, int64_t tokens_free = 0) {
    Outcome out;
    const auto engine = open_scribe(options);
    const std::vector<int32_t> ids = document_ids(*engine, read_document("512", 3));
    kv::SequenceCache sequence(engine->block_pool()), truncated(engine->block_pool());
    EXPECT_TRUE(engine->prefill(sequence, ids).ok());
    truncated = sequence.fork();
    EXPECT_TRUE(
        compact_sequence(engine->executor(), truncated, ids, nullptr, {.method = "truncate", .ratio = 4}).ok());
    const int64_t n_used = engine->block_pool().stats().n_blocks_used;
    const auto plans = plan_heads(sequence, Region{kv::Pos(4), sequence.next_pos(), {}}, false);
    RowCoverage coverage(engine->executor(), sequence, plans);
    StudyStats stats;
    std::optional<ReplayReference> reference;
    const GatherContext context{
        .max_query_bytes = 60 * 10400, .coverage = &coverage, .n_compared = 50, .reference = &reference};
    {
      std::optional<PoolFiller> filler;
      if (tokens_free > 0) filler.emplace(engine->block_pool(), 10 * (tokens_free / 16) * int64_t{4096});
      auto sets = repeat_prefill(engine->executor(), sequence, ids, fraction, context, nullptr, &stats);
      EXPECT_TRUE(sets.ok()) << (sets.ok() ? "" : sets.error().message);
      if (!sets.ok()) return out;
      out.sets = std::move(*sets);
    }
    EXPECT_EQ(engine->block_pool().stats().n_blocks_used, n_used);
    out.n_fed = stats.n_tokens;
    out.scores = coverage.scores();
    EXPECT_EQ(reference->n_tokens(), 50);
    out.check = reference->compare(engine->executor(), truncated).value();
    return out;
  }
  static void expect_same(const Outcome& a, const Outcome& b) {
    EXPECT_EQ(a.n_fed, b.n_fed);
    EXPECT_EQ(a.scores, b.scores);
    // Batches of another shape round differently.
    EXPECT_NEAR(a.check.kl_mean, b.check.kl_mean, 1e-4 * b.check.kl_mean);
    ASSERT_EQ(a.sets.size(), b.sets.size());
    for (size_t l = 0; l < a.sets.size(); ++l)
      for (size_t h = 0; h < a.sets[l].size(); ++h) {
        EXPECT_EQ(a.sets[l][h].pos, b.sets[l][h].pos);
        EXPECT_EQ(a.sets[l][h].lse, b.sets[l][h].lse);
        EXPECT_EQ(a.sets[l][h].queries.data, b.sets[l][h].queries.data);
        EXPECT_EQ(a.sets[l][h].out.data, b.sets[l][h].out.data);
      }
  }
};

// Few pieces, of which each is fed with the opening, and many, which share it; and a capture that is thinned.
TEST_F(RepeatPrefillBatches, ChangeNothing) {
  for (const double fraction : {0.2, 0.8}) {
    SCOPED_TRACE(fraction);
    const Outcome expected = run({.n_ctx = 2048, .n_ubatch = 512, .n_threads = 2}, fraction);
    ASSERT_GT(expected.n_fed, 50);
    EXPECT_GT(expected.check.kl_mean, 0.1) << "a comparison of equal caches would prove nothing";
    expect_same(run({.n_ctx = 2048, .n_ubatch = 7, .n_threads = 1}, fraction), expected);
    expect_same(run({.n_ctx = 2048, .n_ubatch = 50, .n_threads = 2}, fraction), expected);
    expect_same(run({.n_ctx = 2048, .n_ubatch = 512, .n_threads = 2}, fraction, 128), expected);
  }
}

TEST(RepeatPrefill, AFullPoolIsAnErrorThatLeavesNothingBehind) {
  const auto engine = open_scribe({.n_ctx = 1024});
  const std::vector<int32_t> ids = document_ids(*engine, read_document("512", 3));
  kv::SequenceCache sequence(engine->block_pool());
  ASSERT_TRUE(engine->prefill(sequence, ids).ok());
  const int64_t n_used = engine->block_pool().stats().n_blocks_used;
  for (const double fraction : {0.1, 0.8}) {
    const PoolFiller filler(engine->block_pool(), 4096);
    const auto sets = repeat_prefill(engine->executor(), sequence, ids, fraction, {}, nullptr, nullptr);
    ASSERT_FALSE(sets.ok());
    EXPECT_EQ(sets.error().kind, ErrorKind::out_of_memory);
  }
  EXPECT_EQ(engine->block_pool().stats().n_blocks_used, n_used);
}

}  // namespace
}  // namespace sh::engine
