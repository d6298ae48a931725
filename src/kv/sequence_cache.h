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
  Pos first_pos;              // of row 0; when !is_annotated row r has first_pos + r and bias 0
  bool is_annotated = false;  // bias and pos of the rows are in the block's annotation
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

/// One block as attention reads it, query_begin and query_end left 0.
kernels::KvBlockView block_view(BlockPool& pool, const BlockEntry& entry);

struct CacheUsage {
  int64_t n_logical = 0;  // tokens the conversation has
  int64_t n_rows = 0;     // sum over layers and heads
  double n_physical = 0;  // rows per head, mean over heads
  int64_t n_blocks = 0;
  int64_t bytes = 0;  // of its blocks, annotations included; shared blocks count in full
  int64_t n_compactions = 0;
};

/// All HeadCaches of one conversation and its logical length. Move-only; the pool must outlive it.
/// A step is: reserve(n) → append() for every layer → commit(n); rollback() instead of commit() leaves the rows
/// as before reserve().
/// Threads: one at a time; const members may run in parallel.
class SequenceCache {
 public:
  explicit SequenceCache(BlockPool& pool);
  ~SequenceCache();
  SequenceCache(SequenceCache&& other) noexcept;
  SequenceCache& operator=(SequenceCache&& other) noexcept;

  /// Takes all blocks that n_tokens more rows in every head need, copies of shared tail blocks
  /// (copy-on-write) included.
  /// Errors: out_of_memory with how many blocks were needed and free, context_exceeded when positions run out;
  /// nothing has changed then.
  Result<void> reserve(int64_t n_tokens);
  /// Writes rows of one layer at positions next_pos() + offset, offset + 1, ...: keys [n, n_heads * key_width] f32
  /// after rope, values likewise.
  /// Needs: reserve() covered them; offsets of one layer arrive in order.
  void append(const kernels::KernelSet& kernels, int32_t layer, int64_t offset, MatView<const float> keys,
              MatView<const float> values);
  /// Keeps the first n_tokens of the step and drops what was appended behind them (rejected drafts).
  /// Needs: every layer with attention has appended them.
  void commit(int64_t n_tokens);
  /// The rows are those before reserve(). A tail block that reserve() copied or annotated stays so.
  void rollback();

  /// A second sequence with the same rows, sharing all blocks.
  SequenceCache fork() const;
  void clear();
  /// Forgets all rows at positions >= end; the logical length becomes end.
  /// Errors: invalid_argument when end lies outside the conversation; unsupported when it lies before
  /// compacted_end(), because those rows no longer stand for single tokens, or when a window at `end` needs rows
  /// that drop_outside_window() has dropped.
  Result<void> truncate(Pos end);
  /// Drops the blocks that no query at or after `lowest_query` can see, in layers with a window.
  void drop_outside_window(Pos lowest_query);

  /// Replaces all rows of all heads in one step; rows[layer][head]. Either commits whole or changes nothing.
  /// `compacted_end`: rows before it may no longer stand for single tokens.
  /// Works in a full pool, too: memory that only this sequence uses is given back first.
  /// Errors: out_of_memory; invalid_argument for rows that do not fit the layout or the conversation.
  Result<void> replace(const std::vector<std::vector<HeadRows>>& rows, Pos compacted_end);
  /// Like replace(), and sets all that the sequence knows of itself: what a saved conversation is read back with.
  struct Identity {
    Pos next_pos;
    Pos compacted_end;
    int64_t n_compactions = 0;
    std::vector<Pos> dropped_end;  // [layers] rows before it may have been dropped by drop_outside_window()
  };
  Result<void> restore(const std::vector<std::vector<HeadRows>>& rows, const Identity& identity);
  const Identity& identity() const { return identity_; }

  Pos next_pos() const { return identity_.next_pos; }            // logical length
  Pos compacted_end() const { return identity_.compacted_end; }  // 0 when never compacted
  int64_t n_compactions() const { return identity_.n_compactions; }
  const HeadCache& head(int32_t layer, int32_t head) const;
  BlockPool& pool() const { return *pool_; }
  CacheUsage usage() const;

  /// The head's blocks as attention reads them, rows appended but not committed included. Replaces out.
  void block_views(int32_t layer, int32_t head, std::vector<kernels::KvBlockView>& out) const;
  /// All rows of a head, decoded: keys [n_rows, key_width], values [n_rows, value_width] f32, bias, pos.
  struct DecodedHead {
    Mat<float> keys, values;
    std::vector<float> bias;
    std::vector<Pos> pos;
  };
  DecodedHead decode_head(const kernels::KernelSet& kernels, int32_t layer, int32_t head) const;
  /// Some rows of a head, decoded into buffers that are used again.
  /// Shapes: rows increasing; keys [rows, key_width], values [rows, value_width] f32; bias and pos [rows].
  void decode_rows(const kernels::KernelSet& kernels, int32_t layer, int32_t head, std::span<const int32_t> rows,
                   Mat<float>& keys, Mat<float>& values, std::vector<float>& bias,
                   std::vector<int32_t>& pos) const;
  std::vector<Pos> positions(int32_t layer, int32_t head) const;
  /// The same rows in their encoding.
  HeadRows copy_head(int32_t layer, int32_t head) const;

 private:
  /// What n more tokens cost one head.
  struct Growth {
    bool copies_tail = false;
    bool annotates_tail = false;
    int64_t n_blocks = 0;  // new ones, the copy not counted
    int64_t n_bytes = 0;
  };
  Growth growth(int32_t arena, const HeadCache& cache, int64_t n_tokens) const;
  void grow(int32_t arena, HeadCache& cache, const Growth& growth);
  Pos last_pos(const BlockEntry& entry) const;
  /// Tokens of the open step that the head already has.
  int64_t n_appended(const HeadCache& cache) const;
  void append_head(const kernels::KernelSet& kernels, const LayerLayout& shape, HeadCache& cache, Pos first,
                   MatView<const float> keys, MatView<const float> values);
  /// Drops rows at positions >= end and empty blocks from the back.
  void drop_from(Pos end);
  void release_all();
  Result<void> check_rows(const std::vector<std::vector<HeadRows>>& rows, const Identity& identity) const;
  void write_head(int32_t layer, const HeadRows& rows, HeadCache& cache);

  BlockPool* pool_;
  std::vector<std::vector<HeadCache>> heads_;  // [layer][head]
  Identity identity_;
  int64_t n_reserved_ = 0;  // tokens of the open step
};

}  // namespace sh::kv
