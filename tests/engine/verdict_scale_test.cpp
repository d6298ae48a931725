// SPDX-License-Identifier: MIT
#include "engine/verdict_scale.h"

#include <cmath>
#include <thread>

#include "engine/compact_sequence.h"
#include "engine/replay_check.h"
#include "engine/scribe.h"

namespace sh::engine {
namespace {

using kv::SequenceCache;

class VerdictScaleTest : public ::testing::Test {
 protected:
  static void SetUpTestSuite() {
    engine_ = open_scribe({.n_ctx = 2048}).release();
    ids_ = document_ids(*engine_, read_document("1024", 0));
    scale_ = measure_verdict_scale(engine_->executor(), ids_).value();
  }
  static void TearDownTestSuite() { delete engine_; }

  static inline Engine* engine_;
  static inline std::vector<int32_t> ids_;
  static inline VerdictScale scale_;
};

ReplayCheck check_of(double kl, double top1, double flips) {
  return {.n_tokens = 100, .kl_mean = kl, .kl_median = kl, .kl_p99 = kl, .top1 = top1, .confident_flips = flips};
}

// A model whose cache really is q8_0 or q4_0 predicts the same text: rounding stands for it.
TEST_F(VerdictScaleTest, IsWhatQuantisedCachesCost) {
  EXPECT_GT(scale_.kl_q8, 0);
  // 4 bits of error more: 16 times the noise, of which KL is the square; rare flips make it less even.
  EXPECT_GT(scale_.kl_q4, 10 * scale_.kl_q8);
  EXPECT_LT(scale_.kl_q4, 1);
  const std::span<const int32_t> text = std::span(ids_).first(512);
  const Replay replay = text_replay(*engine_, text, {0, 512}, 256).value();
  SequenceCache full(engine_->block_pool());
  ASSERT_TRUE(engine_->prefill(full, text).ok());
  const auto reference =
      ReplayReference::record(engine_->executor(), full, replay, 256, int64_t{64} << 20).value();
  for (const auto& [type, kl] : {std::pair{DType::q8_0, scale_.kl_q8}, {DType::q4_0, scale_.kl_q4}}) {
    const auto coarse = open_scribe({.n_ctx = 1024, .type_k = type, .type_v = type});
    SequenceCache sequence(coarse->block_pool());
    ASSERT_TRUE(coarse->prefill(sequence, text).ok());
    const double real = reference.compare(coarse->executor(), sequence).value().kl_mean;
    // The real cache is coarse while the text is read, too, and for the replay's own tokens.
    EXPECT_GT(real, 0.3 * kl);
    EXPECT_LT(real, 10 * kl);
  }
}

TEST_F(VerdictScaleTest, DoesNotDependOnTheEnginesCache) {
  const auto coarse = open_scribe({.n_ctx = 64, .type_k = DType::q8_0, .type_v = DType::q4_0});
  const PoolFiller filler(coarse->block_pool(), 0);
  const auto scale = measure_verdict_scale(coarse->executor(), ids_);
  ASSERT_TRUE(scale.ok()) << scale.error().message;
  EXPECT_EQ(scale->kl_q8, scale_.kl_q8);
  EXPECT_EQ(scale->kl_q4, scale_.kl_q4);
}

TEST_F(VerdictScaleTest, ShortTextsGiveNone) {
  const VerdictScale none = measure_verdict_scale(engine_->executor(), std::span(ids_).first(63)).value();
  EXPECT_TRUE(std::isnan(none.kl_q8) && std::isnan(none.kl_q4));
  const VerdictScale some = measure_verdict_scale(engine_->executor(), std::span(ids_).first(64)).value();
  EXPECT_GT(some.kl_q8, 0);
  EXPECT_GT(some.kl_q4, some.kl_q8);
  const std::atomic<bool> cancel = true;
  const auto stopped = measure_verdict_scale(engine_->executor(), ids_, &cancel);
  ASSERT_FALSE(stopped.ok());
  EXPECT_EQ(stopped.error().kind, ErrorKind::cancelled);
}

TEST_F(VerdictScaleTest, WordsFollowTheRules) {
  const VerdictScale scale{.kl_q8 = 0.001, .kl_q4 = 0.1};
  const auto word = [&](double kl, double top1, double flips, ReplayKind kind = ReplayKind::answers) {
    return verdict_of(check_of(kl, top1, flips), scale, kind);
  };
  EXPECT_EQ(word(0, 1, 0), Verdict::transparent);
  EXPECT_EQ(word(0.001, 1, 0), Verdict::transparent);
  EXPECT_EQ(word(0.0011, 1, 0), Verdict::good);
  EXPECT_EQ(word(0.1, 0.9, 0.049), Verdict::good);
  EXPECT_EQ(word(0.1, 0.9, 0.05), Verdict::gist) << "confident predictions changed";
  EXPECT_EQ(word(0.11, 0.9, 0), Verdict::gist);
  EXPECT_EQ(word(5, 0.8, 0.1), Verdict::gist);
  EXPECT_EQ(word(5, 0.79, 0.1), Verdict::reject);
  EXPECT_EQ(word(5, 0.6, 0.4, ReplayKind::repetition), Verdict::gist);
  EXPECT_EQ(word(5, 0.49, 0.4, ReplayKind::repetition), Verdict::reject);
  constexpr double kNaN = std::numeric_limits<double>::quiet_NaN();
  EXPECT_EQ(word(kNaN, kNaN, kNaN), Verdict::reject);
  EXPECT_EQ(word(std::numeric_limits<double>::infinity(), 0.9, 0), Verdict::reject);
  EXPECT_EQ(verdict_of(check_of(0, 1, 0), VerdictScale{}, ReplayKind::answers), Verdict::unknown);
  EXPECT_EQ(verdict_of(ReplayCheck{}, scale, ReplayKind::answers), Verdict::unknown);
  ReplayCheck check = check_of(0, 1, 0);
  check.n_tokens = 32;
  EXPECT_EQ(verdict_of(check, scale, ReplayKind::answers), Verdict::transparent);
  check.n_tokens = 31;
  EXPECT_EQ(verdict_of(check, scale, ReplayKind::answers), Verdict::unknown) << "too few tokens";
}

// Real caches from both ends of the scale.
TEST_F(VerdictScaleTest, WordsFitRealCaches) {
  Executor& executor = engine_->executor();
  const std::vector<int32_t> ids = document_ids(*engine_, read_document("512", 0));
  SequenceCache full(engine_->block_pool());
  ASSERT_TRUE(engine_->prefill(full, ids).ok());
  const CompactionRequest study{.method = "self_study", .ratio = 8, .self_study = {.n_conversations = 48}};
  const ReferenceQueries queries = gather_reference_queries(executor, full, ids, nullptr, study).value();
  const auto reference = ReplayReference::record(executor, full, queries.replay, 256, int64_t{64} << 20).value();
  const auto word = [&](const char* method, double ratio) {
    SequenceCache sequence = full.fork();
    CompactionRequest request = study;
    request.method = method;
    request.ratio = ratio;
    EXPECT_TRUE(compact_sequence(executor, sequence, queries, request).ok());
    return verdict_of(reference.compare(executor, sequence).value(), scale_, ReplayKind::answers);
  };
  EXPECT_EQ(verdict_of(reference.compare(executor, full).value(), scale_, ReplayKind::answers),
            Verdict::transparent);
  const Verdict mild = word("self_study", 8);
  EXPECT_TRUE(mild == Verdict::transparent || mild == Verdict::good) << name_of(mild);
  EXPECT_EQ(word("truncate", 8), Verdict::reject);
  EXPECT_EQ(word("streaming", 32), Verdict::reject);
}

TEST_F(VerdictScaleTest, IsMeasuredOnce) {
  VerdictScales scales;
  EXPECT_TRUE(std::isnan(scales.get(engine_->executor(), std::span(ids_).first(10)).value().kl_q8));
  const std::atomic<bool> cancel = true;
  EXPECT_FALSE(scales.get(engine_->executor(), ids_, &cancel).ok());
  // Two threads with executors of their own, and another text for one of them: one of the texts wins for both.
  Executor other(*engine_, 1);
  const std::vector<int32_t> other_ids = document_ids(*engine_, read_document("1024", 1));
  VerdictScale from_thread;
  std::thread thread([&] { from_thread = scales.get(other, other_ids).value(); });
  const VerdictScale here = scales.get(engine_->executor(), ids_).value();
  thread.join();
  EXPECT_GT(here.kl_q8, 0);
  EXPECT_EQ(here.kl_q8, from_thread.kl_q8);
  EXPECT_EQ(here.kl_q4, from_thread.kl_q4);
  // Measured already: not even a cancelled caller has to measure.
  EXPECT_EQ(scales.get(engine_->executor(), ids_, &cancel).value().kl_q4, here.kl_q4);
}

}  // namespace
}  // namespace sh::engine
