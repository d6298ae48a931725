// SPDX-License-Identifier: MIT
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <vector>

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
/// Threads: any, at the same time: counts, flags and lists are under one lock that is held for microseconds.
/// The bytes of a block (keys, values, bias, pos) need no lock: whoever holds a reference may read them, and
/// whoever holds the only one may write. To see n_references() == 1 on a reference of one's own is to be alone
/// with the block from then on: a second reference is only ever made from an existing one, the only one is the
/// caller's, and what former holders read or wrote happened before their release(), so before the lock was taken
/// here. A number above 1 may fall at any moment: it is a reason to copy, never one to expect company.
class BlockPool {
 public:
  /// Bytes of the budget that are set aside for the allocations of one change, so that no other thread can spend
  /// them half way. What is left of it goes back to the budget with the object.
  class Claim {
   public:
    Claim(Claim&& other) noexcept;
    Claim& operator=(Claim&&) = delete;
    ~Claim();

   private:
    friend class BlockPool;
    Claim(BlockPool& pool, int64_t n_bytes) : pool_(&pool), n_bytes_(n_bytes) {}
    BlockPool* pool_;
    int64_t n_bytes_;
  };

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

  /// Sets n_bytes aside, or nothing and nullopt when the budget has less. `n_bytes_coming`: what counts as free
  /// although it is still used; the caller alone uses it and releases it before it allocates from the claim.
  std::optional<Claim> claim(int64_t n_bytes, int64_t n_bytes_coming = 0);
  /// What release(blocks) would give back at least: the bytes of those that have one reference only.
  int64_t bytes_held_alone(std::span<const BlockId> blocks) const;

  /// A block with one reference; its content is undefined. Errors: out_of_memory when the budget is spent.
  Result<BlockId> allocate(int32_t arena);
  /// The same out of a claim, which must have room for it.
  BlockId allocate(int32_t arena, Claim& claim);
  /// Many at once, their pages committed in runs. Shapes: as many as `blocks` has room for, lowest slots first.
  void allocate(int32_t arena, std::span<BlockId> blocks, Claim& claim);
  void add_reference(BlockId block);
  /// Many at once. The lock is let go of now and then, so that other threads do not wait for a whole conversation.
  void add_reference(std::span<const BlockId> blocks);
  void release(BlockId block);
  /// Many at once: pages that become free go back to the operating system in runs, before this returns but after
  /// others may use the budget.
  void release(std::span<const BlockId> blocks);
  int32_t n_references(BlockId block) const;
  /// Whether each has more than one reference; one hold of the lock for what a decode step asks of all heads.
  /// Replaces result.
  void are_shared(std::span<const BlockId> blocks, std::vector<bool>& result) const;
  /// What the budget has left beside claims.
  int64_t bytes_available() const;
  /// How many more blocks of the arena the budget allows.
  int64_t n_available(int32_t arena) const;

  std::byte* keys(BlockId block);
  std::byte* values(BlockId block);
  float* bias(BlockId block);  // first touch commits the annotation: mark_annotated() first
  int32_t* pos(BlockId block);
  /// Counts the annotation as used memory; the budget must allow it. The flag is cleared when the block is
  /// released for good.
  void mark_annotated(BlockId block);
  /// The same out of a claim, which must have room for it.
  void mark_annotated(BlockId block, Claim& claim);
  bool is_annotated(BlockId block) const;
  /// A copy with one reference of its own. Errors: out_of_memory.
  Result<BlockId> clone(BlockId block);
  BlockId clone(BlockId block, Claim& claim);

  PoolStats stats() const;

 private:
  BlockPool();
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace sh::kv
