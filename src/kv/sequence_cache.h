// SPDX-License-Identifier: MIT
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "base/mat_view.h"
#include "base/result.h"
#include "kernels/kernel_set.h"
#include "kv/block_pool.h"
#include "kv/pos.h"

namespace sh::kv {

/// A block in a head's list. Rows before `n_rows` are valid. A block need not be full to be followed by another.
struct BlockEntry {
  BlockId block;
  int32_t n_rows = 0;
  Pos first_pos;             // of row 0; when !is_annotated row r has first_pos + r and bias 0
  bool is_annotated = false; // bias and pos of the rows are in the block's annotation
};

/// The rows of one (sequence, layer, KV head), ordered by position.
struct HeadCache {
  std::vector<BlockEntry> blocks;
  int64_t n_rows = 0;
};

/// Rows that replace a head's content: what a compaction writes. Plain values, one entry a row.
struct HeadRows {
  std::vector<std::byte> keys;    // [n_rows, key_row_bytes] in the pool's encoding
  std::vector<std::byte> values;  // [n_rows, value_row_bytes]
  std::vector<float> bias;        // [n_rows]
  std::vector<Pos> pos;           // [n_rows], increasing
};

struct CacheUsage {
  int64_t n_logical = 0;        // tokens the conversation has
  int64_t n_rows = 0;           // sum over layers and heads
  double n_physical = 0;        // rows per head, mean over heads
  int64_t n_blocks = 0;
  int64_t bytes = 0;            // of its blocks, annotations included; shared blocks count in full
  int64_t n_compactions = 0;
};

/// All HeadCaches of one conversation and its logical length. Move-only; the pool must outlive it.
/// A step is: reserve(n) → append() for every layer → commit(n); rollback() instead of commit() leaves it as before reserve().
/// Threads: one at a time; const members may run in parallel.
class SequenceCache {
 public:
  explicit SequenceCache(BlockPool& pool);
  ~SequenceCache();
  SequenceCache(SequenceCache&& other) noexcept;
  SequenceCache& operator=(SequenceCache&& other) noexcept;

  /// Takes all blocks that n_tokens more rows in every head need, copies shared tail blocks (copy-on-write) included.
  /// Errors: out_of_memory with how many blocks were needed and free; nothing has changed then.
  Result<void> reserve(int64_t n_tokens);
  /// Writes rows of one layer at positions next_pos() + offset, offset + 1, ...: keys [n, n_heads * key_width] f32 after rope, values likewise.
  /// Needs: reserve() covered them; offsets of one layer arrive in order.
  void append(const kernels::KernelSet& kernels, int32_t layer, int64_t offset, MatView<const float> keys, MatView<const float> values);
  void commit(int64_t n_tokens);
  void rollback();

  /// A second sequence with the same rows, sharing all blocks.
  SequenceCache fork() const;
  void clear();
  /// Forgets all rows at positions >= end; the logical length becomes end.
  /// Errors: unsupported when end lies before compacted_end(): those rows no longer stand for single tokens.
  Result<void> truncate(Pos end);
  /// Drops rows that no query at or after `lowest_query` can see, in layers with a window.
  void drop_outside_window(Pos lowest_query);

  /// Replaces all rows of all heads in one step; rows[layer][head]. Either commits whole or changes nothing.
  /// `compacted_end`: rows before it may no longer stand for single tokens.
  /// Errors: out_of_memory.
  Result<void> replace(const std::vector<std::vector<HeadRows>>& rows, Pos compacted_end);

  Pos next_pos() const;           // logical length
  Pos compacted_end() const;      // 0 when never compacted
  int64_t n_compactions() const;
  const HeadCache& head(int32_t layer, int32_t head) const;
  BlockPool& pool() const;
  CacheUsage usage() const;

  /// The head's blocks as attention reads them (query_begin/query_end left 0), rows appended but not committed included.
  void block_views(int32_t layer, int32_t head, std::vector<kernels::KvBlockView>& out) const;
  /// All rows of a head, decoded: keys [n_rows, key_width], values [n_rows, value_width] f32, bias, pos.
  struct DecodedHead {
    Mat<float> keys, values;
    std::vector<float> bias;
    std::vector<Pos> pos;
  };
  DecodedHead decode_head(const kernels::KernelSet& kernels, int32_t layer, int32_t head) const;
  /// The same rows in their encoding.
  HeadRows copy_head(int32_t layer, int32_t head) const;

 private:
  BlockPool* pool_;
  std::vector<std::vector<HeadCache>> heads_;  // [layer][head]
  Pos next_pos_;
  Pos compacted_end_;
  int64_t n_compactions_ = 0;
  int64_t n_reserved_ = 0;
};

}  // namespace sh::kv
