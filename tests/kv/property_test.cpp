// SPDX-License-Identifier: MIT
// Random operations on several sequences of one small pool, next to a model that keeps plain vectors.
#include <algorithm>
#include <cstring>
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
  int64_t next_pos = 0, compacted_end = 0, n_compactions = 0, n_squeezed = 0;
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
  int64_t n_spliced() const { return n_spliced_; }
  int64_t n_layers_changed() const { return n_layers_changed_; }

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
    else if (choice < 60)
      fork(index);
    else if (choice < 69)
      truncate(pairs_[index]);
    else if (choice < 77)
      replace(pairs_[index]);
    else if (choice < 80)
      rebase(pairs_[index]);
    else if (choice < 88)
      compact_beside(pairs_[index]);
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
    // Some steps have rows changed under them, layer by layer; some of those from a fork.
    Pair fork = below(3) == 0 ? compacted_fork(pair) : Pair{};
    const bool replaces = fork.cache == nullptr && below(3) == 0;
    const Snapshot of_fork = fork.cache != nullptr ? snapshot(*fork.cache) : Snapshot{};
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
    ModelSequence appended;
    const int64_t n_keep = below(4) == 0 ? below(n + 1) : n;
    for (int32_t layer = 0; layer < static_cast<int32_t>(kLayout.layers.size()); ++layer)
      append(pair, appended, layer, n, n_keep, [&] {
        if (below(3) != 0) return;
        if (fork.cache != nullptr) splice_layer(pair, fork, layer);
        if (replaces) replace_layer(pair, layer);
      });
    EXPECT_TRUE(fork.cache == nullptr || snapshot(*fork.cache) == of_fork);
    if (below(6) == 0) {
      pair.cache->rollback();
      return;
    }
    pair.cache->commit(n_keep);
    for (size_t layer = 0; layer < appended.heads.size(); ++layer)
      for (size_t head = 0; head < appended.heads[layer].size(); ++head) {
        std::vector<ModelRow>& rows = pair.model.heads[layer][head];
        rows.insert(rows.end(), appended.heads[layer][head].begin(), appended.heads[layer][head].end());
      }
    pair.model.next_pos += n_keep;
  }

  /// Appends n rows in random parts, `between` before and after each; n_keep of them go to the model.
  template <typename F>
  void append(Pair& pair, ModelSequence& model, int32_t layer, int64_t n, int64_t n_keep, const F& between) {
    const LayerLayout& shape = kLayout.layers[static_cast<size_t>(layer)];
    if (shape.n_heads == 0) return;
    const Mat<float> keys = random_matrix(rng_, n, int64_t{shape.n_heads} * shape.key_width);
    const Mat<float> values = random_matrix(rng_, n, int64_t{shape.n_heads} * shape.value_width);
    between();
    for (int64_t offset = 0; offset < n;) {
      const int64_t part = 1 + below(n - offset);
      pair.cache->append(best_kernels(), layer, offset, keys.view().slice(offset, part),
                         values.view().slice(offset, part));
      offset += part;
      between();
    }
    for (int32_t head = 0; head < shape.n_heads; ++head) {
      for (int64_t row = 0; row < n_keep; ++row) {
        const float* key = keys.row(row) + head * shape.key_width;
        const float* value = values.row(row) + head * shape.value_width;
        model.heads[static_cast<size_t>(layer)][static_cast<size_t>(head)].push_back(
            {{key, key + shape.key_width}, {value, value + shape.value_width}, 0.0f, pair.model.next_pos + row});
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
      for (size_t head = 0; head < rows[layer].size(); ++head)
        keep_rows(pair.model.heads[layer][head], rows[layer][head]);
    }
    pair.model.compacted_end = compacted_end.value;
    ++pair.model.n_compactions;
  }

  /// What the head had of the kept rows, with the new biases. Rows may share a position, but not a key.
  static void keep_rows(std::vector<ModelRow>& head, const HeadRows& kept) {
    std::vector<ModelRow> result;
    size_t from = 0;
    for (size_t row = 0; row < kept.pos.size(); ++row, ++from) {
      const auto is_row = [&](const ModelRow& old) {
        const size_t n_bytes = old.key.size() * sizeof(float);
        return std::memcmp(old.key.data(), kept.keys.data() + row * n_bytes, n_bytes) == 0;
      };
      while (from < head.size() && !is_row(head[from])) ++from;
      ASSERT_LT(from, head.size());
      EXPECT_EQ(Pos(head[from].pos), kept.pos[row]);
      result.push_back(head[from]);
      result.back().bias = kept.bias[row];
    }
    head = std::move(result);
  }

  /// A fork whose rows before some position are compacted; without a cache when that was refused.
  Pair compacted_fork(const Pair& pair) {
    Pair fork{std::make_unique<SequenceCache>(pair.cache->fork()), pair.model};
    const int64_t n_compactions = fork.model.n_compactions;
    replace(fork);
    return fork.model.n_compactions > n_compactions ? std::move(fork) : Pair{};
  }

  static void splice_rows(std::vector<ModelRow>& head, const std::vector<ModelRow>& other, int64_t boundary) {
    std::vector<ModelRow> result = other;
    std::erase_if(result, [&](const ModelRow& row) { return row.pos >= boundary; });
    std::erase_if(head, [&](const ModelRow& row) { return row.pos < boundary; });
    result.insert(result.end(), head.begin(), head.end());
    head = std::move(result);
  }

  /// Compacts a fork while the sequence goes on, then splices.
  void compact_beside(Pair& pair) {
    if (below(2) == 0) pair.cache->seal();
    Pair fork = compacted_fork(pair);
    if (fork.cache == nullptr) return;
    const int64_t compacted_end = fork.model.compacted_end;
    const int64_t boundary =
        below(2) == 0 ? fork.model.next_pos : compacted_end + below(fork.model.next_pos - compacted_end + 1);
    for (int64_t n = below(3); n > 0; --n) step(pair);
    if (below(4) == 0) step(fork);
    if (below(2) == 0) drop(pair);
    const Snapshot before = snapshot(*pair.cache), other = snapshot(*fork.cache);
    const PoolStats stats = pool_.stats();
    if (!pair.cache->splice(*fork.cache, Pos(boundary)).ok()) {
      ++n_refused_;
      EXPECT_TRUE(snapshot(*pair.cache) == before);
      EXPECT_TRUE(testing::operator==(stats, pool_.stats()));
      EXPECT_LT(pool_.bytes_available(), 4 * (16 * 24 * 4 + BlockPool::kAnnotationBytes));  // a cut block a head
      return;
    }
    ++n_spliced_;
    EXPECT_TRUE(snapshot(*fork.cache) == other);
    for (size_t layer = 0; layer < kLayout.layers.size(); ++layer)
      for (size_t head = 0; head < pair.model.heads[layer].size(); ++head)
        splice_rows(pair.model.heads[layer][head], fork.model.heads[layer][head], boundary);
    pair.model.compacted_end = compacted_end;
    pair.model.n_compactions = fork.model.n_compactions;
    if (pair.model.dropped_end <= boundary) pair.model.dropped_end = std::min(fork.model.dropped_end, boundary);
  }

  /// The fork was made when the open step of `pair` began.
  void splice_layer(Pair& pair, const Pair& fork, int32_t layer) {
    const int64_t boundary = below(2) == 0 ? pair.model.next_pos : below(pair.model.next_pos + 1);
    if (!pair.cache->splice_layer(layer, *fork.cache, Pos(boundary)).ok()) {
      ++n_refused_;
      return;
    }
    ++n_layers_changed_;
    const size_t l = static_cast<size_t>(layer);
    for (size_t head = 0; head < pair.model.heads[l].size(); ++head)
      splice_rows(pair.model.heads[l][head], fork.model.heads[l][head], boundary);
  }

  void replace_layer(Pair& pair, int32_t layer) {
    const size_t l = static_cast<size_t>(layer);
    const Pos next_pos = pair.cache->next_pos();
    std::vector<HeadRows> rows = random_compaction(*pair.cache, rng_, next_pos, 0.5, 0.2)[l];
    for (HeadRows& head : rows) cut_rows(head, next_pos);
    if (!pair.cache->replace_layer(test_threads(), layer, rows).ok()) {
      ++n_refused_;
      return;
    }
    ++n_layers_changed_;
    for (size_t head = 0; head < rows.size(); ++head) keep_rows(pair.model.heads[l][head], rows[head]);
  }

  /// Takes `shift` positions out before some position: rows of the shortened piece come to share one.
  void rebase(Pair& pair) {
    const int64_t cut = below(pair.model.next_pos + 1), shift = below(cut + 1);
    const auto moved = [&](int64_t pos) {
      return pos < cut - shift ? pos : pos < cut ? cut - shift : pos - shift;
    };
    auto rows = random_compaction(*pair.cache, rng_, Pos(0), 1.0, 0.0);
    for (auto& layer : rows)
      for (HeadRows& head : layer)
        for (Pos& pos : head.pos) pos = Pos(moved(pos.value));
    SequenceCache::Identity identity = pair.cache->identity();
    identity.next_pos = Pos(moved(identity.next_pos.value));
    identity.compacted_end = Pos(moved(std::max(int64_t{identity.compacted_end.value}, cut)));
    for (Pos& dropped : identity.dropped_end) dropped = Pos(moved(dropped.value));
    ++identity.n_compactions;
    identity.n_squeezed += shift;
    const Snapshot before = snapshot(*pair.cache);
    const PoolStats stats = pool_.stats();
    if (!pair.cache->restore(rows, identity).ok()) {
      ++n_refused_;
      EXPECT_TRUE(snapshot(*pair.cache) == before);
      EXPECT_TRUE(testing::operator==(stats, pool_.stats()));
      return;
    }
    ++n_replaced_;
    for (auto& layer : pair.model.heads)
      for (auto& head : layer)
        for (ModelRow& row : head) row.pos = moved(row.pos);
    pair.model.next_pos = identity.next_pos.value;
    pair.model.compacted_end = identity.compacted_end.value;
    pair.model.dropped_end = moved(pair.model.dropped_end);
    ++pair.model.n_compactions;
    pair.model.n_squeezed += shift;
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
      EXPECT_EQ(cache.n_logical(), pair.model.next_pos + pair.model.n_squeezed);
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
  int64_t n_refused_ = 0, n_steps_ = 0, n_replaced_ = 0, n_spliced_ = 0, n_layers_changed_ = 0;
};

TEST(SequenceCacheProperty, RandomOperationsMatchPlainVectors) {
  const uint64_t first_seed = test_seed(1000);
  int64_t n_refused = 0, n_steps = 0, n_replaced = 0, n_spliced = 0, n_layers_changed = 0;
  for (uint64_t seed = first_seed; seed < first_seed + 12; ++seed) {
    SCOPED_TRACE("SHORTHAND_TEST_SEED=" + std::to_string(seed));
    const auto pool = make_pool(kLayout, 100'000);  // some 90 blocks
    {
      World world(*pool, seed);
      world.run(400);
      n_refused += world.n_refused();
      n_steps += world.n_steps();
      n_replaced += world.n_replaced();
      n_spliced += world.n_spliced();
      n_layers_changed += world.n_layers_changed();
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
  EXPECT_GT(n_spliced, 100);
  EXPECT_GT(n_layers_changed, 100);
  RecordProperty("refused", static_cast<int>(n_refused));
  RecordProperty("steps", static_cast<int>(n_steps));
  RecordProperty("spliced", static_cast<int>(n_spliced));
  RecordProperty("layers_changed", static_cast<int>(n_layers_changed));
}

}  // namespace
}  // namespace sh::kv
