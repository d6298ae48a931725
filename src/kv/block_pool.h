// SPDX-License-Identifier: MIT
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>

#include "base/result.h"
#include "kv/layout.h"

namespace sh::kv {

/// A block of the pool: its arena (one for each distinct row size) and its slot there.
struct BlockId {
  int32_t arena = -1;
  int32_t slot = -1;
  bool operator==(const BlockId&) const = default;
};

struct PoolStats {
  int64_t n_blocks_used = 0;      // with at least one reference
  int64_t n_blocks_shared = 0;    // with more than one
  int64_t n_blocks_capacity = 0;  // what the budget allows (smallest arena's view when several)
  int64_t bytes_used = 0;         // of used blocks, annotations included
  int64_t bytes_budget = 0;
  int64_t bytes_reserved = 0;  // address space, not memory
  int64_t n_copies_on_write = 0;
};

/// Owns the memory of the KV cache. Address space is reserved once; a page costs memory from the first touch until
/// no block on it is used, then it goes back to the operating system.
/// A block holds kBlockRows keys, then kBlockRows values. Its annotation (bias [kBlockRows] f32, pos [kBlockRows]
/// i32) lies in a separate region that only blocks with irregular rows touch.
/// Threads: one at a time, except that reading rows may go on in parallel.
class BlockPool {
 public:
  /// `budget_bytes`: sum over all used blocks. Errors: invalid_argument (layout), out_of_memory (address space).
  static Result<std::unique_ptr<BlockPool>> create(const KvLayout& layout, int64_t budget_bytes);
  ~BlockPool();
  BlockPool(const BlockPool&) = delete;
  BlockPool& operator=(const BlockPool&) = delete;

  const KvLayout& layout() const;
  /// The arena of a layer's blocks; -1 for a layer without attention.
  int32_t arena_of_layer(int32_t layer) const;
  int64_t block_bytes(int32_t arena) const;  // keys and values
  static constexpr int64_t kAnnotationBytes = kBlockRows * 8;

  /// A block with one reference; its content is undefined. Errors: out_of_memory when the budget is spent.
  Result<BlockId> allocate(int32_t arena);
  void add_reference(BlockId block);
  void release(BlockId block);
  /// Many at once: pages that become free go back to the operating system in runs.
  void release(std::span<const BlockId> blocks);
  int32_t n_references(BlockId block) const;
  /// What the budget has left.
  int64_t bytes_available() const;
  /// How many more blocks of the arena the budget allows.
  int64_t n_available(int32_t arena) const;

  std::byte* keys(BlockId block);
  std::byte* values(BlockId block);
  float* bias(BlockId block);  // first touch commits the annotation: mark_annotated() first
  int32_t* pos(BlockId block);
  /// Counts the annotation as used memory; the caller has seen to it that the budget allows it. The flag is
  /// cleared when the block is released for good.
  void mark_annotated(BlockId block);
  bool is_annotated(BlockId block) const;
  /// A copy with one reference of its own. Errors: out_of_memory.
  Result<BlockId> clone(BlockId block);

  PoolStats stats() const;

 private:
  BlockPool();
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace sh::kv
