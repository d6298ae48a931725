// SPDX-License-Identifier: MIT
// What the tests of the cache and of attention share: random rows, scattered pools, snapshots to compare with.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "base/env.h"
#include "base/rng.h"
#include "kernels/kernel_set.h"
#include "kv/sequence_cache.h"

namespace sh::kv::testing {

/// The best set of this machine, or the one that SHORTHAND_KERNELS forces.
inline const kernels::KernelSet& best_kernels() {
  return *kernels::choose_kernels(env::kernels().value_or("")).value();
}

inline std::unique_ptr<BlockPool> make_pool(const KvLayout& layout, int64_t budget_bytes) {
  auto pool = BlockPool::create(layout, budget_bytes);
  EXPECT_TRUE(pool.ok());
  return std::move(pool).value();
}

/// Threads for what takes them; two, so that writing side by side is tested wherever it is used.
inline ThreadPool& test_threads() {
  static ThreadPool threads(2);
  return threads;
}

/// The seed of a random test: SHORTHAND_TEST_SEED, or `usual`.
inline uint64_t test_seed(uint64_t usual) {
  const auto text = env::get("SHORTHAND_TEST_SEED");
  return text ? std::stoull(*text) : usual;
}

inline Mat<float> random_matrix(Rng& rng, int64_t rows, int64_t cols) {
  Mat<float> m(rows, cols);
  for (float& x : m.data) x = static_cast<float>(rng.next_normal());
  return m;
}

/// Keeps blocks of all arenas allocated and lets go of some at random, so that what others allocate meanwhile lies
/// scattered.
class Scatter {
 public:
  Scatter(BlockPool& pool, int64_t n_blocks, uint64_t seed) : pool_(pool), rng_(seed) {
    const int32_t n_layers = static_cast<int32_t>(pool.layout().layers.size());
    for (int64_t i = 0; i < n_blocks; ++i) {
      const int32_t arena = pool.arena_of_layer(static_cast<int32_t>(i % n_layers));
      if (arena >= 0) held_.push_back(pool.allocate(arena).value());
    }
  }
  ~Scatter() { pool_.release(held_); }
  Scatter(const Scatter&) = delete;
  Scatter& operator=(const Scatter&) = delete;

  void stir(int64_t n_blocks = 4) {
    for (; n_blocks > 0 && !held_.empty(); --n_blocks) {
      std::swap(held_[rng_.next_below(held_.size())], held_.back());
      pool_.release(held_.back());
      held_.pop_back();
    }
  }

 private:
  BlockPool& pool_;
  Rng rng_;
  std::vector<BlockId> held_;
};

/// Appends random rows to every layer of an open step.
inline void append_random(SequenceCache& cache, Rng& rng, int64_t offset, int64_t n_tokens) {
  const KvLayout& layout = cache.pool().layout();
  for (size_t layer = 0; layer < layout.layers.size(); ++layer) {
    const LayerLayout& shape = layout.layers[layer];
    if (shape.n_heads == 0) continue;
    const Mat<float> keys = random_matrix(rng, n_tokens, int64_t{shape.n_heads} * shape.key_width);
    const Mat<float> values = random_matrix(rng, n_tokens, int64_t{shape.n_heads} * shape.value_width);
    cache.append(best_kernels(), static_cast<int32_t>(layer), offset, keys.view(), values.view());
  }
}

/// A whole step of random rows.
inline void extend(SequenceCache& cache, Rng& rng, int64_t n_tokens) {
  ASSERT_TRUE(cache.reserve(n_tokens).ok());
  append_random(cache, rng, 0, n_tokens);
  cache.commit(n_tokens);
}

/// Two shapes, a layer without attention and a window.
inline KvLayout mixed_layout(DType dtype = DType::f32) {
  return KvLayout{.layers = {{.n_heads = 2, .key_width = 32, .value_width = 64, .window = 0},
                             {},
                             {.n_heads = 1, .key_width = 64, .value_width = 32, .window = 40}},
                  .key_type = dtype,
                  .value_type = dtype};
}
inline constexpr int64_t kBlockBytes = 16 * 96 * 4;  // of mixed_layout in f32, in both arenas
inline constexpr int64_t kHeads = 3;                 // of mixed_layout

/// A sequence of n random tokens.
inline SequenceCache filled(BlockPool& pool, int64_t n_tokens, uint64_t seed) {
  SequenceCache cache(pool);
  Rng rng(seed);
  extend(cache, rng, n_tokens);
  return cache;
}

/// A random part of the rows before `end` with random biases (some -inf), a different part in every head; rows
/// from `end` on as they are. `emptied` heads lose all rows before `end`.
inline std::vector<std::vector<HeadRows>> random_compaction(const SequenceCache& cache, Rng& rng, Pos end,
                                                            double keep, double emptied) {
  std::vector<std::vector<HeadRows>> result;
  const KvLayout& layout = cache.pool().layout();
  for (size_t layer = 0; layer < layout.layers.size(); ++layer) {
    result.emplace_back();
    for (int32_t head = 0; head < layout.layers[layer].n_heads; ++head) {
      const HeadRows all = cache.copy_head(static_cast<int32_t>(layer), head);
      const size_t key_bytes = all.pos.empty() ? 0 : all.keys.size() / all.pos.size();
      const size_t value_bytes = all.pos.empty() ? 0 : all.values.size() / all.pos.size();
      const double keep_head = rng.next_unit() < emptied ? 0.0 : keep * 2.0 * rng.next_unit();
      HeadRows kept;
      for (size_t row = 0; row < all.pos.size(); ++row) {
        const bool is_old = all.pos[row] < end;
        if (is_old && rng.next_unit() >= keep_head) continue;
        kept.keys.insert(kept.keys.end(), all.keys.begin() + static_cast<std::ptrdiff_t>(row * key_bytes),
                         all.keys.begin() + static_cast<std::ptrdiff_t>((row + 1) * key_bytes));
        kept.values.insert(kept.values.end(), all.values.begin() + static_cast<std::ptrdiff_t>(row * value_bytes),
                           all.values.begin() + static_cast<std::ptrdiff_t>((row + 1) * value_bytes));
        kept.pos.push_back(all.pos[row]);
        const bool hidden = rng.next_unit() < 0.05;
        const float bias =
            hidden ? -std::numeric_limits<float>::infinity() : static_cast<float>(rng.next_normal());
        kept.bias.push_back(is_old ? bias : all.bias[row]);
      }
      result.back().push_back(std::move(kept));
    }
  }
  return result;
}

/// Forgets the rows at or after `end`.
inline void cut_rows(HeadRows& rows, Pos end) {
  if (rows.pos.empty()) return;
  const size_t key_bytes = rows.keys.size() / rows.pos.size(), value_bytes = rows.values.size() / rows.pos.size();
  const size_t n = static_cast<size_t>(std::lower_bound(rows.pos.begin(), rows.pos.end(), end) - rows.pos.begin());
  rows.pos.resize(n);
  rows.bias.resize(n);
  rows.keys.resize(n * key_bytes);
  rows.values.resize(n * value_bytes);
}

inline bool operator==(const HeadRows& a, const HeadRows& b) {
  return a.keys == b.keys && a.values == b.values && a.bias == b.bias && a.pos == b.pos;
}

/// All that can be seen of a sequence.
struct Snapshot {
  std::vector<HeadRows> heads;
  Pos next_pos, compacted_end;
  int64_t n_compactions, n_rebases, n_squeezed;
  std::vector<Pos> dropped_end;
  std::vector<BlockId> blocks;
  bool operator==(const Snapshot& other) const {
    return std::equal(heads.begin(), heads.end(), other.heads.begin(), other.heads.end(),
                      [](const HeadRows& a, const HeadRows& b) { return testing::operator==(a, b); }) &&
           next_pos == other.next_pos && compacted_end == other.compacted_end &&
           n_compactions == other.n_compactions && n_rebases == other.n_rebases &&
           n_squeezed == other.n_squeezed && dropped_end == other.dropped_end && blocks == other.blocks;
  }
};

inline Snapshot snapshot(const SequenceCache& cache) {
  const SequenceCache::Identity& identity = cache.identity();
  Snapshot result{{},
                  identity.next_pos,
                  identity.compacted_end,
                  identity.n_compactions,
                  identity.n_rebases,
                  identity.n_squeezed,
                  identity.dropped_end,
                  {}};
  const KvLayout& layout = cache.pool().layout();
  for (size_t layer = 0; layer < layout.layers.size(); ++layer) {
    for (int32_t head = 0; head < layout.layers[layer].n_heads; ++head) {
      result.heads.push_back(cache.copy_head(static_cast<int32_t>(layer), head));
      for (const BlockEntry& entry : cache.head(static_cast<int32_t>(layer), head).blocks)
        result.blocks.push_back(entry.block);
    }
  }
  return result;
}

inline bool operator==(const PoolStats& a, const PoolStats& b) {
  return a.n_blocks_used == b.n_blocks_used && a.n_blocks_shared == b.n_blocks_shared &&
         a.bytes_used == b.bytes_used && a.n_copies_on_write == b.n_copies_on_write;
}

}  // namespace sh::kv::testing
