// SPDX-License-Identifier: MIT
// Forks of one sequence used by several threads at once: contents, copies on write, budget and references. Meant
// to be run under the thread sanitizer, too.
#include <atomic>
#include <mutex>
#include <thread>

#include "kv/kv_testing.h"

namespace sh::kv {
namespace {

using namespace testing;

const KvLayout kLayout{.layers = {{.n_heads = 2, .key_width = 4, .value_width = 4, .window = 0},
                                  {.n_heads = 1, .key_width = 8, .value_width = 4, .window = 0}},
                       .key_type = DType::f32,
                       .value_type = DType::f32};

/// A sequence and what its rows must be: every row's key and value hold one number, the same in all heads.
struct Tagged {
  SequenceCache cache;
  std::vector<std::pair<Pos, float>> rows;

  Tagged fork() const { return {cache.fork(), rows}; }
};

bool extend_tagged(Tagged& tagged, int64_t n_tokens, int64_t n_kept, float& next_tag) {
  if (!tagged.cache.reserve(n_tokens).ok()) return false;
  for (int32_t layer = 0; layer < 2; ++layer) {
    const LayerLayout& shape = kLayout.layers[static_cast<size_t>(layer)];
    Mat<float> keys(n_tokens, shape.n_heads * shape.key_width),
        values(n_tokens, shape.n_heads * shape.value_width);
    for (int64_t row = 0; row < n_tokens; ++row) {
      std::fill_n(keys.row(row), keys.cols, next_tag + static_cast<float>(row));
      std::fill_n(values.row(row), values.cols, next_tag + static_cast<float>(row));
    }
    tagged.cache.append(best_kernels(), layer, 0, keys.view(), values.view());
  }
  const Pos first = tagged.cache.next_pos();
  tagged.cache.commit(n_kept);
  for (int64_t row = 0; row < n_kept; ++row)
    tagged.rows.emplace_back(first + row, next_tag + static_cast<float>(row));
  next_tag += static_cast<float>(n_tokens);
  return true;
}

/// Every second row before `end` goes.
bool compact_tagged(Tagged& tagged, Pos end) {
  std::vector<std::vector<HeadRows>> rows;
  for (int32_t layer = 0; layer < 2; ++layer) {
    rows.emplace_back();
    const LayerLayout& shape = kLayout.layers[static_cast<size_t>(layer)];
    for (int32_t head = 0; head < shape.n_heads; ++head) {
      const HeadRows all = tagged.cache.copy_head(layer, head);
      HeadRows& kept = rows.back().emplace_back();
      const auto add = [](std::vector<std::byte>& to, const std::vector<std::byte>& from, size_t row,
                          int32_t width) {
        const auto n_bytes = static_cast<std::ptrdiff_t>(sizeof(float)) * width;
        const auto begin = from.begin() + static_cast<std::ptrdiff_t>(row) * n_bytes;
        to.insert(to.end(), begin, begin + n_bytes);
      };
      for (size_t row = 0; row < all.pos.size(); ++row) {
        if (all.pos[row] < end && row % 2 == 0) continue;
        add(kept.keys, all.keys, row, shape.key_width);
        add(kept.values, all.values, row, shape.value_width);
        kept.bias.push_back(all.bias[row]);
        kept.pos.push_back(all.pos[row]);
      }
    }
  }
  if (!tagged.cache.replace(rows, std::max(end, tagged.cache.compacted_end())).ok()) return false;
  std::vector<std::pair<Pos, float>> kept;
  for (size_t row = 0; row < tagged.rows.size(); ++row) {
    if (tagged.rows[row].first >= end || row % 2 != 0) kept.push_back(tagged.rows[row]);
  }
  tagged.rows = std::move(kept);
  return true;
}

bool is_right(const Tagged& tagged) {
  for (int32_t layer = 0; layer < 2; ++layer) {
    for (int32_t head = 0; head < kLayout.layers[static_cast<size_t>(layer)].n_heads; ++head) {
      const SequenceCache::DecodedHead rows = tagged.cache.decode_head(best_kernels(), layer, head);
      if (rows.pos.size() != tagged.rows.size()) return false;
      for (size_t row = 0; row < tagged.rows.size(); ++row) {
        const Pos pos = tagged.rows[row].first;
        const float tag = tagged.rows[row].second;
        const float* key = rows.keys.row(static_cast<int64_t>(row));
        const float* value = rows.values.row(static_cast<int64_t>(row));
        if (rows.pos[row] != pos || std::any_of(key, key + rows.keys.cols, [&](float x) { return x != tag; }) ||
            std::any_of(value, value + rows.values.cols, [&](float x) { return x != tag; }))
          return false;
      }
    }
  }
  return true;
}

/// Where threads leave forks for each other, so that most tail blocks have holders on several threads.
struct Exchange {
  std::mutex mutex;
  std::vector<Tagged> forks;
};

struct Counts {
  std::atomic<int64_t> steps = 0, refused = 0, spliced = 0, wrong = 0;
};

class Worker {
 public:
  Worker(Tagged first, Exchange& exchange, Counts& counts, uint64_t seed)
      : exchange_(exchange), counts_(counts), rng_(seed), next_tag_(static_cast<float>(seed) * 1'000'000.0f) {
    mine_.push_back(std::move(first));
  }

  void run(int n_operations) {
    for (int i = 0; i < n_operations; ++i) {
      const size_t index = rng_.next_below(mine_.size());
      operate(mine_[index], index);
      if (i % 8 == 0) check();
    }
    check();
  }

 private:
  int64_t below(int64_t n) { return static_cast<int64_t>(rng_.next_below(static_cast<uint64_t>(n))); }

  void operate(Tagged& tagged, size_t index) {
    const int64_t choice = below(10);
    if (choice < 4) {
      step(tagged);
    } else if (choice < 5) {
      if (mine_.size() < 4) mine_.push_back(tagged.fork());
    } else if (choice < 6) {
      truncate(tagged);
    } else if (choice < 7) {
      compact_beside(tagged);
    } else if (choice < 9) {
      swap_forks(tagged);
    } else if (mine_.size() > 1) {
      mine_.erase(mine_.begin() + static_cast<std::ptrdiff_t>(index));
    }
  }

  void step(Tagged& tagged) {
    const int64_t n = 1 + below(12);
    const bool done = extend_tagged(tagged, n, n - below(2), next_tag_);
    ++(done ? counts_.steps : counts_.refused);
  }

  void truncate(Tagged& tagged) {
    const Pos lowest = tagged.cache.compacted_end();
    const Pos end = lowest + below(tagged.cache.next_pos() - lowest + 1);
    counts_.wrong += !tagged.cache.truncate(end).ok();
    std::erase_if(tagged.rows, [&](const auto& row) { return row.first >= end; });
  }

  void compact_beside(Tagged& tagged) {
    Tagged fork = tagged.fork();
    const Pos boundary = tagged.cache.next_pos();
    if (below(2) == 0) tagged.cache.seal();
    if (!compact_tagged(fork, boundary)) {
      ++counts_.refused;
      return;
    }
    step(tagged);
    if (!tagged.cache.splice(fork.cache, boundary).ok()) {
      ++counts_.refused;
      return;
    }
    ++counts_.spliced;
    std::erase_if(tagged.rows, [&](const auto& row) { return row.first < boundary; });
    tagged.rows.insert(tagged.rows.begin(), fork.rows.begin(), fork.rows.end());
  }

  /// Leaves a fork for the others and takes one of theirs in place of the sequence.
  void swap_forks(Tagged& tagged) {
    Tagged fork = tagged.fork();
    const std::lock_guard lock(exchange_.mutex);
    std::vector<Tagged>& forks = exchange_.forks;
    forks.push_back(std::move(fork));
    if (forks.size() < 4) return;
    const size_t taken = rng_.next_below(forks.size());
    tagged = std::move(forks[taken]);
    forks.erase(forks.begin() + static_cast<std::ptrdiff_t>(taken));
  }

  void check() {
    for (const Tagged& tagged : mine_) counts_.wrong += !is_right(tagged);
  }

  Exchange& exchange_;
  Counts& counts_;
  Rng rng_;
  float next_tag_;
  std::vector<Tagged> mine_;
};

TEST(Threads, ForksOfOneSequenceAreIndependent) {
  const uint64_t seed = test_seed(1);
  const auto pool =
      BlockPool::create(kLayout, 90'000).value();  // some 170 blocks: the threads get in each other's way
  Counts counts;
  {
    Exchange exchange;
    Tagged base{SequenceCache(*pool), {}};
    float tag = 0.0f;
    ASSERT_TRUE(extend_tagged(base, 40, 40, tag));
    std::vector<std::thread> threads;
    for (uint64_t i = 0; i < 4; ++i)
      threads.emplace_back([&, i, first = std::make_shared<Tagged>(base.fork())] {
        Worker(std::move(*first), exchange, counts, seed + i).run(1500);
      });
    for (std::thread& thread : threads) thread.join();
    EXPECT_TRUE(is_right(base));
    for (const Tagged& tagged : exchange.forks) EXPECT_TRUE(is_right(tagged));
  }
  EXPECT_EQ(counts.wrong, 0);
  EXPECT_EQ(pool->stats().n_blocks_used, 0);
  EXPECT_EQ(pool->stats().bytes_used, 0);
  EXPECT_EQ(pool->stats().n_blocks_shared, 0);
  EXPECT_EQ(pool->bytes_available(), 90'000);
  // Else the threads did not meet at the budget's end, or did too little.
  EXPECT_GT(counts.refused, 20);
  EXPECT_GT(counts.spliced, 100);
  EXPECT_GT(pool->stats().n_copies_on_write, 100);
  RecordProperty("steps", static_cast<int>(counts.steps));
  RecordProperty("refused", static_cast<int>(counts.refused));
  RecordProperty("spliced", static_cast<int>(counts.spliced));
}

}  // namespace
}  // namespace sh::kv
