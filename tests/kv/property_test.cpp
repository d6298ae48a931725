// SPDX-License-Identifier: MIT
// Random operations on several sequences of one small pool, next to a model that keeps plain vectors.
#include <algorithm>
#include <map>
#include <set>
#include <tuple>

#include "kv/kv_testing.h"

namespace sh::kv {
namespace {

using namespace testing;

const KvLayout kLayout{.layers = {{.n_heads = 2, .key_width = 8, .value_width = 4, .window = 0},
                                  {},
                                  {.n_heads = 1, .key_width = 16, .value_width = 8, .window = 24},
                                  {.n_heads = 1, .key_width = 4, .value_width = 8, .window = 0}},
                       .key_type = DType::f32,
                       .value_type = DType::f32};

struct ModelRow {
  std::vector<float> key, value;
  float bias;
  int64_t pos;
};

struct ModelSequence {
  std::vector<std::vector<std::vector<ModelRow>>> heads;  // [layer][head][row]
  int64_t next_pos = 0, compacted_end = 0, n_compactions = 0;
  int64_t dropped_end = 0;  // of the layer with a window
  ModelSequence() {
    for (const LayerLayout& layer : kLayout.layers) heads.emplace_back(static_cast<size_t>(layer.n_heads));
  }
};

struct Pair {
  std::unique_ptr<SequenceCache> cache;
  ModelSequence model;
};

class World {
 public:
  World(BlockPool& pool, uint64_t seed) : pool_(pool), rng_(seed) {}

  void run(int n_operations) {
    for (int i = 0; i < n_operations && !::testing::Test::HasFailure(); ++i) {
      SCOPED_TRACE("operation " + std::to_string(i));
      operate();
      check_all();
    }
  }
  int64_t n_refused() const { return n_refused_; }
  int64_t n_steps() const { return n_steps_; }
  int64_t n_replaced() const { return n_replaced_; }

 private:
  int64_t below(int64_t n) { return static_cast<int64_t>(rng_.next_below(static_cast<uint64_t>(n))); }

  void operate() {
    if (pairs_.empty() || (pairs_.size() < 5 && below(12) == 0)) {
      pairs_.push_back({std::make_unique<SequenceCache>(pool_), {}});
      return;
    }
    const size_t index = static_cast<size_t>(below(static_cast<int64_t>(pairs_.size())));
    const int64_t choice = below(100);
    if (choice < 50)
      step(pairs_[index]);
    else if (choice < 62)
      fork(index);
    else if (choice < 74)
      truncate(pairs_[index]);
    else if (choice < 84)
      replace(pairs_[index]);
    else if (choice < 92)
      drop(pairs_[index]);
    else if (choice < 94)
      clear(pairs_[index]);
    else if (choice < 96)
      move(index);
    else
      pairs_.erase(pairs_.begin() + static_cast<std::ptrdiff_t>(index));
  }

  void step(Pair& pair) {
    const int64_t n = 1 + below(40);
    const Snapshot before = snapshot(*pair.cache);
    const PoolStats stats = pool_.stats();
    if (!pair.cache->reserve(n).ok()) {
      ++n_refused_;
      EXPECT_TRUE(snapshot(*pair.cache) == before);
      EXPECT_TRUE(testing::operator==(stats, pool_.stats()));
      // A refusal with room for the worst case would be a false one: copy, new blocks and annotation in every
      // head.
      const int64_t worst = 4 * ((n / kBlockRows + 2) * 16 * 24 * 4 + 2 * BlockPool::kAnnotationBytes);
      EXPECT_LT(pool_.bytes_available(), worst);
      return;
    }
    ++n_steps_;
    ModelSequence after = pair.model;
    const int64_t n_keep = below(4) == 0 ? below(n + 1) : n;
    for (int32_t layer = 0; layer < static_cast<int32_t>(kLayout.layers.size()); ++layer)
      append(pair, after, layer, n, n_keep);
    if (below(6) == 0) {
      pair.cache->rollback();
      return;
    }
    pair.cache->commit(n_keep);
    pair.model = std::move(after);
    pair.model.next_pos += n_keep;
  }

  /// Appends n rows in random parts; n_keep of them go to the model.
  void append(Pair& pair, ModelSequence& model, int32_t layer, int64_t n, int64_t n_keep) {
    const LayerLayout& shape = kLayout.layers[static_cast<size_t>(layer)];
    if (shape.n_heads == 0) return;
    const Mat<float> keys = random_matrix(rng_, n, int64_t{shape.n_heads} * shape.key_width);
    const Mat<float> values = random_matrix(rng_, n, int64_t{shape.n_heads} * shape.value_width);
    for (int64_t offset = 0; offset < n;) {
      const int64_t part = 1 + below(n - offset);
      pair.cache->append(best_kernels(), layer, offset, keys.view().slice(offset, part),
                         values.view().slice(offset, part));
      offset += part;
    }
    for (int32_t head = 0; head < shape.n_heads; ++head) {
      for (int64_t row = 0; row < n_keep; ++row) {
        const float* key = keys.row(row) + head * shape.key_width;
        const float* value = values.row(row) + head * shape.value_width;
        model.heads[static_cast<size_t>(layer)][static_cast<size_t>(head)].push_back(
            {{key, key + shape.key_width}, {value, value + shape.value_width}, 0.0f, model.next_pos + row});
      }
    }
  }

  void fork(size_t index) {
    if (pairs_.size() >= 5) return;
    Pair copy{std::make_unique<SequenceCache>(pairs_[index].cache->fork()), pairs_[index].model};
    pairs_.push_back(std::move(copy));
  }

  void move(size_t index) {
    SequenceCache away = std::move(*pairs_[index].cache);
    *pairs_[index].cache = std::move(away);
  }

  void clear(Pair& pair) {
    pair.cache->clear();
    pair.model = ModelSequence();
  }

  void truncate(Pair& pair) {
    const int64_t end = below(pair.model.next_pos + 2);
    const int64_t first_seen = std::max<int64_t>(0, end - 23);
    const bool window_lost = first_seen < std::min(pair.model.dropped_end, end);
    const bool expected = end <= pair.model.next_pos && end >= pair.model.compacted_end && !window_lost;
    const Snapshot before = snapshot(*pair.cache);
    const bool done = pair.cache->truncate(Pos(end)).ok();
    EXPECT_EQ(done, expected) << "truncate to " << end;
    if (!done) {
      EXPECT_TRUE(snapshot(*pair.cache) == before);
      return;
    }
    for (auto& layer : pair.model.heads)
      for (auto& head : layer) std::erase_if(head, [&](const ModelRow& row) { return row.pos >= end; });
    pair.model.next_pos = end;
    pair.model.dropped_end = std::min(pair.model.dropped_end, end);
  }

  void replace(Pair& pair) {
    const int64_t end = below(pair.model.next_pos + 1);
    const double keep = rng_.next_unit() * 0.6;
    const auto rows = random_compaction(*pair.cache, rng_, Pos(end), keep, 0.2);
    const Snapshot before = snapshot(*pair.cache);
    const PoolStats stats = pool_.stats();
    const Pos compacted_end = std::max(Pos(end), pair.cache->compacted_end());
    if (!pair.cache->replace(rows, compacted_end).ok()) {
      ++n_refused_;
      EXPECT_TRUE(snapshot(*pair.cache) == before);
      EXPECT_TRUE(testing::operator==(stats, pool_.stats()));
      return;
    }
    ++n_replaced_;
    for (size_t layer = 0; layer < kLayout.layers.size(); ++layer) {
      for (size_t head = 0; head < rows[layer].size(); ++head) {
        // What the head had, by position, with the new biases: positions within a head are distinct here.
        std::map<int64_t, ModelRow> by_pos;
        for (ModelRow& row : pair.model.heads[layer][head]) by_pos[row.pos] = row;
        std::vector<ModelRow> kept;
        for (size_t row = 0; row < rows[layer][head].pos.size(); ++row) {
          kept.push_back(by_pos.at(rows[layer][head].pos[row].value));
          kept.back().bias = rows[layer][head].bias[row];
        }
        pair.model.heads[layer][head] = std::move(kept);
      }
    }
    pair.model.compacted_end = compacted_end.value;
    ++pair.model.n_compactions;
  }

  void drop(Pair& pair) {
    const int64_t lowest = below(pair.model.next_pos + 1);
    pair.cache->drop_outside_window(Pos(lowest));
    std::vector<ModelRow>& rows = pair.model.heads[2][0];
    const size_t n_left = static_cast<size_t>(pair.cache->head(2, 0).n_rows);
    ASSERT_LE(n_left, rows.size());
    const size_t n_dropped = rows.size() - n_left;
    for (size_t row = 0; row < n_dropped; ++row) EXPECT_GE(lowest - rows[row].pos, 24);
    if (n_dropped > 0) pair.model.dropped_end = std::max(pair.model.dropped_end, rows[n_dropped - 1].pos + 1);
    rows.erase(rows.begin(), rows.begin() + static_cast<std::ptrdiff_t>(n_dropped));
    // At most one block may hold unseen rows.
    EXPECT_LE(std::count_if(rows.begin(), rows.end(), [&](const ModelRow& row) { return lowest - row.pos >= 24; }),
              kBlockRows - 1);
  }

  void check_all() {
    using Key = std::tuple<int32_t, int32_t>;
    std::map<Key, std::pair<int64_t, bool>> blocks;  // references and annotation
    for (const Pair& pair : pairs_) {
      const SequenceCache& cache = *pair.cache;
      EXPECT_EQ(cache.next_pos(), Pos(pair.model.next_pos));
      EXPECT_EQ(cache.compacted_end(), Pos(pair.model.compacted_end));
      EXPECT_EQ(cache.n_compactions(), pair.model.n_compactions);
      EXPECT_EQ(cache.identity().dropped_end[2], Pos(pair.model.dropped_end));
      for (int32_t layer = 0; layer < static_cast<int32_t>(kLayout.layers.size()); ++layer) {
        for (int32_t head = 0; head < kLayout.layers[static_cast<size_t>(layer)].n_heads; ++head) {
          check_head(cache, pair.model, layer, head);
          for (const BlockEntry& entry : cache.head(layer, head).blocks) {
            auto& [n_references, is_annotated] = blocks[{entry.block.arena, entry.block.slot}];
            ++n_references;
            is_annotated = entry.is_annotated;
            EXPECT_GT(entry.n_rows, 0);
            EXPECT_EQ(entry.is_annotated, pool_.is_annotated(entry.block));
          }
        }
      }
    }
    int64_t n_bytes = 0;
    for (const auto& [key, use] : blocks) {
      const BlockId block{std::get<0>(key), std::get<1>(key)};
      EXPECT_EQ(pool_.n_references(block), use.first);
      n_bytes += pool_.block_bytes(block.arena) + (use.second ? BlockPool::kAnnotationBytes : 0);
    }
    EXPECT_EQ(pool_.stats().n_blocks_used, static_cast<int64_t>(blocks.size()));
    EXPECT_EQ(pool_.stats().bytes_used, n_bytes);
    EXPECT_LE(n_bytes, pool_.stats().bytes_budget);
  }

  void check_head(const SequenceCache& cache, const ModelSequence& model, int32_t layer, int32_t head) {
    const std::vector<ModelRow>& expected = model.heads[static_cast<size_t>(layer)][static_cast<size_t>(head)];
    const SequenceCache::DecodedHead rows = cache.decode_head(best_kernels(), layer, head);
    ASSERT_EQ(rows.pos.size(), expected.size());
    ASSERT_EQ(cache.head(layer, head).n_rows, static_cast<int64_t>(expected.size()));
    for (size_t row = 0; row < expected.size(); ++row) {
      ASSERT_EQ(rows.pos[row], Pos(expected[row].pos));
      ASSERT_EQ(rows.bias[row], expected[row].bias);
      const int64_t r = static_cast<int64_t>(row);
      ASSERT_TRUE(std::equal(expected[row].key.begin(), expected[row].key.end(), rows.keys.row(r)));
      ASSERT_TRUE(std::equal(expected[row].value.begin(), expected[row].value.end(), rows.values.row(r)));
    }
  }

  BlockPool& pool_;
  Rng rng_;
  std::vector<Pair> pairs_;
  int64_t n_refused_ = 0, n_steps_ = 0, n_replaced_ = 0;
};

TEST(SequenceCacheProperty, RandomOperationsMatchPlainVectors) {
  const uint64_t first_seed = test_seed(1000);
  int64_t n_refused = 0, n_steps = 0, n_replaced = 0;
  for (uint64_t seed = first_seed; seed < first_seed + 12; ++seed) {
    SCOPED_TRACE("SHORTHAND_TEST_SEED=" + std::to_string(seed));
    const auto pool = make_pool(kLayout, 100'000);  // some 90 blocks
    {
      World world(*pool, seed);
      world.run(400);
      n_refused += world.n_refused();
      n_steps += world.n_steps();
      n_replaced += world.n_replaced();
    }
    EXPECT_EQ(pool->stats().n_blocks_used, 0);
    EXPECT_EQ(pool->stats().bytes_used, 0);
    EXPECT_EQ(pool->stats().n_blocks_shared, 0);
    if (HasFailure()) return;
  }
  // The mix must reach all branches often, or the test shows little.
  EXPECT_GT(n_refused, 100);
  EXPECT_GT(n_steps, 1000);
  EXPECT_GT(n_replaced, 100);
  RecordProperty("refused", static_cast<int>(n_refused));
  RecordProperty("steps", static_cast<int>(n_steps));
}

}  // namespace
}  // namespace sh::kv
