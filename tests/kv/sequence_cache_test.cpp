// SPDX-License-Identifier: MIT
#include <cmath>
#include <cstring>
#include <limits>
#include <set>

#include "kv/kv_testing.h"

namespace sh::kv {
namespace {

using namespace testing;

constexpr int64_t kMiB = 1 << 20;

TEST(SequenceCache, RowsReadBackInEveryEncoding) {
  for (const DType dtype : {DType::f32, DType::f16, DType::bf16, DType::q8_0, DType::q4_0}) {
    SCOPED_TRACE(tensor_format(dtype).name);
    const KvLayout layout = mixed_layout(dtype);
    const auto pool = make_pool(layout, kMiB);
    SequenceCache cache(*pool);
    Rng rng(3);
    Mat<float> keys = random_matrix(rng, 75, 64), values = random_matrix(rng, 75, 128);
    const Mat<float> window_keys = random_matrix(rng, 75, 64), window_values = random_matrix(rng, 75, 32);
    int64_t done = 0;
    for (const int64_t n : {1, 15, 1, 16, 17, 25}) {  // ends inside, at and beyond block borders
      ASSERT_TRUE(cache.reserve(n).ok());
      for (int64_t offset = 0; offset < n;) {
        const int64_t part = std::min<int64_t>(n - offset, 9);
        cache.append(best_kernels(), 0, offset, keys.view().slice(done + offset, part),
                     values.view().slice(done + offset, part));
        cache.append(best_kernels(), 2, offset, window_keys.view().slice(done + offset, part),
                     window_values.view().slice(done + offset, part));
        offset += part;
      }
      cache.commit(n);
      done += n;
    }
    EXPECT_EQ(cache.next_pos(), Pos(75));
    const TensorFormat& format = tensor_format(dtype);
    for (int32_t head = 0; head < 2; ++head) {
      const SequenceCache::DecodedHead decoded = cache.decode_head(best_kernels(), 0, head);
      ASSERT_EQ(decoded.pos.size(), 75u);
      for (int64_t row = 0; row < 75; ++row) {
        EXPECT_EQ(decoded.pos[static_cast<size_t>(row)], Pos(row));
        EXPECT_EQ(decoded.bias[static_cast<size_t>(row)], 0.0f);
        // The encoding's own loss, as its scalar codec has it, and nothing else.
        std::vector<std::byte> encoded(static_cast<size_t>(row_bytes(dtype, 64)));
        std::vector<float> expected(64);
        format.quantize(keys.row(row) + head * 32, 32, encoded.data());
        format.dequantize(encoded.data(), 32, expected.data());
        for (int i = 0; i < 32; ++i) ASSERT_EQ(decoded.keys(row, i), expected[static_cast<size_t>(i)]);
        format.quantize(values.row(row) + head * 64, 64, encoded.data());
        format.dequantize(encoded.data(), 64, expected.data());
        for (int i = 0; i < 64; ++i) ASSERT_EQ(decoded.values(row, i), expected[static_cast<size_t>(i)]);
      }
    }
    std::vector<kernels::KvBlockView> views;
    cache.block_views(0, 1, views);
    ASSERT_EQ(views.size(), 5u);
    EXPECT_EQ(views[4].first_pos, 64);
    EXPECT_EQ(views[4].n_rows, 11);
    EXPECT_EQ(views[4].bias, nullptr);
    EXPECT_EQ(views[4].pos, nullptr);
    const CacheUsage usage = cache.usage();
    EXPECT_EQ(usage.n_logical, 75);
    EXPECT_EQ(usage.n_rows, 75 * kHeads);
    EXPECT_EQ(usage.n_physical, 75.0);
    EXPECT_EQ(usage.n_blocks, 5 * kHeads);
    EXPECT_EQ(usage.bytes, pool->stats().bytes_used);
  }
}

TEST(SequenceCache, RollbackIsAsBefore) {
  const auto pool = make_pool(mixed_layout(), kMiB);
  SequenceCache cache = filled(*pool, 21, 1);
  const Snapshot before = snapshot(cache);
  const PoolStats stats = pool->stats();
  Rng rng(2);
  ASSERT_TRUE(cache.reserve(50).ok());
  cache.rollback();
  EXPECT_TRUE(snapshot(cache) == before);
  ASSERT_TRUE(cache.reserve(50).ok());
  append_random(cache, rng, 0, 37);
  // A model that fails between layers leaves some of them behind.
  const Mat<float> rows = random_matrix(rng, 13, 64), values = random_matrix(rng, 13, 128);
  cache.append(best_kernels(), 0, 37, rows.view(), values.view());
  EXPECT_EQ(cache.head(0, 0).n_rows, 71);
  cache.rollback();
  EXPECT_TRUE(snapshot(cache) == before);
  EXPECT_TRUE(testing::operator==(pool->stats(), stats));
}

TEST(SequenceCache, CommitKeepsOnlyTheAcceptedTokens) {
  const auto pool = make_pool(mixed_layout(), kMiB);
  SequenceCache cache = filled(*pool, 14, 1);
  Rng rng(2);
  ASSERT_TRUE(cache.reserve(40).ok());
  append_random(cache, rng, 0, 30);
  const HeadRows appended = cache.copy_head(0, 1);
  cache.commit(3);
  EXPECT_EQ(cache.next_pos(), Pos(17));
  EXPECT_EQ(cache.usage().n_rows, 17 * kHeads);
  EXPECT_EQ(pool->stats().n_blocks_used, 2 * kHeads);
  HeadRows expected = appended;
  expected.pos.resize(17);
  expected.bias.resize(17);
  expected.keys.resize(17 * 32 * 4);
  expected.values.resize(17 * 64 * 4);
  EXPECT_TRUE(testing::operator==(cache.copy_head(0, 1), expected));
}

TEST(SequenceCacheDeathTest, StepsOutOfOrderStop) {
  const auto pool = make_pool(mixed_layout(), kMiB);
  SequenceCache cache = filled(*pool, 3, 1);
  const Mat<float> keys(4, 64), values(4, 128);
  ASSERT_TRUE(cache.reserve(8).ok());
  EXPECT_DEATH((void)cache.reserve(1), "neither committed nor rolled back");
  EXPECT_DEATH((void)cache.fork(), "inside a step");
  EXPECT_DEATH(cache.append(best_kernels(), 0, 2, keys.view(), values.view()), "in order");
  EXPECT_DEATH(cache.append(best_kernels(), 0, 5, keys.view(), values.view()), "more rows than");
  EXPECT_DEATH(cache.append(best_kernels(), 1, 0, keys.view(), values.view()), "no attention");
  EXPECT_DEATH(cache.append(best_kernels(), 2, 0, keys.view(), values.view()), "shape");
  cache.append(best_kernels(), 0, 0, keys.view(), values.view());
  EXPECT_DEATH(cache.commit(4), "did not append");
}

TEST(SequenceCache, WriterCopiesTheSharedTail) {
  const auto pool = make_pool(mixed_layout(), kMiB);
  SequenceCache reader = filled(*pool, 37, 1);
  const Snapshot before = snapshot(reader);
  SequenceCache writer = reader.fork();
  EXPECT_TRUE(snapshot(writer) == before);
  EXPECT_EQ(pool->stats().n_blocks_used, 3 * kHeads);
  EXPECT_EQ(pool->stats().n_blocks_shared, 3 * kHeads);
  Rng rng(5);
  extend(writer, rng, 1);
  EXPECT_TRUE(snapshot(reader) == before);
  EXPECT_EQ(pool->stats().n_blocks_used, 4 * kHeads);
  EXPECT_EQ(pool->stats().n_copies_on_write, kHeads);
  // The reader is alone with its tail now and writes in place.
  const Snapshot written = snapshot(writer);
  extend(reader, rng, 4);
  EXPECT_EQ(pool->stats().n_copies_on_write, kHeads);
  EXPECT_TRUE(snapshot(writer) == written);
  // A full tail is shared for good: the next row goes to a block of its own.
  extend(writer, rng, 10);
  SequenceCache third = writer.fork();
  extend(third, rng, 1);
  EXPECT_EQ(pool->stats().n_copies_on_write, kHeads);
}

TEST(SequenceCache, ForkOutlivesItsSource) {
  const auto pool = make_pool(mixed_layout(), kMiB);
  auto source = std::make_unique<SequenceCache>(filled(*pool, 50, 1));
  const Snapshot before = snapshot(*source);
  const SequenceCache fork = source->fork();
  source->clear();
  EXPECT_EQ(source->next_pos(), Pos(0));
  Rng rng(6);
  extend(*source, rng, 20);  // takes other blocks, although ids of freed ones come back
  source.reset();
  EXPECT_TRUE(snapshot(fork) == before);
  EXPECT_EQ(pool->stats().n_blocks_shared, 0);
}

TEST(SequenceCache, NothingLeaks) {
  const auto pool = make_pool(mixed_layout(), kMiB);
  Rng rng(4);
  {
    SequenceCache a = filled(*pool, 30, 1);
    SequenceCache b = a.fork();
    SequenceCache c = std::move(b);
    a = c.fork();
    ASSERT_TRUE(c.truncate(Pos(17)).ok());
    extend(c, rng, 3);
    ASSERT_TRUE(c.replace(random_compaction(c, rng, Pos(10), 0.5, 0.0), Pos(10)).ok());
    ASSERT_TRUE(a.reserve(33).ok());
    append_random(a, rng, 0, 20);  // destroyed inside a step
  }
  EXPECT_EQ(pool->stats().n_blocks_used, 0);
  EXPECT_EQ(pool->stats().n_blocks_shared, 0);
  EXPECT_EQ(pool->stats().bytes_used, 0);
}

TEST(SequenceCache, FullPoolRefusesAndChangesNothing) {
  // Room for 4 blocks a head; heads of both arenas draw on one budget.
  const auto pool = make_pool(mixed_layout(), 4 * kHeads * kBlockBytes);
  SequenceCache cache = filled(*pool, 40, 1);
  SequenceCache fork = cache.fork();
  const Snapshot before = snapshot(fork);
  const PoolStats stats = pool->stats();
  // The copy of the tail fits, copy and one more block do not.
  const auto refused = fork.reserve(24);
  ASSERT_FALSE(refused.ok());
  EXPECT_EQ(refused.error().kind, ErrorKind::out_of_memory);
  EXPECT_NE(refused.error().message.find("6 blocks"), std::string::npos) << refused.error().message;
  EXPECT_TRUE(snapshot(fork) == before);
  EXPECT_TRUE(testing::operator==(pool->stats(), stats));
  Rng rng(8);
  extend(fork, rng, 8);
  EXPECT_EQ(pool->bytes_available(), 0);
  extend(cache, rng, 8);  // fits in its tail
  EXPECT_FALSE(cache.reserve(1).ok());
  fork.clear();
  EXPECT_TRUE(cache.reserve(1).ok());
}

TEST(SequenceCache, PositionsDoNotOverflow) {
  const auto pool = make_pool(KvLayout{}, 0);  // a model without attention layers
  SequenceCache cache(*pool);
  ASSERT_TRUE(cache.reserve(std::numeric_limits<int32_t>::max()).ok());
  cache.commit(std::numeric_limits<int32_t>::max());
  const auto refused = cache.reserve(1);
  ASSERT_FALSE(refused.ok());
  EXPECT_EQ(refused.error().kind, ErrorKind::context_exceeded);
  EXPECT_EQ(cache.usage().n_physical, 0.0);
}

TEST(SequenceCache, TruncateForgetsTheEnd) {
  const auto pool = make_pool(mixed_layout(), kMiB);
  SequenceCache cache = filled(*pool, 60, 1);
  const SequenceCache whole = cache.fork();
  for (const int64_t end : {60, 49, 48, 33, 1, 0}) {
    ASSERT_TRUE(cache.truncate(Pos(end)).ok());
    EXPECT_EQ(cache.next_pos(), Pos(end));
    for (int32_t head = 0; head < 2; ++head) {
      HeadRows expected = whole.copy_head(0, head);
      expected.pos.resize(static_cast<size_t>(end));
      expected.bias.resize(static_cast<size_t>(end));
      expected.keys.resize(static_cast<size_t>(end) * 32 * 4);
      expected.values.resize(static_cast<size_t>(end) * 64 * 4);
      EXPECT_TRUE(testing::operator==(cache.copy_head(0, head), expected)) << end;
    }
    EXPECT_EQ(cache.usage().n_blocks, (end + 15) / 16 * kHeads);
  }
  EXPECT_EQ(cache.truncate(Pos(1)).error().kind, ErrorKind::invalid_argument);
  EXPECT_EQ(cache.truncate(Pos(-1)).error().kind, ErrorKind::invalid_argument);
}

TEST(SequenceCache, TruncatedForkAppendsWithoutTouchingTheOther) {
  const auto pool = make_pool(mixed_layout(), kMiB);
  SequenceCache reader = filled(*pool, 30, 1);
  SequenceCache writer = reader.fork();
  const Snapshot before = snapshot(reader);
  ASSERT_TRUE(writer.truncate(Pos(20)).ok());
  Rng rng(9);
  extend(writer, rng, 12);
  EXPECT_TRUE(snapshot(reader) == before);
  EXPECT_EQ(writer.usage().n_rows, 32 * kHeads);
}

TEST(SequenceCache, CompactedRowsAreRaggedAndDense) {
  const auto pool = make_pool(mixed_layout(), kMiB);
  SequenceCache cache = filled(*pool, 200, 1);
  const SequenceCache fork = cache.fork();
  const Snapshot original = snapshot(fork);
  Rng rng(11);
  const auto rows = random_compaction(cache, rng, Pos(190), 0.2, 0.4);
  ASSERT_TRUE(cache.replace(rows, Pos(190)).ok());
  int64_t n_blocks = 0;
  for (int32_t layer : {0, 2}) {
    for (size_t head = 0; head < rows[static_cast<size_t>(layer)].size(); ++head) {
      const HeadRows& expected = rows[static_cast<size_t>(layer)][head];
      EXPECT_TRUE(testing::operator==(cache.copy_head(layer, static_cast<int32_t>(head)), expected));
      n_blocks += (static_cast<int64_t>(expected.pos.size()) + 15) / 16;
    }
  }
  EXPECT_EQ(cache.usage().n_blocks, n_blocks);
  EXPECT_EQ(cache.next_pos(), Pos(200));
  EXPECT_EQ(cache.compacted_end(), Pos(190));
  EXPECT_EQ(cache.n_compactions(), 1);
  EXPECT_TRUE(snapshot(fork) == original);
  // Live rows behind compacted ones; their positions do not follow from the block's first.
  extend(cache, rng, 30);
  for (int32_t head = 0; head < 2; ++head) {
    const HeadRows now = cache.copy_head(0, head);
    const size_t n_before = rows[0][static_cast<size_t>(head)].pos.size();
    ASSERT_EQ(now.pos.size(), n_before + 30);
    for (size_t i = 0; i < 30; ++i) {
      EXPECT_EQ(now.pos[n_before + i], Pos(200 + static_cast<int64_t>(i)));
      EXPECT_EQ(now.bias[n_before + i], 0.0f);
    }
  }
  // Truncation to the compacted end keeps what survived of [0, 190); further is refused, and clear() forgets it
  // all.
  EXPECT_EQ(cache.truncate(Pos(189)).error().kind, ErrorKind::unsupported);
  ASSERT_TRUE(cache.truncate(Pos(190)).ok());
  for (int32_t head = 0; head < 2; ++head) {
    const HeadRows now = cache.copy_head(0, head);
    const auto& old = rows[0][static_cast<size_t>(head)].pos;
    EXPECT_EQ(static_cast<int64_t>(now.pos.size()),
              std::count_if(old.begin(), old.end(), [](Pos p) { return p < Pos(190); }));
  }
  EXPECT_EQ(cache.n_compactions(), 1);
  const SequenceCache again = cache.fork();
  EXPECT_EQ(again.compacted_end(), Pos(190));
  EXPECT_EQ(again.n_compactions(), 1);
  cache.clear();
  EXPECT_EQ(cache.compacted_end(), Pos(0));
  EXPECT_EQ(cache.n_compactions(), 0);
  EXPECT_EQ(cache.usage().n_rows, 0);
}

TEST(SequenceCache, AnnotationsOnlyWhereRowsAreIrregular) {
  const auto pool = make_pool(mixed_layout(), kMiB);
  SequenceCache cache = filled(*pool, 64, 1);
  std::vector<std::vector<HeadRows>> rows(3);
  for (int32_t head = 0; head < 2; ++head) rows[0].push_back(cache.copy_head(0, head));
  rows[2].push_back(cache.copy_head(2, 0));
  rows[0][0].bias[20] = -0.5f;                        // in the second block
  rows[0][1].pos.erase(rows[0][1].pos.begin() + 40);  // a gap in the third
  rows[0][1].bias.pop_back();
  rows[0][1].keys.resize(63 * 32 * 4);
  rows[0][1].values.resize(63 * 64 * 4);
  ASSERT_TRUE(cache.replace(rows, Pos(64)).ok());
  const auto annotated = [&](int32_t layer, int32_t head) {
    std::string text;
    for (const BlockEntry& entry : cache.head(layer, head).blocks) text += entry.is_annotated ? 'a' : '-';
    return text;
  };
  EXPECT_EQ(annotated(0, 0), "-a--");
  EXPECT_EQ(annotated(0, 1), "--a-");
  EXPECT_EQ(annotated(2, 0), "----");
  EXPECT_EQ(pool->stats().bytes_used, 12 * kBlockBytes + 2 * BlockPool::kAnnotationBytes);

  // Every head keeps rows 0..4: regular blocks, until a row is appended that does not continue them.
  for (auto& layer : rows) {
    for (HeadRows& head : layer) {
      const size_t key_bytes = head.keys.size() / head.pos.size(),
                   value_bytes = head.values.size() / head.pos.size();
      head.pos.resize(5);
      head.bias.resize(5);
      head.keys.resize(5 * key_bytes);
      head.values.resize(5 * value_bytes);
    }
  }
  ASSERT_TRUE(cache.replace(rows, Pos(64)).ok());
  EXPECT_EQ(pool->stats().bytes_used, kHeads * kBlockBytes);
  SequenceCache fork = cache.fork();
  Rng rng(3);
  extend(fork, rng, 20);
  std::string after;
  for (const BlockEntry& entry : fork.head(0, 0).blocks) after += entry.is_annotated ? 'a' : '-';
  EXPECT_EQ(after, "a-");
  EXPECT_EQ(annotated(0, 0), "-");  // the shared block was copied before it was annotated
  const HeadRows appended = fork.copy_head(0, 0);
  for (int64_t i = 0; i < 5; ++i) EXPECT_EQ(appended.pos[static_cast<size_t>(i)], Pos(i));
  for (int64_t i = 5; i < 25; ++i) EXPECT_EQ(appended.pos[static_cast<size_t>(i)], Pos(64 + i - 5));
}

TEST(SequenceCache, AnnotationOfTheTailCountsAgainstTheBudget) {
  // One block a head and 100 bytes: the annotation that the next row needs does not fit.
  const auto pool = make_pool(mixed_layout(), kHeads * kBlockBytes + 100);
  SequenceCache cache = filled(*pool, 16, 1);
  Rng rng(3);
  auto rows = random_compaction(cache, rng, Pos(0), 1.0, 0.0);
  for (auto& layer : rows) {
    for (HeadRows& head : layer) {
      const size_t n = head.pos.size() / 2;
      head.keys.resize(head.keys.size() / 2);
      head.values.resize(head.values.size() / 2);
      head.pos.resize(n);
      head.bias.resize(n);
    }
  }
  ASSERT_TRUE(cache.replace(rows, Pos(16)).ok());
  const Snapshot before = snapshot(cache);
  const auto refused = cache.reserve(1);
  ASSERT_FALSE(refused.ok());
  EXPECT_EQ(refused.error().kind, ErrorKind::out_of_memory);
  EXPECT_TRUE(snapshot(cache) == before);
}

TEST(SequenceCache, ReplaceWorksInAFullPool) {
  const auto pool = make_pool(mixed_layout(), 8 * kHeads * kBlockBytes);
  SequenceCache cache = filled(*pool, 128, 1);
  ASSERT_EQ(pool->bytes_available(), 0);
  Rng rng(12);
  const auto rows = random_compaction(cache, rng, Pos(120), 0.3, 0.0);
  ASSERT_TRUE(cache.replace(rows, Pos(120)).ok());
  EXPECT_TRUE(testing::operator==(cache.copy_head(0, 1), rows[0][1]));
  EXPECT_LT(pool->stats().bytes_used, pool->stats().bytes_budget);
}

TEST(SequenceCache, ReplaceOfSharedRowsRefusesWhole) {
  const auto pool = make_pool(mixed_layout(), 9 * kHeads * kBlockBytes);
  SequenceCache cache = filled(*pool, 128, 1);
  const SequenceCache fork = cache.fork();
  Rng rng(12);
  const auto rows = random_compaction(cache, rng, Pos(100), 0.4, 0.0);  // more than the one free block a head
  const Snapshot before = snapshot(cache);
  const PoolStats stats = pool->stats();
  const auto refused = cache.replace(rows, Pos(100));
  ASSERT_FALSE(refused.ok());
  EXPECT_EQ(refused.error().kind, ErrorKind::out_of_memory);
  EXPECT_TRUE(snapshot(cache) == before);
  EXPECT_TRUE(snapshot(fork) == before);
  EXPECT_TRUE(testing::operator==(pool->stats(), stats));
}

TEST(SequenceCache, ReplaceRefusesRowsThatDoNotFit) {
  const auto pool = make_pool(mixed_layout(), kMiB);
  SequenceCache cache = filled(*pool, 40, 1);
  Rng rng(1);
  const auto good = random_compaction(cache, rng, Pos(20), 0.5, 0.0);
  const Snapshot before = snapshot(cache);
  const auto refuses = [&](auto change, Pos compacted_end = Pos(20)) {
    auto rows = good;
    change(rows);
    const auto result = cache.replace(rows, compacted_end);
    EXPECT_EQ(result.ok() ? ErrorKind::io : result.error().kind, ErrorKind::invalid_argument);
    EXPECT_TRUE(snapshot(cache) == before);
  };
  const auto unchanged = [](auto&) {};
  refuses([](auto& rows) { rows.pop_back(); });
  refuses([](auto& rows) { rows[0].pop_back(); });
  refuses([](auto& rows) { rows[1].emplace_back(); });
  refuses([](auto& rows) { rows[0][1].keys.pop_back(); });
  refuses([](auto& rows) { rows[0][1].values.clear(); });
  refuses([](auto& rows) { rows[2][0].bias.push_back(0.0f); });
  refuses([](auto& rows) { rows[2][0].pos.back() = Pos(40); });
  refuses([](auto& rows) { rows[2][0].pos.front() = Pos(-1); });
  refuses([](auto& rows) { std::swap(rows[2][0].pos.front(), rows[2][0].pos.back()); });
  refuses([](auto& rows) { rows[2][0].bias[1] = std::nanf(""); });
  refuses([](auto& rows) { rows[2][0].bias[1] = std::numeric_limits<float>::infinity(); });
  refuses(unchanged, Pos(41));
  refuses(unchanged, Pos(-1));
  EXPECT_TRUE(cache.replace(good, Pos(20)).ok());
}

TEST(SequenceCache, RestoreBringsBackAllFields) {
  const auto pool = make_pool(mixed_layout(), kMiB);
  SequenceCache cache = filled(*pool, 120, 1);
  Rng rng(2);
  ASSERT_TRUE(cache.replace(random_compaction(cache, rng, Pos(70), 0.5, 0.3), Pos(70)).ok());
  extend(cache, rng, 9);
  cache.drop_outside_window(cache.next_pos());
  Snapshot saved = snapshot(cache);
  EXPECT_GT(saved.dropped_end[2], Pos(0));
  const auto rows = random_compaction(cache, rng, Pos(0), 1.0, 0.0);  // nothing lies before 0: a plain copy
  const SequenceCache::Identity identity = cache.identity();
  cache.clear();
  ASSERT_TRUE(cache.restore(rows, identity).ok());
  Snapshot restored = snapshot(cache);
  saved.blocks.clear();
  restored.blocks.clear();
  EXPECT_TRUE(restored == saved);
  SequenceCache::Identity bad = identity;
  bad.dropped_end.clear();
  EXPECT_FALSE(cache.restore(rows, bad).ok());
  bad = identity;
  bad.n_compactions = -1;
  EXPECT_FALSE(cache.restore(rows, bad).ok());
  bad = identity;
  bad.n_squeezed = -1;
  EXPECT_FALSE(cache.restore(rows, bad).ok());
  bad = identity;
  bad.next_pos = Pos(100);  // rows go up to 128
  EXPECT_FALSE(cache.restore(rows, bad).ok());
}

TEST(SequenceCache, WindowedLayersGiveBlocksBack) {
  const auto pool = make_pool(mixed_layout(), kMiB);
  SequenceCache cache = filled(*pool, 100, 1);
  cache.drop_outside_window(Pos(39));  // row 0 is still seen
  EXPECT_EQ(cache.head(2, 0).n_rows, 100);
  cache.drop_outside_window(Pos(70));  // rows up to 30 are unseen: one block of 16, the second holds row 31
  EXPECT_EQ(cache.head(2, 0).n_rows, 84);
  cache.drop_outside_window(Pos(71));
  EXPECT_EQ(cache.head(2, 0).n_rows, 68);
  EXPECT_EQ(cache.head(2, 0).blocks[0].first_pos, Pos(32));
  EXPECT_EQ(cache.head(0, 0).n_rows, 100);
  EXPECT_EQ(pool->stats().n_blocks_used, 7 + 7 + 5);
  // A query at 71 needs rows from 32 on, one at 70 needs row 31, which is gone.
  const SequenceCache fork = cache.fork();
  for (SequenceCache sequence = fork.fork(); const int64_t end : {99, 71})
    EXPECT_TRUE(sequence.truncate(Pos(end)).ok()) << end;
  EXPECT_EQ(cache.truncate(Pos(70)).error().kind, ErrorKind::unsupported);
  EXPECT_EQ(cache.truncate(Pos(1)).error().kind, ErrorKind::unsupported);
  EXPECT_EQ(cache.next_pos(), Pos(100));
  ASSERT_TRUE(cache.truncate(Pos(0)).ok());  // nothing is needed from an empty conversation
  Rng rng(1);
  extend(cache, rng, 50);
  EXPECT_TRUE(cache.truncate(Pos(2)).ok());  // what is dropped now is nothing again
}

TEST(SequenceCache, LiveBlocksLieInOrderEvenWhenScattered) {
  const auto pool = make_pool(mixed_layout(), kMiB);
  Scatter scatter(*pool, 90, 17);
  SequenceCache cache(*pool);
  Rng rng(1);
  for (int step = 0; step < 10; ++step) {
    scatter.stir();
    extend(cache, rng, 20);
  }
  std::vector<kernels::KvBlockView> views;
  cache.block_views(0, 0, views);
  bool is_scattered = false;
  for (size_t i = 0; i < views.size(); ++i) {
    EXPECT_EQ(views[i].first_pos, static_cast<int32_t>(16 * i));
    is_scattered |= i > 0 && views[i].keys < views[i - 1].keys;
  }
  EXPECT_TRUE(is_scattered);  // else this test shows nothing
}

}  // namespace
}  // namespace sh::kv
