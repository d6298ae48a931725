// SPDX-License-Identifier: MIT
#pragma once

#include <cstdint>
#include <functional>
#include <span>
#include <vector>

#include "base/mat_view.h"
#include "base/result.h"
#include "base/thread_pool.h"
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
  bool is_sealed = false;     // no rows are added to it, however many it has
};

/// The rows of one (sequence, layer, KV head). Positions do not fall; rows may share one (after re-basing).
struct HeadCache {
  std::vector<BlockEntry> blocks;
  int64_t n_rows = 0;
};

/// Rows that replace a head's content: what a compaction writes. Plain values, one entry a row.
struct HeadRows {
  std::vector<std::byte> keys;    // [n_rows, key_row_bytes] in the pool's encoding
  std::vector<std::byte> values;  // [n_rows, value_row_bytes]
  std::vector<float> bias;        // [n_rows]
  std::vector<Pos> pos;           // [n_rows], non-decreasing
};

/// Where a row stands and what its score gets: from the annotation, or what a block without one implies.
Pos pos_of_row(BlockPool& pool, const BlockEntry& entry, int64_t row);
float bias_of_row(BlockPool& pool, const BlockEntry& entry, int64_t row);
/// One block as attention reads it, query_begin and query_end left 0.
kernels::KvBlockView block_view(BlockPool& pool, const BlockEntry& entry);

struct CacheUsage {
  int64_t n_logical = 0;    // tokens the conversation has
  int64_t n_positions = 0;  // next_pos(): fewer than tokens once positions were given anew
  int64_t n_rows = 0;     // sum over layers and heads
  double n_physical = 0;  // rows per head, mean over heads
  int64_t n_blocks = 0;
  int64_t bytes = 0;  // of its blocks, annotations included; shared blocks count in full
  int64_t n_compactions = 0, n_rebases = 0;
};

/// How many forks of a cache the pool has room for when each appends so many tokens: every head needs a copy of the
/// shared tail block, and blocks for the tokens.
int64_t forks_that_fit(const BlockPool& pool, int64_t tokens_each);

/// All HeadCaches of one conversation and its logical length. Move-only; the pool must outlive it.
/// A step is: reserve(n) → append() for every layer → commit(n); rollback() instead of commit() leaves the rows
/// as before reserve().
/// Threads: one at a time; const members may run in parallel. Sequences of one pool are independent of each other,
/// whatever blocks they share: a fork that its owner made may be used, and destroyed, on another thread while the
/// owner goes on. Passing a sequence to another thread and back needs the usual synchronisation.
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
  /// Later rows start a new block in every head. To be called on a sequence that goes on while a fork of it is
  /// compacted: its rows then split between blocks where the fork ends, and splice() moves none.
  /// Cost: none now; up to kBlockRows - 1 rows of room in every head until the rows before are replaced.
  void seal();
  void clear();
  /// Forgets all rows at positions >= end, which next_pos() becomes.
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
    int64_t n_rebases = 0;         // how often positions were given anew
    int64_t n_squeezed = 0;        // tokens that have no position of their own since: n_logical() - next_pos
    std::vector<Pos> dropped_end;  // [layers] rows before it may have been dropped by drop_outside_window()
  };
  /// Positions may all be new and next_pos smaller than it was: that is how a conversation is re-based.
  Result<void> restore(const std::vector<std::vector<HeadRows>>& rows, const Identity& identity);
  const Identity& identity() const { return identity_; }

  /// Replaces all rows before `boundary` by those that `other` has before it; own rows from `boundary` on stay.
  /// `other` is a compacted fork of this sequence, as this was when next_pos() was `boundary` or later. Its blocks
  /// are shared, not copied; only an own block with rows on both sides of the boundary is cut, in place when no
  /// other sequence uses it. compacted_end and n_compactions become other's; next_pos and
  /// n_logical() stay.
  /// Either commits whole or changes nothing. Works in a full pool, too: memory that only this sequence uses is
  /// given back first, and nothing at all is needed when no cut block is shared.
  /// Needs: this was not truncated to less than `boundary` after the fork; rows read since then would not show it.
  /// Errors: out_of_memory with how much was needed and free; invalid_argument for a boundary beyond either
  /// sequence or inside what either has compacted, for a sequence of another pool or inside a step.
  Result<void> splice(const SequenceCache& other, Pos boundary);
  /// The same for one layer, identity untouched (dropped_end included): for a compaction that goes layer by layer
  /// and calls mark_compacted(), or splice(), when it is through. Until then the layers disagree about what is
  /// compacted, and truncate() does not know what it must refuse.
  /// May be called inside a step, when `boundary` is next_pos() at most: rows that the layer has appended stay,
  /// and those that it has yet to append have their room.
  /// Errors: like splice(); what is compacted does not matter.
  Result<void> splice_layer(int32_t layer, const SequenceCache& other, Pos boundary);
  /// Replaces one layer's rows before next_pos(); rows[head]. Otherwise like splice_layer(): identity untouched,
  /// may be called inside a step (copy_head() then has rows at and after next_pos() that are not to be handed
  /// back), commits whole or changes nothing.
  /// `threads` write the heads: on one thread that is a tenth of a quick compaction.
  /// Errors: out_of_memory; invalid_argument for rows that do not fit the layout or lie at or after next_pos().
  Result<void> replace_layer(ThreadPool& threads, int32_t layer, const std::vector<HeadRows>& rows);
  /// Ends a compaction that went layer by layer: one compaction more, up to `compacted_end`.
  /// Errors: invalid_argument when that lies before what is compacted already or beyond next_pos().
  Result<void> mark_compacted(Pos compacted_end);

  Pos next_pos() const { return identity_.next_pos; }
  int64_t n_logical() const { return identity_.next_pos.value + identity_.n_squeezed; }  // tokens
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
  void decode_keys(const kernels::KernelSet& kernels, int32_t layer, int32_t head, std::span<const int32_t> rows,
                   Mat<float>& keys) const;
  void decode_values(const kernels::KernelSet& kernels, int32_t layer, int32_t head, std::span<const int32_t> rows,
                     Mat<float>& values) const;
  void read_annotations(int32_t layer, int32_t head, std::span<const int32_t> rows, std::vector<float>& bias,
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
  Growth growth(int32_t arena, const HeadCache& cache, int64_t n_tokens, bool tail_is_shared) const;
  /// What reserve() works with, kept from step to step so that decoding a token allocates nothing.
  struct StepPlan {
    std::vector<BlockId> tails;        // last blocks of the heads that have any, in the order of layers
    std::vector<bool> tail_is_shared;  // [tails]
    std::vector<Growth> growths;       // [heads of all layers]
    std::vector<std::vector<BlockId>> new_blocks;  // [arenas] without copies of tails
    std::vector<size_t> n_taken;                   // [arenas] of new_blocks
  };
  /// `blocks`: the growth's n_blocks.
  void grow(HeadCache& cache, const Growth& growth, std::span<const BlockId> blocks, BlockPool::Claim& claim);
  Pos last_pos(const BlockEntry& entry) const;
  /// Tokens of the open step that the head already has.
  int64_t n_appended(const HeadCache& cache) const;
  void append_head(const kernels::KernelSet& kernels, const LayerLayout& shape, HeadCache& cache, Pos first,
                   MatView<const float> keys, MatView<const float> values);
  /// Drops rows at positions >= end and empty blocks from the back.
  void drop_from(Pos end);
  std::vector<BlockId> all_blocks() const;
  void release_all();
  Result<void> check_rows(const std::vector<std::vector<HeadRows>>& rows, const Identity& identity) const;
  Result<void> check_layer(const std::vector<HeadRows>& rows, size_t layer, Pos next_pos) const;
  /// Bytes and blocks that write_head() takes for the rows of a layer's heads.
  struct Need {
    int64_t n_blocks = 0, n_bytes = 0;
  };
  Need need_of(const std::vector<HeadRows>& rows, size_t layer) const;
  HeadCache write_head(size_t layer, const HeadRows& rows, BlockPool::Claim& claim);

  /// How a boundary divides a head's blocks: what lies before it goes.
  struct Cut {
    size_t first_kept = 0;       // block; it has rows from the boundary on, or waits for rows of the open step
    int32_t n_rows_gone = 0;     // first rows of that block that go
    bool moves_to_copy = false;  // that block is shared: its other rows move to a block of their own
    bool seals_tail = false;     // rows yet to come in the open step do not fit the last block with rows
    int64_t n_rows_before = 0;
    int64_t n_new_blocks = 0;  // for rows yet to come, in place of room that goes
  };
  int32_t n_rows_before(const BlockEntry& entry, Pos boundary) const;
  Cut cut_at(const HeadCache& cache, Pos boundary) const;
  /// Moves the block's rows from n_rows_gone on to the front.
  void cut_block(size_t layer, BlockEntry& entry, const Cut& cut, BlockPool::Claim& claim);
  /// The rows before the boundary of a layer's heads; the entries' references belong to the caller.
  using MakeFronts = std::function<std::vector<HeadCache>(size_t layer, BlockPool::Claim& claim)>;
  /// Replaces rows before the boundary in layers [begin, end); `fronts` takes what `need` says.
  Result<void> replace_front(size_t begin, size_t end, Pos boundary, Need need, const MakeFronts& fronts);
  Result<void> splice_layers(size_t begin, size_t end, const SequenceCache& other, Pos boundary);

  BlockPool* pool_;
  std::vector<std::vector<HeadCache>> heads_;  // [layer][head]
  Identity identity_;
  int64_t n_reserved_ = 0;  // tokens of the open step
  StepPlan plan_;
};

}  // namespace sh::kv
