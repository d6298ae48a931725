// SPDX-License-Identifier: MIT
// Sliding-window layers in a compaction. No architecture has any yet: the cache's layout says which layers have
// one.
#include <algorithm>

#include "engine/region_plan.h"
#include "engine/scribe_document.h"

namespace sh::engine {
namespace {

using kv::Pos;
using kv::SequenceCache;

constexpr int32_t kWindow = 300;

class WindowLayers : public ScribeDocument {
 protected:
  /// Layers 1 and 3 see the last kWindow tokens only.
  void SetUp() override {
    kv::KvLayout layout = engine_->kv_layout();
    layout.layers[1].window = layout.layers[3].window = kWindow;
    pool_ = std::move(kv::BlockPool::create(layout, int64_t{64} << 20)).value();
    sequence_.emplace(*pool_);
    ASSERT_TRUE(engine_->prefill(*sequence_, ids_).ok());
    for (int64_t pos = 0; pos < n(); ++pos) pos_.push_back(Pos(pos));
  }
  void TearDown() override { sequence_.reset(); }

  std::string rows_of(const SequenceCache& sequence, int32_t layer) const {
    std::string bytes;
    for (int32_t h = 0; h < 2; ++h) {
      const kv::HeadRows rows = sequence.copy_head(layer, h);
      for (size_t i = 0; i < rows.pos.size(); ++i)
        bytes += row_bytes_of(rows, i) + std::to_string(rows.pos[i].value);
    }
    return bytes;
  }

  std::unique_ptr<kv::BlockPool> pool_;
  std::optional<SequenceCache> sequence_;
  std::vector<Pos> pos_;
};

TEST_F(WindowLayers, AreLeftAloneUnlessAskedFor) {
  const CompactionRequest request = request_of("self_study", 4);
  const Region region = plan_region(*sequence_, method_of(request).value(), request).value();
  for (const HeadPlan& plan : plan_heads(*sequence_, region, false))
    EXPECT_TRUE(plan.layer % 2 == 0) << plan.layer;
  EXPECT_EQ(plan_heads(*sequence_, region, false).size(), 6u);
  EXPECT_EQ(plan_heads(*sequence_, region, true).size(), 10u);

  SequenceCache compacted = sequence_->fork();
  const auto report = compact_sequence(engine_->executor(), compacted, ids_, nullptr, request);
  ASSERT_TRUE(report.ok()) << report.error().message;
  EXPECT_EQ(report->heads.size(), 6u);
  for (const int32_t layer : {1, 3}) EXPECT_TRUE(rows_of(compacted, layer) == rows_of(*sequence_, layer)) << layer;
  for (const int32_t layer : {0, 2, 4}) {
    const size_t n_rows = compacted.copy_head(layer, 0).pos.size() + compacted.copy_head(layer, 1).pos.size();
    EXPECT_LT(static_cast<double>(n_rows), 0.7 * 2 * static_cast<double>(n())) << layer;
  }
  EXPECT_LT(compacted.usage().bytes, sequence_->usage().bytes);
}

// A query that does not see all rows of a problem would be promised rows that it never gets.
TEST_F(WindowLayers, ProblemsHoldRowsThatAllTheirQueriesSee) {
  CompactionRequest request = request_of("self_study", 4);
  request.compacts_window_layers = true;
  const auto queries = gather_reference_queries(engine_->executor(), *sequence_, ids_, nullptr, request);
  ASSERT_TRUE(queries.ok());
  const Region region = plan_region(*sequence_, method_of(request).value(), request).value();
  const std::vector<HeadPlan> plans = plan_heads(*sequence_, region, true);
  const CacheProblems problems(*engine_, *sequence_, plans, queries->sets, false);
  int n_window_heads = 0;
  for (size_t head = 0; head < plans.size(); ++head) {
    compaction::HeadStorage storage;
    const compaction::HeadProblem problem = problems.load(static_cast<int64_t>(head), storage);
    EXPECT_EQ(static_cast<int64_t>(plans[head].rows.size()) + plans[head].n_fixed,
              static_cast<int64_t>(sequence_->positions(plans[head].layer, plans[head].head).size()));
    ASSERT_GT(problem.queries.rows, 0) << head;
    ASSERT_EQ(static_cast<int64_t>(problem.query_pos.size()), problem.queries.rows);
    if (plans[head].layer % 2 == 0) continue;
    ++n_window_heads;
    ASSERT_GT(problem.keys.rows, 40) << "rows that are worth a compaction";
    for (const int32_t query_pos : problem.query_pos) EXPECT_LT(query_pos - problem.pos[0], kWindow);
    // Some of the rows alone, as a fit loads them: the queries are the same.
    compaction::HeadStorage part_storage;
    const std::vector<int32_t> last_rows = {static_cast<int32_t>(plans[head].rows.size()) - 1};
    const compaction::HeadProblem part = problems.load_rows(static_cast<int64_t>(head), last_rows, part_storage);
    EXPECT_EQ(part.keys.rows, 1);
    EXPECT_TRUE(std::ranges::equal(part.query_pos, problem.query_pos)) << head;
    // Then the region's part of what a query saw is at most all of it.
    const Mat<float> whole =
        compaction::mixed_output(problem, problem.keys, problem.bias, problem.values, problem.pos);
    for (int64_t q = 0; q < problem.queries.rows; q += 7)
      for (int64_t c = 0; c < whole.cols; ++c) ASSERT_NEAR(whole.row(q)[c], problem.out.row(q)[c], 2e-2);
  }
  EXPECT_EQ(n_window_heads, 4);
}

TEST_F(WindowLayers, AreCompactedWhenAskedForAndTheirOldRowsStay) {
  CompactionRequest request = request_of("self_study", 4);
  request.compacts_window_layers = true;
  SequenceCache compacted = sequence_->fork();
  const auto report = compact_sequence(engine_->executor(), compacted, ids_, nullptr, request);
  ASSERT_TRUE(report.ok()) << report.error().message;
  EXPECT_EQ(report->heads.size(), 10u);
  for (const auto& head : report->heads) {
    const auto before = sequence_->positions(head.layer, head.head),
               after = compacted.positions(head.layer, head.head);
    EXPECT_EQ(std::ssize(after), std::ssize(before) - head.n_before + head.n_kept);
    EXPECT_TRUE(std::includes(before.begin(), before.end(), after.begin(), after.end()));
    if (head.layer % 2 == 0) continue;
    EXPECT_LT(head.n_before, kWindow);
  }
  // Tokens that come now drop what leaves their window, compacted or not.
  SequenceCache fork = compacted.fork();
  std::vector<int32_t> more(ids_.begin() + 4, ids_.begin() + 4 + kWindow + 2 * kv::kBlockRows);
  ASSERT_TRUE(engine_->prefill(fork, more).ok());
  fork.drop_outside_window(fork.next_pos());
  for (const int32_t layer : {1, 3})
    for (int32_t h = 0; h < 2; ++h) {
      const auto positions = fork.positions(layer, h);
      EXPECT_GT(positions.front().value, n() - kv::kBlockRows) << "the compacted rows are out of every window";
    }
}

}  // namespace
}  // namespace sh::engine
