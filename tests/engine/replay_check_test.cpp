// SPDX-License-Identifier: MIT
#include "engine/replay_check.h"

#include <cmath>
#include <numeric>

#include "engine/compact_sequence.h"
#include "engine/logit_compare.h"
#include "engine/scribe.h"

namespace sh::engine {
namespace {

using kv::Pos;
using kv::SequenceCache;

constexpr int64_t kMegabyte = int64_t{1} << 20;
constexpr int64_t kNoBound = 512 * kMegabyte;

/// One document, a compacted copy of it, and a replay of its text.
class ReplayCheckTest : public ::testing::Test {
 protected:
  static void SetUpTestSuite() {
    // Batches of 48: parts of 40 tokens go one by one, longer ones in pieces.
    engine_ = open_scribe({.n_ctx = 4096, .n_ubatch = 48}).release();
    ids_ = document_ids(*engine_, read_document("512", 0));
    full_ = new SequenceCache(engine_->block_pool());
    ASSERT_TRUE(engine_->prefill(*full_, ids_).ok());
    replay_ = text_replay(*engine_, ids_, {0, n()}, 128).value();
    truncated_ = new SequenceCache(compacted("truncate", 4));
  }
  static void TearDownTestSuite() {
    delete truncated_;
    delete full_;
    delete engine_;
  }

  static int64_t n() { return static_cast<int64_t>(ids_.size()); }
  static Executor& executor() { return engine_->executor(); }
  static SequenceCache compacted(const std::string& method, double ratio) {
    SequenceCache sequence = full_->fork();
    EXPECT_TRUE(compact_sequence(executor(), sequence, ids_, nullptr, {.method = method, .ratio = ratio}).ok());
    return sequence;
  }
  static ReplayReference record(const Replay& replay, int64_t max_tokens = 100000) {
    return ReplayReference::record(executor(), *full_, replay, max_tokens, kNoBound).value();
  }
  /// Every prediction of an answer token, one part after the other, each read on its own.
  static Mat<float> predictions(const SequenceCache& sequence, const Replay& replay) {
    Mat<float> all(0, 2048);
    for (const Replay::Part& part : replay.parts) {
      SequenceCache fork = sequence.fork();
      engine_->prefill(fork, replay.opening).value();
      const Mat<float> logits = engine_->prefill(fork, part.ids, {.all_logits = true}).value();
      for (int64_t i = std::max<int64_t>(1, part.n_prompt); i < static_cast<int64_t>(part.ids.size());
           ++i, ++all.rows)
        all.data.insert(all.data.end(), logits.row(i - 1), logits.row(i - 1) + 2048);
    }
    return all;
  }

  static inline Engine* engine_;
  static inline std::vector<int32_t> ids_;
  static inline SequenceCache *full_, *truncated_;
  static inline Replay replay_;
};

TEST_F(ReplayCheckTest, TheSameCachePredictsTheSame) {
  const ReplayReference reference = record(replay_);
  EXPECT_EQ(reference.n_parts(), 4);
  // The first piece lies in the middle of its stretch and has a lead-in, too.
  EXPECT_EQ(reference.n_tokens(), 128);
  const ReplayCheck check = reference.compare(executor(), full_->fork()).value();
  EXPECT_EQ(check.n_tokens, 128);
  EXPECT_LT(check.kl_mean, 1e-9);
  EXPECT_EQ(check.top1, 1);
  EXPECT_EQ(check.confident_flips, 0);
  EXPECT_EQ(check.verdict, Verdict::unknown);
}

// Batches, pieces and cuts must not change what is compared.
TEST_F(ReplayCheckTest, FiguresAreThoseOfReadingEveryPartAlone) {
  Replay replay{.opening = replay_.opening, .parts = {}};
  const auto add = [&](int64_t begin, int64_t end, int64_t n_prompt) {
    replay.parts.push_back({{ids_.begin() + begin, ids_.begin() + end}, n_prompt});
  };
  add(10, 20, 4);
  add(30, 45, 0);     // begins with its answer: the first token has no prediction
  add(50, 52, 2);     // no answer
  add(60, 200, 100);  // in three batches; predictions in the last two
  add(200, 330, 8);
  add(20, 40, 10);
  const Mat<float> full = predictions(*full_, replay), small = predictions(*truncated_, replay);
  std::vector<double> kls;
  double n_same = 0, n_confident = 0, n_flips = 0;
  for (int64_t r = 0; r < full.rows; ++r) {
    const TokenComparison c = compare_logits(std::span(full.row(r), 2048), std::span(small.row(r), 2048), 0);
    kls.push_back(c.kl);
    n_same += c.is_same_top1;
    n_confident += c.is_confident;
    n_flips += c.is_confident && !c.is_same_top1;
  }
  ASSERT_EQ(kls.size(), 6u + 14u + 40u + 122u + 10u);
  const double mean_kl = mean(kls);
  ASSERT_GT(mean_kl, 0.5) << "a comparison of equal caches would prove nothing";

  const ReplayReference reference = record(replay);
  EXPECT_EQ(reference.n_parts(), 5);
  const ReplayCheck check = reference.compare(executor(), *truncated_).value();
  EXPECT_EQ(check.n_tokens, full.rows);
  // Batches of another shape round differently: 1e-5 of a logit at most.
  EXPECT_NEAR(check.kl_mean, mean_kl, 1e-4 * mean_kl);
  EXPECT_NEAR(check.kl_median, quantile(kls, 0.5), 1e-3 * quantile(kls, 0.5));
  EXPECT_NEAR(check.kl_p99, quantile(kls, 0.99), 1e-3 * quantile(kls, 0.99));
  EXPECT_NEAR(check.top1, n_same / static_cast<double>(full.rows), 1e-9);
  EXPECT_NEAR(check.confident_flips, n_flips / n_confident, 1e-9);
}

TEST_F(ReplayCheckTest, WorseCachesLookWorse) {
  const ReplayReference reference = record(replay_);
  const auto kl_of = [&](const SequenceCache& cache) {
    return reference.compare(executor(), cache).value().kl_mean;
  };
  double last = 0;
  for (const double ratio : {2.0, 4.0, 16.0}) {
    const double kl = kl_of(compacted("kvzip", ratio));
    EXPECT_GT(kl, last);
    last = kl;
  }
  EXPECT_GT(kl_of(compacted("truncate", 2)), 2 * kl_of(compacted("kvzip", 2)));
}

TEST_F(ReplayCheckTest, FiguresThatAreNotFiniteAreNotHidden) {
  std::vector<std::vector<kv::HeadRows>> rows(5);
  for (int32_t l = 0; l < 5; ++l)
    for (int32_t h = 0; h < 2; ++h) {
      rows[static_cast<size_t>(l)].push_back(full_->copy_head(l, h));
      // f16 NaN in every value
      for (std::byte& b : rows[static_cast<size_t>(l)].back().values) b = std::byte{0x7F};
    }
  SequenceCache broken(engine_->block_pool());
  ASSERT_TRUE(broken.restore(rows, full_->identity()).ok());
  const ReplayCheck check = record(replay_).compare(executor(), broken).value();
  EXPECT_EQ(check.n_tokens, 128);
  for (const double figure : {check.kl_mean, check.kl_median, check.kl_p99, check.top1, check.confident_flips})
    EXPECT_TRUE(std::isnan(figure));
}

TEST_F(ReplayCheckTest, BoundsHoldAndPartsAreSpread) {
  Replay replay{.opening = replay_.opening, .parts = {}};
  for (const int64_t n_answer : {32, 20, 30, 25})
    replay.parts.push_back({{ids_.begin(), ids_.begin() + 4 + n_answer}, 4});
  // The first and the third part are the first two that are spread over the replay.
  const ReplayReference two = record(replay, 62);
  EXPECT_EQ(two.n_parts(), 2);
  EXPECT_EQ(two.n_tokens(), 62);
  EXPECT_EQ(record(replay, 63).n_parts(), 3);
  EXPECT_EQ(record(replay, 63).n_tokens(), 63);
  EXPECT_EQ(record(replay, 1000).n_tokens(), 107);
  const auto by_bytes = ReplayReference::record(executor(), *full_, replay, 1000, 10 * 2048 * 4 + 5).value();
  EXPECT_EQ(by_bytes.n_tokens(), 10);

  // Few long parts: each gives its share of what is asked for.
  Replay two_long{.opening = {},
                  .parts = {{{ids_.begin(), ids_.begin() + 300}, 8}, {{ids_.begin(), ids_.begin() + 300}, 8}}};
  EXPECT_EQ(record(two_long, 200).n_parts(), 2);
  EXPECT_EQ(record(two_long, 200).n_tokens(), 200);

  for (const auto& [max_tokens, max_bytes] : {std::pair<int64_t, int64_t>{0, kNoBound}, {1000, 8191}, {-1, -1}}) {
    const auto none = ReplayReference::record(executor(), *full_, replay, max_tokens, max_bytes).value();
    EXPECT_EQ(none.n_tokens(), 0);
    EXPECT_EQ(none.compare(executor(), *full_).value().n_tokens, 0);
  }
  EXPECT_EQ(record(Replay{}).compare(executor(), *full_).value().n_tokens, 0);
}

TEST_F(ReplayCheckTest, NearlyFullPoolComparesPartAfterPart) {
  // Short parts, so that several share a batch where there is room.
  Replay replay{.opening = replay_.opening, .parts = {}};
  for (int64_t i = 0; i < 12; ++i)
    replay.parts.push_back({{ids_.begin() + 20 * i, ids_.begin() + 20 * i + 10}, 5});
  const ReplayReference reference = record(replay);
  const ReplayCheck with_room = reference.compare(executor(), *truncated_).value();
  const int64_t used = engine_->block_pool().stats().bytes_used;
  const int64_t head_bytes = engine_->block_pool().block_bytes(0) + kv::BlockPool::kAnnotationBytes;
  {
    // In each of 10 heads: the opening's copy of the tail and a new block, and the same for a single part.
    const PoolFiller filler(engine_->block_pool(), 10 * 4 * head_bytes);
    const auto check = reference.compare(executor(), *truncated_);
    ASSERT_TRUE(check.ok()) << check.error().message;
    EXPECT_NEAR(check->kl_mean, with_room.kl_mean, 1e-4 * with_room.kl_mean);
    EXPECT_EQ(check->n_tokens, with_room.n_tokens);
  }
  {
    const PoolFiller filler(engine_->block_pool(), head_bytes);
    const auto check = reference.compare(executor(), *truncated_);
    ASSERT_FALSE(check.ok());
    EXPECT_EQ(check.error().kind, ErrorKind::out_of_memory);
    const auto again = ReplayReference::record(executor(), *full_, replay, 256, kNoBound);
    ASSERT_FALSE(again.ok());
    EXPECT_EQ(again.error().kind, ErrorKind::out_of_memory);
  }
  EXPECT_EQ(engine_->block_pool().stats().bytes_used, used) << "forks of the comparison were left behind";
}

// Gathering keeps the logits that a recording would find.
TEST_F(ReplayCheckTest, LogitsKeptWhileGatheringAreThoseOfARecording) {
  const CompactionRequest request{.method = "kvzip", .ratio = 4, .validates = true};
  const auto queries = gather_reference_queries(executor(), *full_, ids_, nullptr, request);
  ASSERT_TRUE(queries.ok());
  ASSERT_TRUE(queries->reference.has_value());
  EXPECT_EQ(queries->reference->n_tokens(), 32);
  const ReplayCheck kept = queries->reference->compare(executor(), *truncated_).value();
  const ReplayCheck recorded = record(queries->replay, 32).compare(executor(), *truncated_).value();
  EXPECT_EQ(kept.n_tokens, recorded.n_tokens);
  EXPECT_GT(kept.kl_mean, 0.1);
  EXPECT_NEAR(kept.kl_mean, recorded.kl_mean, 1e-4 * recorded.kl_mean);
  EXPECT_LT(queries->reference->compare(executor(), *full_).value().kl_mean, 1e-9);
  const auto unchecked = gather_reference_queries(executor(), *full_, ids_, nullptr, {.method = "select"});
  ASSERT_TRUE(unchecked.ok());
  EXPECT_FALSE(unchecked->reference.has_value()) << "nobody asked for a check";
}

TEST_F(ReplayCheckTest, AsManyTokensAsAMethodCanAfford) {
  const auto n = [](const CompactionRequest& request, int64_t n_text) {
    return n_replay_tokens(method_of(request).value(), request, n_text);
  };
  EXPECT_EQ(n({.method = "select"}, 10000), 0);
  EXPECT_EQ(n({.method = "select", .validates = true}, 10000), 100);
  EXPECT_EQ(n({.method = "solver"}, 8192), 0) << "a sample";
  EXPECT_EQ(n({.method = "solver", .validates = true}, 500), 32);
  EXPECT_EQ(n({.method = "solver", .validates = true}, 8192), 81);
  EXPECT_EQ(n({.method = "context_prefill"}, 100000), kMaxReplayTokens);
  EXPECT_EQ(n({.method = "context_prefill", .validates = false}, 8192), 0);
  EXPECT_EQ(n({.method = "solver", .max_kl = 0.1}, 500), kMaxReplayTokens);
  EXPECT_EQ(n({.method = "select", .target = {.kl = 0.1}}, 500), kMaxReplayTokens);
  EXPECT_EQ(n({.method = "self_study"}, 500), kMaxReplayTokens);
}

TEST_F(ReplayCheckTest, StopsWhenCancelled) {
  const ReplayReference reference = record(replay_);
  const std::atomic<bool> cancel = true;
  const auto check = reference.compare(executor(), *truncated_, &cancel);
  ASSERT_FALSE(check.ok());
  EXPECT_EQ(check.error().kind, ErrorKind::cancelled);
  EXPECT_FALSE(ReplayReference::record(executor(), *full_, replay_, 256, kNoBound, &cancel).ok());
}

TEST_F(ReplayCheckTest, TextReplayRepeatsPiecesOfTheWholeText) {
  const Replay replay = text_replay(*engine_, ids_, {40, n() - 40}, 128).value();
  Replay all;
  ASSERT_TRUE(repeat_prefill(executor(), *full_, ids_, 1.0, {}, &all, nullptr).ok());
  EXPECT_EQ(replay.opening, all.opening);
  ASSERT_EQ(replay.parts.size(), 4u);
  int64_t last = 40;
  for (size_t i = 0; i < 4; ++i) {
    const Replay::Part& part = replay.parts[i];
    EXPECT_EQ(part.n_prompt, 8);
    ASSERT_EQ(part.ids.size(), 40u);
    const auto at = std::search(ids_.begin() + last, ids_.end(), part.ids.begin(), part.ids.end()) - ids_.begin();
    ASSERT_LT(at, n()) << "the piece is no part of the text";
    // Each quarter of the text has one.
    const int64_t quarter = (n() - 80) / 4;
    EXPECT_GE(at + 8, 40 + static_cast<int64_t>(i) * quarter);
    EXPECT_LE(at + 40, 40 + (static_cast<int64_t>(i) + 1) * quarter + 1);
    last = at;
  }
  // Less text than asked for: all of it, from the very beginning without a lead-in.
  const Replay small = text_replay(*engine_, ids_, {0, 20}, 128).value();
  ASSERT_EQ(small.parts.size(), 1u);
  EXPECT_EQ(small.parts[0].ids, std::vector<int32_t>(ids_.begin(), ids_.begin() + 20));
  EXPECT_EQ(small.parts[0].n_prompt, 0);
  for (const Span& text : {Span{-1, 5}, Span{5, 5}, Span{6, 5}, Span{0, n() + 1}})
    EXPECT_EQ(text_replay(*engine_, ids_, text, 128).error().kind, ErrorKind::invalid_argument);
  EXPECT_FALSE(text_replay(*engine_, ids_, {0, n()}, 0).ok());
}

}  // namespace
}  // namespace sh::engine
