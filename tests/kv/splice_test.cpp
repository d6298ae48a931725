// SPDX-License-Identifier: MIT
// Rows before a boundary replaced under a live sequence: splice, splice_layer, replace_layer, re-basing, and what
// steps and truncation do afterwards.
#include <fmt/format.h>

#include <set>

#include "kv/kv_testing.h"

namespace sh::kv {
namespace {

using namespace testing;

constexpr int64_t kMiB = 1 << 20;

/// Rows of `front` before the boundary, then rows of `back` from it on, head by head.
std::vector<HeadRows> joined(const Snapshot& front, const Snapshot& back, Pos boundary) {
  std::vector<HeadRows> result = front.heads;
  for (size_t head = 0; head < result.size(); ++head) {
    cut_rows(result[head], boundary);
    HeadRows before = back.heads[head];
    const HeadRows& all = back.heads[head];
    cut_rows(before, boundary);
    const auto add = [](auto& to, const auto& from, size_t n_skipped) {
      to.insert(to.end(), from.begin() + static_cast<std::ptrdiff_t>(n_skipped), from.end());
    };
    add(result[head].keys, all.keys, before.keys.size());
    add(result[head].values, all.values, before.values.size());
    add(result[head].bias, all.bias, before.bias.size());
    add(result[head].pos, all.pos, before.pos.size());
  }
  return result;
}

void expect_heads(const SequenceCache& cache, const std::vector<HeadRows>& expected) {
  const Snapshot now = snapshot(cache);
  ASSERT_EQ(now.heads.size(), expected.size());
  for (size_t head = 0; head < expected.size(); ++head)
    EXPECT_TRUE(testing::operator==(now.heads[head], expected[head])) << "head " << head;
}

/// Takes all that the pool has left but `n_free` blocks; both arenas of mixed_layout in f32 have one block size.
class Filler {
 public:
  Filler(BlockPool& pool, int64_t n_free) : pool_(pool) {
    while (pool.n_available(0) > n_free) held_.push_back(pool.allocate(0).value());
  }
  ~Filler() { pool_.release(held_); }
  Filler(const Filler&) = delete;
  Filler& operator=(const Filler&) = delete;

 private:
  BlockPool& pool_;
  std::vector<BlockId> held_;
};

/// A fork of which the rows before `end` are compacted to some 30 %, differently in every head, some heads empty.
SequenceCache compacted_fork(const SequenceCache& cache, Pos end, uint64_t seed, double emptied = 0.3) {
  SequenceCache fork = cache.fork();
  Rng rng(seed);
  EXPECT_TRUE(fork.replace(random_compaction(fork, rng, end, 0.3, emptied), end).ok());
  return fork;
}

bool is_scattered(const SequenceCache& cache) {
  std::vector<kernels::KvBlockView> views;
  cache.block_views(0, 0, views);
  for (size_t i = 1; i < views.size(); ++i) {
    if (views[i].keys < views[i - 1].keys) return true;
  }
  return false;
}

TEST(Splice, JoinsCompactedRowsAndThoseReadSince) {
  for (const DType dtype : {DType::f32, DType::f16, DType::q8_0}) {
    for (const bool seals : {false, true}) {
      for (const int64_t boundary : {100, 96, 90}) {
        SCOPED_TRACE(fmt::format("{} {} {}", tensor_format(dtype).name, seals, boundary));
        const auto pool = make_pool(mixed_layout(dtype), 2 * kMiB);
        {
          Scatter scatter(*pool, 120, 17);
          Rng rng(4);
          SequenceCache cache(*pool);
          for (int step = 0; step < 5; ++step, scatter.stir(8)) extend(cache, rng, 20);
          const SequenceCache reader = cache.fork();
          auto fork = std::make_unique<SequenceCache>(compacted_fork(cache, Pos(90), 5));
          if (seals) cache.seal();
          for (int step = 0; step < 4; ++step, scatter.stir(8)) extend(cache, rng, 9);
          const Snapshot before = snapshot(cache), of_fork = snapshot(*fork), of_reader = snapshot(reader);
          const int64_t n_copies = pool->stats().n_copies_on_write;

          ASSERT_TRUE(cache.splice(*fork, Pos(boundary)).ok());
          const std::vector<HeadRows> expected = joined(of_fork, before, Pos(boundary));
          expect_heads(cache, expected);
          EXPECT_EQ(cache.next_pos(), Pos(136));
          EXPECT_EQ(cache.compacted_end(), Pos(90));
          EXPECT_EQ(cache.n_compactions(), 1);
          EXPECT_TRUE(snapshot(*fork) == of_fork);
          EXPECT_TRUE(snapshot(reader) == of_reader);
          EXPECT_TRUE(is_scattered(cache));
          EXPECT_EQ(pool->stats().n_copies_on_write, n_copies);
          if (boundary == 100) {
            // Nothing moved to a new block: sealed, nothing lies across the boundary; not sealed, the cut is in
            // place.
            const Snapshot after = snapshot(cache);
            const std::set<int32_t> old_slots = [&] {
              std::set<int32_t> slots;
              for (const BlockId block : before.blocks) slots.insert(block.slot);
              for (const BlockId block : of_fork.blocks) slots.insert(block.slot);
              return slots;
            }();
            for (const BlockId block : after.blocks) EXPECT_TRUE(old_slots.contains(block.slot));
          }

          fork.reset();
          expect_heads(cache, expected);
          extend(cache, rng, 25);
          std::vector<HeadRows> start = snapshot(cache).heads;
          for (HeadRows& head : start) cut_rows(head, Pos(136));
          for (size_t head = 0; head < start.size(); ++head)
            EXPECT_TRUE(testing::operator==(start[head], expected[head]));
          EXPECT_TRUE(snapshot(reader) == of_reader);
        }
        EXPECT_EQ(pool->stats().n_blocks_used, 0);
        EXPECT_EQ(pool->stats().bytes_used, 0);
        EXPECT_EQ(pool->stats().n_blocks_shared, 0);
      }
    }
  }
}

TEST(Splice, SealedSequenceStartsNewBlocks) {
  const auto pool = make_pool(mixed_layout(), kMiB);
  SequenceCache cache = filled(*pool, 20, 1);
  const SequenceCache fork = cache.fork();
  cache.seal();
  Rng rng(2);
  extend(cache, rng, 3);
  EXPECT_EQ(pool->stats().n_copies_on_write, 0);  // the shared tail is left alone
  ASSERT_EQ(cache.head(0, 0).blocks.size(), 3u);
  EXPECT_EQ(cache.head(0, 0).blocks[1].n_rows, 4);
  EXPECT_EQ(cache.head(0, 0).blocks[2].first_pos, Pos(20));
  // The seal is on a block, not on the sequence: the new tail fills up.
  extend(cache, rng, 13);
  EXPECT_EQ(cache.head(0, 0).blocks.size(), 3u);
  ASSERT_TRUE(cache.truncate(Pos(18)).ok());
  extend(cache, rng, 1);
  EXPECT_EQ(cache.head(0, 0).blocks.back().first_pos, Pos(18));
  EXPECT_EQ(cache.copy_head(0, 1).pos.size(), 19u);
}

TEST(Splice, AddsToTheSharedTailOnceItIsAlone) {
  const auto pool = make_pool(mixed_layout(), kMiB);
  SequenceCache cache = filled(*pool, 20, 1);
  cache.seal();
  SequenceCache fork = cache.fork();
  ASSERT_TRUE(cache.splice(fork, Pos(20)).ok());
  fork.clear();
  Rng rng(2);
  extend(cache, rng, 12);
  EXPECT_EQ(cache.head(0, 0).blocks.size(), 2u);
  EXPECT_EQ(pool->stats().n_copies_on_write, 0);
}

// A conversation that fills the pool is the one that is compacted.
TEST(Splice, NeedsNoMemoryWhenNoCutBlockIsShared) {
  const auto pool = make_pool(mixed_layout(), kMiB);
  SequenceCache cache = filled(*pool, 120, 1);
  SequenceCache fork = compacted_fork(cache, Pos(110), 3);
  Rng rng(2);
  extend(cache, rng, 30);  // copies of the shared tails: rows 112 to 127 lie on both sides of the boundary
  const Filler filler(*pool, 0);
  ASSERT_EQ(pool->n_available(0), 0);
  const std::vector<HeadRows> expected = joined(snapshot(fork), snapshot(cache), Pos(120));
  ASSERT_TRUE(cache.splice(fork, Pos(120)).ok());
  expect_heads(cache, expected);
  fork.clear();
  EXPECT_GT(pool->n_available(0), 0);
  expect_heads(cache, expected);
}

TEST(Splice, OneFreeBlockForEverySharedCutBlockIsEnough) {
  const auto pool = make_pool(mixed_layout(), kMiB);
  SequenceCache cache = filled(*pool, 120, 1);
  const SequenceCache fork = compacted_fork(cache, Pos(110), 3);
  Rng rng(2);
  extend(cache, rng, 30);
  const SequenceCache reader = cache.fork();  // nothing that goes away comes free
  const Snapshot before = snapshot(cache), of_fork = snapshot(fork);
  {
    const Filler filler(*pool, kHeads - 1);
    const PoolStats stats = pool->stats();
    const auto refused = cache.splice(fork, Pos(120));
    ASSERT_FALSE(refused.ok());
    EXPECT_EQ(refused.error().kind, ErrorKind::out_of_memory);
    EXPECT_NE(refused.error().message.find(fmt::format("3 blocks ({} bytes)", 3 * kBlockBytes)), std::string::npos)
        << refused.error().message;
    EXPECT_TRUE(snapshot(cache) == before);
    EXPECT_TRUE(testing::operator==(stats, pool->stats()));
    EXPECT_EQ(pool->n_available(0), kHeads - 1);  // the claim did not stay
  }
  const Filler filler(*pool, kHeads);
  ASSERT_TRUE(cache.splice(fork, Pos(120)).ok());
  expect_heads(cache, joined(of_fork, before, Pos(120)));
  EXPECT_TRUE(snapshot(reader) == before);
  EXPECT_TRUE(snapshot(fork) == of_fork);
}

TEST(Splice, RefusesWhatDoesNotFit) {
  const auto pool = make_pool(mixed_layout(), kMiB), other_pool = make_pool(mixed_layout(), kMiB);
  SequenceCache cache = filled(*pool, 60, 1);
  SequenceCache fork = compacted_fork(cache, Pos(40), 3);
  Rng rng(2);
  extend(cache, rng, 10);
  const Snapshot before = snapshot(cache);
  const auto refuses = [&](const SequenceCache& other, int64_t boundary) {
    const auto result = cache.splice(other, Pos(boundary));
    EXPECT_EQ(result.ok() ? ErrorKind::io : result.error().kind, ErrorKind::invalid_argument) << boundary;
    EXPECT_TRUE(snapshot(cache) == before);
  };
  refuses(fork, -1);
  refuses(fork, 39);  // inside what the fork has compacted
  refuses(fork, 61);
  refuses(filled(*pool, 100, 1), 71);
  refuses(filled(*other_pool, 60, 1), 60);
  refuses(compacted_fork(cache, Pos(65), 3), 60);
  ASSERT_TRUE(fork.reserve(1).ok());
  refuses(fork, 60);
  EXPECT_FALSE(cache.splice_layer(0, fork, Pos(60)).ok());
  fork.rollback();
  EXPECT_FALSE(cache.splice_layer(0, fork, Pos(61)).ok());
  EXPECT_FALSE(cache.splice_layer(2, filled(*other_pool, 60, 1), Pos(60)).ok());
  EXPECT_TRUE(snapshot(cache) == before);
  ASSERT_TRUE(cache.reserve(4).ok());
  EXPECT_EQ(cache.splice(fork, Pos(60)).error().kind, ErrorKind::invalid_argument);
  cache.rollback();
  EXPECT_TRUE(cache.splice(fork, Pos(60)).ok());
  // Compacted further than the boundary meanwhile.
  ASSERT_TRUE(cache.replace(random_compaction(cache, rng, Pos(65), 0.5, 0.0), Pos(65)).ok());
  EXPECT_EQ(cache.splice(fork, Pos(60)).error().kind, ErrorKind::invalid_argument);
}

TEST(Splice, WindowsThatMovedOnMeanwhile) {
  const auto pool = make_pool(mixed_layout(), kMiB);
  SequenceCache cache = filled(*pool, 96, 1);
  cache.drop_outside_window(Pos(70));
  ASSERT_EQ(cache.identity().dropped_end[2], Pos(16));
  SequenceCache fork = compacted_fork(cache, Pos(50), 3);
  Rng rng(2);
  {
    // Rows that the fork still holds are there again.
    SequenceCache live = cache.fork();
    extend(live, rng, 10);
    live.drop_outside_window(Pos(104));
    ASSERT_EQ(live.identity().dropped_end[2], Pos(64));
    ASSERT_TRUE(live.splice(fork, Pos(96)).ok());
    EXPECT_EQ(live.identity().dropped_end[2], Pos(16));
    EXPECT_EQ(live.head(2, 0).n_rows, fork.head(2, 0).n_rows + 10);
    EXPECT_TRUE(live.truncate(Pos(90)).ok());
  }
  // Rows behind the boundary stay gone, and truncation to where they would be needed stays refused.
  extend(cache, rng, 80);
  cache.drop_outside_window(Pos(170));
  ASSERT_EQ(cache.identity().dropped_end[2], Pos(128));
  ASSERT_TRUE(cache.splice(fork, Pos(96)).ok());
  EXPECT_EQ(cache.identity().dropped_end[2], Pos(128));
  EXPECT_EQ(cache.head(2, 0).n_rows, fork.head(2, 0).n_rows + 176 - 128);
  EXPECT_EQ(cache.truncate(Pos(150)).error().kind, ErrorKind::unsupported);
  cache.drop_outside_window(Pos(170));
  EXPECT_EQ(cache.head(2, 0).n_rows, 176 - 128);
  EXPECT_TRUE(cache.truncate(Pos(168)).ok());
}

// A forward pass replaces a layer's rows after it appended its own, before it attends.
TEST(SpliceLayer, InsideAStep) {
  for (const bool from_fork : {true, false}) {
    SCOPED_TRACE(from_fork);
    const auto pool = make_pool(mixed_layout(), kMiB);
    SequenceCache cache = filled(*pool, 100, 1);
    const SequenceCache reader = cache.fork();
    const SequenceCache fork = compacted_fork(cache, Pos(95), 3, 0.5);
    const Snapshot before = snapshot(cache);
    ASSERT_TRUE(cache.reserve(21).ok());
    Rng rng(2);
    for (const int32_t layer : {0, 2}) {
      const int64_t n_heads = layer == 0 ? 2 : 1;
      const Mat<float> keys = random_matrix(rng, 21, n_heads * (layer == 0 ? 32 : 64));
      const Mat<float> values = random_matrix(rng, 21, n_heads * (layer == 0 ? 64 : 32));
      const auto append = [&](int64_t offset, int64_t n) {
        cache.append(best_kernels(), layer, offset, keys.view().slice(offset, n), values.view().slice(offset, n));
      };
      // All rows, none and some of them appended when the rows before change.
      append(0, layer == 0 ? 21 : 2);
      const Snapshot appended = snapshot(cache);
      if (from_fork) {
        ASSERT_TRUE(cache.splice_layer(layer, fork, Pos(100)).ok());
      } else {
        std::vector<HeadRows> rows;
        for (int32_t head = 0; head < n_heads; ++head) rows.push_back(fork.copy_head(layer, head));
        ASSERT_TRUE(cache.replace_layer(test_threads(), layer, rows).ok());
      }
      const std::vector<HeadRows> expected = joined(snapshot(fork), appended, Pos(100));
      const Snapshot now = snapshot(cache);
      for (size_t head = 0; head < kHeads; ++head) {
        const bool is_changed = (head == 2) == (layer == 2);
        EXPECT_TRUE(testing::operator==(now.heads[head], is_changed ? expected[head] : appended.heads[head]));
      }
      if (layer == 2) append(2, 19);
    }
    EXPECT_EQ(cache.compacted_end(), Pos(0));
    EXPECT_EQ(cache.n_compactions(), 0);
    cache.commit(17);
    EXPECT_EQ(cache.next_pos(), Pos(117));
    std::vector<HeadRows> committed = snapshot(cache).heads;
    for (size_t head = 0; head < kHeads; ++head) {
      EXPECT_EQ(committed[head].pos.size(), snapshot(fork).heads[head].pos.size() + 17);
      cut_rows(committed[head], Pos(100));
      EXPECT_TRUE(testing::operator==(committed[head], snapshot(fork).heads[head]));
    }
    ASSERT_TRUE(cache.mark_compacted(Pos(95)).ok());
    EXPECT_EQ(cache.compacted_end(), Pos(95));
    EXPECT_EQ(cache.n_compactions(), 1);
    EXPECT_FALSE(cache.mark_compacted(Pos(94)).ok());
    EXPECT_FALSE(cache.mark_compacted(Pos(118)).ok());
    EXPECT_TRUE(snapshot(reader) == before);
  }
}

/// A conversation of `next_pos` tokens in which layer 0 has those before `end` only, all regular.
SequenceCache with_gap(BlockPool& pool, int64_t next_pos, int64_t end) {
  SequenceCache cache = filled(pool, next_pos, 1);
  std::vector<HeadRows> rows{cache.copy_head(0, 0), cache.copy_head(0, 1)};
  for (HeadRows& head : rows) cut_rows(head, Pos(end));
  EXPECT_TRUE(cache.replace_layer(test_threads(), 0, rows).ok());
  return cache;
}

void append_to_layer_0(SequenceCache& cache, Rng& rng, int64_t n) {
  const Mat<float> keys = random_matrix(rng, n, 64), values = random_matrix(rng, n, 128);
  cache.append(best_kernels(), 0, 0, keys.view(), values.view());
}

// The room behind the last row that comes from the other sequence holds rows of its own.
TEST(SpliceLayer, RowsToComeDoNotGoToTheOthersBlock) {
  const auto pool = make_pool(mixed_layout(), kMiB);
  const SequenceCache fork = filled(*pool, 40, 1);
  const Snapshot of_fork = snapshot(fork);
  SequenceCache cache = with_gap(*pool, 40, 36);
  Rng rng(2);
  ASSERT_TRUE(cache.reserve(3).ok());
  ASSERT_TRUE(cache.splice_layer(0, fork, Pos(36)).ok());
  append_to_layer_0(cache, rng, 3);
  EXPECT_TRUE(snapshot(fork) == of_fork);
  const HeadRows now = cache.copy_head(0, 1);
  ASSERT_EQ(now.pos.size(), 39u);
  EXPECT_EQ(now.pos[35], Pos(35));
  EXPECT_EQ(now.pos[36], Pos(40));
  cache.rollback();
}

// A full block becomes one with room by its cut, but the next row's position does not follow from its first.
TEST(SpliceLayer, RowsToComeKeepTheirPositionsBehindACut) {
  const auto pool = make_pool(mixed_layout(), kMiB);
  const SequenceCache fork = filled(*pool, 40, 1);
  SequenceCache cache = with_gap(*pool, 40, 32);
  Rng rng(2);
  ASSERT_TRUE(cache.reserve(17).ok());
  ASSERT_FALSE(cache.head(0, 0).blocks[1].is_annotated);
  ASSERT_TRUE(cache.splice_layer(0, fork, Pos(20)).ok());
  append_to_layer_0(cache, rng, 17);
  const HeadRows now = cache.copy_head(0, 1);
  ASSERT_EQ(now.pos.size(), 49u);
  for (int64_t row = 0; row < 49; ++row)
    EXPECT_EQ(now.pos[static_cast<size_t>(row)], Pos(row < 32 ? row : row + 8));
  cache.rollback();
}

TEST(SpliceLayer, AppendedRowsThatAreTakenBackLeaveTheNewRows) {
  const auto pool = make_pool(mixed_layout(), kMiB);
  SequenceCache cache = filled(*pool, 100, 1);
  const SequenceCache fork = compacted_fork(cache, Pos(100), 3, 0.5);
  const Snapshot of_fork = snapshot(fork);
  Rng rng(2);
  ASSERT_TRUE(cache.reserve(30).ok());
  append_random(cache, rng, 0, 30);
  for (const int32_t layer : {0, 2}) ASSERT_TRUE(cache.splice_layer(layer, fork, Pos(100)).ok());
  cache.rollback();
  expect_heads(cache, of_fork.heads);
  EXPECT_EQ(cache.next_pos(), Pos(100));
  EXPECT_TRUE(snapshot(fork) == of_fork);
}

TEST(ReplaceLayer, RefusesWholeAndWorksInAFullPool) {
  const auto pool = make_pool(mixed_layout(), kMiB);
  SequenceCache cache = filled(*pool, 128, 1);
  Rng rng(12);
  auto rows = random_compaction(cache, rng, Pos(128), 0.4, 0.0);
  const Snapshot before = snapshot(cache);
  const auto refuses = [&](auto change) {
    auto bad = rows[0];
    change(bad);
    const auto result = cache.replace_layer(test_threads(), 0, bad);
    EXPECT_EQ(result.ok() ? ErrorKind::io : result.error().kind, ErrorKind::invalid_argument);
    EXPECT_TRUE(snapshot(cache) == before);
  };
  refuses([](auto& bad) { bad.pop_back(); });
  refuses([](auto& bad) { bad[1].pos.back() = Pos(128); });
  refuses([](auto& bad) { bad[1].bias.clear(); });
  refuses([](auto& bad) { std::swap(bad[0].pos.front(), bad[0].pos.back()); });
  const Filler filler(*pool, 0);
  {
    const SequenceCache fork = cache.fork();
    const PoolStats stats = pool->stats();
    const auto refused = cache.replace_layer(test_threads(), 0, rows[0]);
    ASSERT_FALSE(refused.ok());
    EXPECT_EQ(refused.error().kind, ErrorKind::out_of_memory);
    EXPECT_TRUE(snapshot(cache) == before);
    EXPECT_TRUE(testing::operator==(stats, pool->stats()));
  }
  ASSERT_TRUE(cache.replace_layer(test_threads(), 0, rows[0]).ok());
  EXPECT_TRUE(testing::operator==(cache.copy_head(0, 0), rows[0][0]));
  EXPECT_TRUE(testing::operator==(cache.copy_head(0, 1), rows[0][1]));
  EXPECT_TRUE(testing::operator==(cache.copy_head(2, 0), before.heads[2]));
  EXPECT_TRUE(cache.replace_layer(test_threads(), 1, {}).ok());
}

// Re-basing: the same rows at positions that close the gap which a compaction left.
TEST(Rebase, RestoreMovesALiveSequence) {
  const auto pool = make_pool(mixed_layout(), kMiB);
  SequenceCache cache = filled(*pool, 128, 1);
  Rng rng(3);
  ASSERT_TRUE(cache.replace(random_compaction(cache, rng, Pos(100), 0.9, 0.0), Pos(100)).ok());
  const auto rebased = [&](const SequenceCache& from, SequenceCache::Identity& identity) {
    // The compacted rows on positions 0 to 19, several on one; the 28 behind them from 20 on.
    auto rows = random_compaction(from, rng, Pos(0), 1.0, 0.0);
    for (auto& layer : rows)
      for (HeadRows& head : layer)
        for (Pos& pos : head.pos) pos = pos < Pos(100) ? Pos(pos.value / 5) : Pos(pos.value - 80);
    identity = from.identity();
    identity.next_pos = Pos(48);
    identity.compacted_end = Pos(20);
    identity.n_squeezed += 80;
    ++identity.n_rebases;
    return rows;
  };
  SequenceCache::Identity identity;
  const auto rows = rebased(cache, identity);

  // Refused whole while a fork holds the old rows and the pool is full.
  const SequenceCache fork = cache.fork();
  const Snapshot before = snapshot(cache);
  {
    const Filler filler(*pool, 0);
    const PoolStats stats = pool->stats();
    ASSERT_FALSE(cache.restore(rows, identity).ok());
    EXPECT_TRUE(snapshot(cache) == before);
    EXPECT_TRUE(testing::operator==(stats, pool->stats()));
  }
  SequenceCache alone(*pool);
  ASSERT_TRUE(alone.restore(random_compaction(cache, rng, Pos(0), 1.0, 0.0), cache.identity()).ok());
  for (SequenceCache* sequence : {&cache, &alone}) {
    // Alone with its blocks a sequence is moved in a full pool; annotations that grow need room of their own.
    SCOPED_TRACE(sequence == &alone ? "alone" : "shared");
    const std::unique_ptr<Filler> filler = sequence == &alone ? std::make_unique<Filler>(*pool, 1) : nullptr;
    ASSERT_TRUE(sequence->restore(rows, identity).ok());
    EXPECT_EQ(sequence->next_pos(), Pos(48));
    EXPECT_EQ(sequence->compacted_end(), Pos(20));
    EXPECT_EQ(sequence->usage().n_logical, 128) << "no token is lost with its position";
    EXPECT_EQ(sequence->usage().n_positions, 48);
    EXPECT_EQ(sequence->usage().n_rebases, 1);
    EXPECT_TRUE(snapshot(fork) == before);
    for (int32_t head = 0; head < 2; ++head) {
      const HeadRows now = sequence->copy_head(0, head);
      EXPECT_TRUE(testing::operator==(now, rows[0][static_cast<size_t>(head)]));
      EXPECT_NE(std::adjacent_find(now.pos.begin(), now.pos.end()), now.pos.end());  // else no position is shared
    }
  }
  // It goes on from the new positions, and attention is told the positions of rows that share one.
  extend(cache, rng, 10);
  EXPECT_EQ(cache.copy_head(0, 0).pos.back(), Pos(57));
  std::vector<kernels::KvBlockView> views;
  cache.block_views(0, 0, views);
  const HeadRows all = cache.copy_head(0, 0);
  size_t row = 0;
  for (const kernels::KvBlockView& view : views)
    for (int32_t r = 0; r < view.n_rows; ++r, ++row)
      EXPECT_EQ(Pos(view.pos != nullptr ? view.pos[r] : view.first_pos + r), all.pos[row]);
  EXPECT_EQ(row, all.pos.size());
  ASSERT_TRUE(cache.truncate(Pos(20)).ok());
  for (int32_t head = 0; head < 2; ++head) {
    const auto& positions = rows[0][static_cast<size_t>(head)].pos;
    EXPECT_EQ(cache.head(0, head).n_rows,
              std::lower_bound(positions.begin(), positions.end(), Pos(20)) - positions.begin());
  }
}

// Drafts that are rejected, and text that is taken back, up to the row behind the compacted ones.
TEST(AfterCompaction, RejectedTokensLeaveCompactedRowsAlone) {
  for (const bool spliced : {false, true}) {
    for (const int64_t compacted_end : {100, 90}) {
      SCOPED_TRACE(fmt::format("spliced {}, compacted to {}", spliced, compacted_end));
      const auto pool = make_pool(mixed_layout(), kMiB);
      Rng rng(3);
      SequenceCache cache = filled(*pool, 100, 1);
      if (spliced) {
        const SequenceCache fork = compacted_fork(cache, Pos(compacted_end), 7);
        extend(cache, rng, 5);
        ASSERT_TRUE(cache.splice(fork, Pos(100)).ok());
      } else {
        const auto rows = random_compaction(cache, rng, Pos(compacted_end), 0.3, 0.3);
        ASSERT_TRUE(cache.replace(rows, Pos(compacted_end)).ok());
      }
      std::vector<HeadRows> expected = snapshot(cache).heads;
      const Pos start = cache.next_pos();
      const auto check = [&](int64_t n_more) {
        std::vector<HeadRows> now = snapshot(cache).heads;
        for (size_t head = 0; head < now.size(); ++head) {
          EXPECT_EQ(now[head].pos.size(), expected[head].pos.size() + static_cast<size_t>(n_more));
          cut_rows(now[head], start);
          EXPECT_TRUE(testing::operator==(now[head], expected[head]));
        }
      };
      ASSERT_TRUE(cache.reserve(20).ok());
      append_random(cache, rng, 0, 20);
      cache.rollback();
      check(0);
      ASSERT_TRUE(cache.reserve(20).ok());
      append_random(cache, rng, 0, 20);
      cache.commit(0);
      check(0);
      ASSERT_TRUE(cache.reserve(9).ok());
      append_random(cache, rng, 0, 9);
      cache.commit(3);
      check(3);
      EXPECT_EQ(cache.next_pos(), start + 3);

      const Snapshot before = snapshot(cache);
      const auto refused = cache.truncate(Pos(compacted_end - 1));
      ASSERT_FALSE(refused.ok());
      EXPECT_EQ(refused.error().kind, ErrorKind::unsupported);
      EXPECT_TRUE(snapshot(cache) == before);
      ASSERT_TRUE(cache.truncate(cache.compacted_end()).ok());
      for (HeadRows& head : expected) cut_rows(head, Pos(compacted_end));
      expect_heads(cache, expected);
      extend(cache, rng, 2);
      EXPECT_EQ(cache.copy_head(0, 0).pos.back(), Pos(compacted_end + 1));
    }
  }
}

}  // namespace
}  // namespace sh::kv
