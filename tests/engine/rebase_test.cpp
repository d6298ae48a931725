// SPDX-License-Identifier: MIT
#include "engine/rebase.h"

#include <cmath>

#include "engine/compact_sequence.h"
#include "engine/scribe.h"

namespace sh::engine {
namespace {

using kv::HeadRows;
using kv::Pos;
using kv::SequenceCache;
using Rows = std::vector<std::vector<HeadRows>>;

Rows rows_of(const SequenceCache& sequence) {
  Rows rows(5);
  for (int32_t l = 0; l < 5; ++l)
    for (int32_t h = 0; h < 2; ++h) rows[static_cast<size_t>(l)].push_back(sequence.copy_head(l, h));
  return rows;
}

class Rebase : public ::testing::Test {
 protected:
  static void SetUpTestSuite() {
    engine_ = open_scribe({.n_ctx = 2048}).release();
    document_ = new Document(read_document("512", 0));
    ids_ = document_ids(*engine_, *document_);
    question_ = question_ids(*engine_, document_->questions[0].text);
  }
  static void TearDownTestSuite() {
    delete document_;
    delete engine_;
  }

  static Executor& executor() { return engine_->executor(); }
  /// A pool with the model's heads, but encodings and windows of the test.
  static std::unique_ptr<kv::BlockPool> pool_of(DType type, std::vector<int32_t> windows = {}) {
    kv::KvLayout layout = engine_->kv_layout();
    layout.key_type = layout.value_type = type;
    for (size_t l = 0; l < windows.size(); ++l) layout.layers[l].window = windows[l];
    return std::move(kv::BlockPool::create(layout, int64_t{64} << 20)).value();
  }
  static SequenceCache read(kv::BlockPool& pool, std::span<const int32_t> ids) {
    SequenceCache sequence(pool);
    EXPECT_TRUE(executor().prefill(sequence, ids).ok());
    return sequence;
  }
  /// Says that rows before `end` are compacted, whatever they are.
  static void set_compacted(SequenceCache& sequence, Pos end, const Rows& rows) {
    ASSERT_TRUE(sequence.replace(rows, end).ok());
  }
  static void set_compacted(SequenceCache& sequence, Pos end) { set_compacted(sequence, end, rows_of(sequence)); }
  /// Logits of every token of the question.
  static Mat<float> ask_logits(const SequenceCache& sequence) {
    SequenceCache fork = sequence.fork();
    return executor().prefill(fork, question_, {.all_logits = true}).value();
  }
  static double largest_difference(const Mat<float>& a, const Mat<float>& b) {
    double largest = 0;
    for (size_t i = 0; i < a.data.size(); ++i)
      largest = std::max(largest, static_cast<double>(std::abs(a.data[i] - b.data[i])));
    return largest;
  }
  /// A conversation whose first 100 rows are gone, all of what is left moved to begin at 0.
  static double error_of_rigid_move(DType type) {
    const auto pool = pool_of(type);
    SequenceCache sequence = read(*pool, ids_);
    Rows rows = rows_of(sequence);
    for (auto& layer : rows)
      for (HeadRows& head : layer) {
        head.keys.erase(head.keys.begin(),
                        head.keys.begin() + static_cast<std::ptrdiff_t>(head.keys.size() / head.pos.size() * 100));
        head.values.erase(
            head.values.begin(),
            head.values.begin() + static_cast<std::ptrdiff_t>(head.values.size() / head.pos.size() * 100));
        head.bias.erase(head.bias.begin(), head.bias.begin() + 100);
        head.pos.erase(head.pos.begin(), head.pos.begin() + 100);
      }
    set_compacted(sequence, Pos(100), rows);
    const Mat<float> before = ask_logits(sequence);
    EXPECT_TRUE(rebase(executor(), sequence, Pos(0), Pos(0)).ok());
    EXPECT_EQ(sequence.next_pos().value, static_cast<int32_t>(ids_.size()) - 100);
    EXPECT_EQ(sequence.compacted_end().value, 0);
    EXPECT_EQ(sequence.positions(0, 0)[0].value, 0);
    return largest_difference(before, ask_logits(sequence));
  }

  static inline Engine* engine_;
  static inline Document* document_;
  static inline std::vector<int32_t> ids_, question_;
};

TEST_F(Rebase, MovingEverythingAlikeChangesNothing) {
  EXPECT_LT(error_of_rigid_move(DType::f32), 1e-3);
  // Keys are rounded once more; logits are of the order of 10.
  EXPECT_LT(error_of_rigid_move(DType::f16), 0.05);
  EXPECT_LT(error_of_rigid_move(DType::q8_0), 0.5);
}

// In the first layer a key depends on its token and position alone.
TEST_F(Rebase, KeysAreThoseOfTheirNewPositions) {
  const auto pool = pool_of(DType::f32);
  SequenceCache sequence = read(*pool, std::span(ids_).first(300));
  set_compacted(sequence, Pos(200));
  ASSERT_TRUE(rebase(executor(), sequence, Pos(20), Pos(110)).ok());
  // Rows 20, 22, 24 ... come to 20, 21, 22 ...; rows 200, 201 ... to 110, 111 ...
  std::vector<int32_t> moved(ids_.begin(), ids_.begin() + 20);
  for (size_t p = 20; p < 200; p += 2) moved.push_back(ids_[p]);
  moved.insert(moved.end(), ids_.begin() + 200, ids_.begin() + 300);
  const SequenceCache fresh = read(*pool, moved);
  for (int32_t h = 0; h < 2; ++h) {
    const auto got = sequence.decode_head(engine_->kernels(), 0, h),
               expected = fresh.decode_head(engine_->kernels(), 0, h);
    ASSERT_EQ(got.pos.size(), 300u);
    for (int32_t row = 0; row < 300; row += row < 20 || row >= 200 ? 1 : 2) {
      const int32_t to = row < 20 ? row : row < 200 ? 20 + (row - 20) / 2 : row - 90;
      ASSERT_EQ(got.pos[static_cast<size_t>(row)].value, to);
      for (int64_t i = 0; i < 64; ++i) ASSERT_NEAR(got.keys(row, i), expected.keys(to, i), 1e-4) << "row " << row;
    }
  }
}

TEST_F(Rebase, PositionsAreSqueezedAndNothingElseChanges) {
  for (const DType type : {DType::f16, DType::q8_0}) {
    const auto engine = open_scribe({.type_k = type, .type_v = type});
    SequenceCache sequence(engine->block_pool());
    ASSERT_TRUE(engine->prefill(sequence, ids_).ok());
    const CompactionRequest request{.method = "select", .ratio = 4, .n_protected_prefix = 10, .n_live_suffix = 50};
    ASSERT_TRUE(compact_sequence(engine->executor(), sequence, ids_, nullptr, request).ok());
    const Rows before = rows_of(sequence);
    const auto n = static_cast<int32_t>(ids_.size());
    const int32_t end = n - 50, new_end = 10 + (end - 10) / 4;
    ASSERT_EQ(sequence.compacted_end().value, end);
    ASSERT_TRUE(rebase(engine->executor(), sequence, Pos(10), Pos(new_end)).ok());

    EXPECT_EQ(sequence.compacted_end().value, new_end);
    EXPECT_EQ(sequence.next_pos().value, n - (end - new_end));
    EXPECT_EQ(sequence.n_compactions(), 1);
    for (size_t l = 0; l < 5; ++l)
      for (size_t h = 0; h < 2; ++h) {
        const HeadRows old = before[l][h],
                       now = sequence.copy_head(static_cast<int32_t>(l), static_cast<int32_t>(h));
        EXPECT_EQ(now.values, old.values);
        EXPECT_EQ(now.bias, old.bias);
        ASSERT_EQ(now.pos.size(), old.pos.size());
        const auto key_bytes = static_cast<std::ptrdiff_t>(old.keys.size() / old.pos.size());
        EXPECT_TRUE(std::equal(now.keys.begin(), now.keys.begin() + 10 * key_bytes, old.keys.begin()))
            << "the protected prefix";
        for (size_t r = 0; r < old.pos.size(); ++r) {
          const int32_t p = old.pos[r].value;
          const int32_t expected = p < 10 ? p
                                   : p >= end
                                       ? p - (end - new_end)
                                       : 10 + static_cast<int32_t>(int64_t{p - 10} * (new_end - 10) / (end - 10));
          ASSERT_EQ(now.pos[r].value, expected);
        }
      }
    // The conversation goes on, may be cut back to the boundary and no further, and is compacted again.
    SequenceCache fork = sequence.fork();
    const Mat<float> logits = engine->prefill(fork, question_).value();
    for (const float value : logits.data) ASSERT_TRUE(std::isfinite(value));
    EXPECT_TRUE(fork.truncate(Pos(new_end)).ok());
    EXPECT_FALSE(fork.truncate(Pos(new_end - 1)).ok());
  }
}

// Squeezing is no exact thing, but the model still finds what it is asked for.
TEST_F(Rebase, AnswersSurviveHalfTheDistance) {
  SequenceCache sequence = read(engine_->block_pool(), ids_);
  const auto ask_all = [&] {
    int n_right = 0;
    for (const Question& question : document_->questions)
      n_right += ask(*engine_, sequence, question.text) == question.answer;
    return n_right;
  };
  const int n_before = ask_all();
  ASSERT_GE(n_before, 3);
  set_compacted(sequence, sequence.next_pos());
  ASSERT_TRUE(rebase(executor(), sequence, Pos(4), Pos(static_cast<int64_t>(ids_.size()) / 2)).ok());
  EXPECT_GE(ask_all(), n_before - 1);
}

// Where every layer sees 64 tokens only, nothing that is squeezed is seen: the move is exact.
TEST_F(Rebase, WindowLayersMoveRigidly) {
  const auto pool = pool_of(DType::f32, {64, 64, 64, 64, 64});
  SequenceCache sequence = read(*pool, ids_);
  const auto n = static_cast<int32_t>(ids_.size());
  set_compacted(sequence, Pos(n - 20));
  const Mat<float> before = ask_logits(sequence);
  ASSERT_TRUE(rebase(executor(), sequence, Pos(4), Pos(n - 20 - 150)).ok());
  EXPECT_EQ(sequence.next_pos().value, n - 150);
  EXPECT_LT(largest_difference(before, ask_logits(sequence)), 1e-3);
  const std::vector<Pos> pos = sequence.positions(2, 1);
  ASSERT_EQ(pos.size(), static_cast<size_t>(n - 150)) << "what would lie before 0 is dropped";
  for (size_t r = 0; r < pos.size(); ++r) ASSERT_EQ(pos[r].value, static_cast<int32_t>(r));
  EXPECT_EQ(sequence.identity().dropped_end[2].value, 1);
}

TEST_F(Rebase, WindowsLongerThanWhatIsLeftAreSqueezed) {
  const auto pool = pool_of(DType::f32, {0, 200, 0, 0, 0});
  SequenceCache sequence = read(*pool, ids_);
  const auto n = static_cast<int32_t>(ids_.size());
  set_compacted(sequence, Pos(n));
  ASSERT_TRUE(rebase(executor(), sequence, Pos(0), Pos(n / 4)).ok());
  ASSERT_LT(sequence.next_pos().value, 200);
  EXPECT_EQ(sequence.positions(0, 0).size(), static_cast<size_t>(n));
  // The next token sees 199 before it.
  const std::vector<Pos> pos = sequence.positions(1, 0);
  ASSERT_EQ(pos.size(), 199u);
  EXPECT_EQ(pos.front().value, static_cast<int64_t>(n - 199) * (n / 4) / n);
  EXPECT_EQ(pos.back().value, static_cast<int64_t>(n - 1) * (n / 4) / n);
  const Mat<float> logits = ask_logits(sequence);
  for (const float value : logits.data) ASSERT_TRUE(std::isfinite(value));
}

TEST_F(Rebase, RefusesWhatCannotBeAndLeavesTheCacheAlone) {
  SequenceCache sequence = read(engine_->block_pool(), ids_);
  set_compacted(sequence, Pos(200));
  const std::string before = fingerprint(sequence);
  for (const auto& [keep_end, new_end] : {std::pair{-1, 100}, {101, 100}, {0, 201}, {0, -1}}) {
    const auto done = rebase(executor(), sequence, Pos(keep_end), Pos(new_end));
    ASSERT_FALSE(done.ok());
    EXPECT_EQ(done.error().kind, ErrorKind::invalid_argument);
  }
  EXPECT_TRUE(rebase(executor(), sequence, Pos(0), Pos(200)).ok()) << "nothing to do";
  {
    // A fork holds on to the old rows, and the pool has no room for others.
    const SequenceCache fork = sequence.fork();
    const PoolFiller filler(engine_->block_pool(), 0);
    const auto done = rebase(executor(), sequence, Pos(0), Pos(100));
    ASSERT_FALSE(done.ok());
    EXPECT_EQ(done.error().kind, ErrorKind::out_of_memory);
  }
  EXPECT_EQ(fingerprint(sequence), before);
  const PoolFiller filler(engine_->block_pool(), 11 * 16 * 8 * 30);
  EXPECT_TRUE(rebase(executor(), sequence, Pos(0), Pos(100)).ok()) << "alone it works in a full pool";
}

}  // namespace
}  // namespace sh::engine
