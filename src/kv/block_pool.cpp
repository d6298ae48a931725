// SPDX-License-Identifier: MIT
#include "kv/block_pool.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstring>
#include <functional>
#include <limits>
#include <mutex>
#include <queue>
#include <utility>
#include <vector>

#include "base/pages.h"
#include "kv/paged_region.h"

namespace sh::kv {

namespace {

struct Slot {
  int32_t n_references = 0;
  bool is_annotated = false;
};

/// Blocks of one row size.
struct Arena {
  int64_t key_row_bytes;
  int64_t value_row_bytes;
  int64_t n_slots;  // that the budget allows when no other arena uses any
  PagedRegion rows;
  PagedRegion annotations;
  std::vector<Slot> slots;  // [slots up to the highest ever used]
  // The lowest free slot is taken first: used blocks gather at the front, where several share a page, and whole
  // pages behind them become free. Last-in-first-out would scatter them and keep pages for single small blocks.
  std::priority_queue<int32_t, std::vector<int32_t>, std::greater<>> free_slots;

  int64_t block_bytes() const { return kBlockRows * (key_row_bytes + value_row_bytes); }
};

// What is done under one hold of the lock: bookkeeping of as many blocks, or one system call for as many pages.
// Longer holds would let a decode step wait for the end of a conversation of a million blocks.
constexpr size_t kSliceSize = 256;

/// f(slice) for consecutive parts of `all`.
template <typename T, typename F>
void for_slices(std::span<const T> all, const F& f) {
  for (size_t begin = 0; begin < all.size(); begin += kSliceSize)
    f(all.subspan(begin, std::min(kSliceSize, all.size() - begin)));
}

/// f(block) for all blocks under the lock, which is let go of between slices.
template <typename F>
void for_locked(std::mutex& mutex, std::span<const BlockId> blocks, const F& f) {
  for_slices(blocks, [&](std::span<const BlockId> slice) {
    const std::lock_guard lock(mutex);
    for (const BlockId block : slice) f(block);
  });
}

}  // namespace

struct BlockPool::State {
  KvLayout layout;  // this, arena_of_layer and the regions' addresses never change: no lock
  std::vector<int32_t> arena_of_layer;
  std::vector<Arena> arenas;
  PoolStats stats;
  int64_t bytes_claimed = 0;
  mutable std::mutex mutex;  // for what changes: slots, free lists, page counts, stats, claims

  Arena& arena(int32_t index) {
    SH_CHECK(index >= 0 && index < static_cast<int32_t>(arenas.size()), "no such arena");
    return arenas[static_cast<size_t>(index)];
  }
  std::byte* rows(BlockId block) {
    Arena& a = arenas[static_cast<size_t>(block.arena)];
    return a.rows.data() + block.slot * a.block_bytes();
  }
  std::byte* annotation(BlockId block) {
    return arenas[static_cast<size_t>(block.arena)].annotations.data() + block.slot * kAnnotationBytes;
  }

  // What follows is called with the lock held.

  Slot& slot(BlockId block) {
    Arena& a = arena(block.arena);
    SH_CHECK(block.slot >= 0 && block.slot < static_cast<int32_t>(a.slots.size()), "no such block");
    Slot& s = a.slots[static_cast<size_t>(block.slot)];
    SH_CHECK(s.n_references > 0, "the block was released");
    return s;
  }
  int64_t slot_bytes(BlockId block) {
    return (slot(block).is_annotated ? kAnnotationBytes : 0) + arena(block.arena).block_bytes();
  }
  /// Below 0 while a claim waits for what its owner is about to release.
  int64_t bytes_left() const { return stats.bytes_budget - stats.bytes_used - bytes_claimed; }
  /// Moves bytes from a claim, or from what is left, to what is used; false when there are not as many.
  bool spend(int64_t n_bytes, int64_t* claim);
  BlockId take_slot(int32_t arena_index);
  void annotate(BlockId block);
  /// Takes away one reference; pages wait in their regions.
  void drop_reference(BlockId block);
};

BlockPool::BlockPool() : state_(std::make_unique<State>()) {}
BlockPool::~BlockPool() = default;

Result<std::unique_ptr<BlockPool>> BlockPool::create(const KvLayout& layout, int64_t budget_bytes) {
  SH_RETURN_IF_ERROR(layout.validate());
  if (budget_bytes < 0)
    return Error{ErrorKind::invalid_argument,
                 fmt::format("KV cache: a budget of {} bytes, expected 0 or more", budget_bytes)};
  std::unique_ptr<BlockPool> pool(new BlockPool());
  State& state = *pool->state_;
  state.layout = layout;
  state.stats.bytes_budget = budget_bytes;
  for (const LayerLayout& layer : layout.layers) {
    if (layer.n_heads == 0) {
      state.arena_of_layer.push_back(-1);
      continue;
    }
    const int64_t key_row_bytes = row_bytes(layout.key_type, layer.key_width);
    const int64_t value_row_bytes = row_bytes(layout.value_type, layer.value_width);
    const auto same = std::find_if(state.arenas.begin(), state.arenas.end(), [&](const Arena& a) {
      return a.key_row_bytes == key_row_bytes && a.value_row_bytes == value_row_bytes;
    });
    state.arena_of_layer.push_back(static_cast<int32_t>(same - state.arenas.begin()));
    if (same != state.arenas.end()) continue;
    const int64_t block_bytes = kBlockRows * (key_row_bytes + value_row_bytes);
    const int64_t n_slots = budget_bytes / block_bytes;
    if (n_slots > std::numeric_limits<int32_t>::max())
      return Error{
          ErrorKind::invalid_argument,
          fmt::format("KV cache: a budget of {} bytes is {} blocks, more than {} can be numbered; ask for less",
                      budget_bytes, n_slots, std::numeric_limits<int32_t>::max())};
    SH_ASSIGN(PagedRegion rows, PagedRegion::reserve(n_slots * block_bytes));
    SH_ASSIGN(PagedRegion annotations, PagedRegion::reserve(n_slots * kAnnotationBytes));
    state.stats.bytes_reserved += rows.n_bytes() + annotations.n_bytes();
    state.arenas.push_back(
        Arena{key_row_bytes, value_row_bytes, n_slots, std::move(rows), std::move(annotations), {}, {}});
  }
  for (const Arena& arena : state.arenas) {
    int64_t& capacity = state.stats.n_blocks_capacity;
    capacity = &arena == state.arenas.data() ? arena.n_slots : std::min(capacity, arena.n_slots);
  }
  return pool;
}

const KvLayout& BlockPool::layout() const {
  return state_->layout;
}

int32_t BlockPool::arena_of_layer(int32_t layer) const {
  SH_CHECK(layer >= 0 && layer < static_cast<int32_t>(state_->arena_of_layer.size()), "no such layer");
  return state_->arena_of_layer[static_cast<size_t>(layer)];
}

int64_t BlockPool::block_bytes(int32_t arena) const {
  return state_->arena(arena).block_bytes();
}

// --- The budget ---

BlockPool::Claim::Claim(Claim&& other) noexcept : pool_(other.pool_), n_bytes_(std::exchange(other.n_bytes_, 0)) {}

BlockPool::Claim::~Claim() {
  if (n_bytes_ == 0) return;
  const std::lock_guard lock(pool_->state_->mutex);
  pool_->state_->bytes_claimed -= n_bytes_;
}

std::optional<BlockPool::Claim> BlockPool::claim(int64_t n_bytes, int64_t n_bytes_coming) {
  const std::lock_guard lock(state_->mutex);
  if (n_bytes > state_->bytes_left() + n_bytes_coming) return std::nullopt;
  state_->bytes_claimed += n_bytes;
  return Claim(*this, n_bytes);
}

int64_t BlockPool::bytes_held_alone(std::span<const BlockId> blocks) const {
  int64_t n_bytes = 0;
  for_locked(state_->mutex, blocks, [&](BlockId block) {
    if (state_->slot(block).n_references == 1) n_bytes += state_->slot_bytes(block);
  });
  return n_bytes;
}

bool BlockPool::State::spend(int64_t n_bytes, int64_t* claim) {
  if (n_bytes > (claim != nullptr ? *claim : bytes_left())) return false;
  stats.bytes_used += n_bytes;
  if (claim == nullptr) return true;
  *claim -= n_bytes;
  bytes_claimed -= n_bytes;
  SH_CHECK(stats.bytes_used <= stats.bytes_budget, "blocks that a claim counts on were not released");
  return true;
}

int64_t BlockPool::bytes_available() const {
  const std::lock_guard lock(state_->mutex);
  return std::max<int64_t>(0, state_->bytes_left());
}

int64_t BlockPool::n_available(int32_t arena) const {
  return bytes_available() / block_bytes(arena);
}

PoolStats BlockPool::stats() const {
  const std::lock_guard lock(state_->mutex);
  return state_->stats;
}

// --- Blocks ---

BlockId BlockPool::State::take_slot(int32_t arena_index) {
  Arena& a = arena(arena_index);
  int32_t slot = static_cast<int32_t>(a.slots.size());
  if (a.free_slots.empty()) {
    a.slots.emplace_back();
  } else {
    slot = a.free_slots.top();
    a.free_slots.pop();
  }
  a.slots[static_cast<size_t>(slot)] = Slot{.n_references = 1, .is_annotated = false};
  a.rows.retain(slot * a.block_bytes(), (slot + int64_t{1}) * a.block_bytes());
  ++stats.n_blocks_used;
  return BlockId{arena_index, slot};
}

Result<BlockId> BlockPool::allocate(int32_t arena) {
  const int64_t n_bytes = block_bytes(arena);
  const std::lock_guard lock(state_->mutex);
  if (!state_->spend(n_bytes, nullptr))
    return Error{
        ErrorKind::out_of_memory,
        fmt::format(
            "KV cache: a block needs {} bytes, {} of {} are free; compact or end a conversation, or raise the "
            "cache budget",
            n_bytes, std::max<int64_t>(0, state_->bytes_left()), state_->stats.bytes_budget)};
  return state_->take_slot(arena);
}

BlockId BlockPool::allocate(int32_t arena, Claim& claim) {
  const int64_t n_bytes = block_bytes(arena);
  const std::lock_guard lock(state_->mutex);
  SH_CHECK(state_->spend(n_bytes, &claim.n_bytes_), "the claim has no room for the block");
  return state_->take_slot(arena);
}

void BlockPool::allocate(int32_t arena, std::span<BlockId> blocks, Claim& claim) {
  const int64_t n_bytes = block_bytes(arena);
  for (size_t begin = 0; begin < blocks.size(); begin += kSliceSize) {
    const std::lock_guard lock(state_->mutex);
    for (BlockId& block : blocks.subspan(begin, std::min(kSliceSize, blocks.size() - begin))) {
      SH_CHECK(state_->spend(n_bytes, &claim.n_bytes_), "the claim has no room for the block");
      block = state_->take_slot(arena);
    }
  }
  const std::byte* rows = state_->arena(arena).rows.data();
  for (size_t begin = 0, end = 0; begin < blocks.size(); begin = end) {
    for (end = begin + 1; end < blocks.size() && blocks[end].slot == blocks[end - 1].slot + 1;) ++end;
    commit_pages(rows + blocks[begin].slot * n_bytes, (end - begin) * static_cast<size_t>(n_bytes));
  }
}

void BlockPool::add_reference(BlockId block) {
  add_reference(std::span<const BlockId>(&block, 1));
}

void BlockPool::add_reference(std::span<const BlockId> blocks) {
  for_locked(state_->mutex, blocks, [&](BlockId block) {
    if (++state_->slot(block).n_references == 2) ++state_->stats.n_blocks_shared;
  });
}

void BlockPool::State::drop_reference(BlockId block) {
  Slot& s = slot(block);
  --s.n_references;
  if (s.n_references == 1) --stats.n_blocks_shared;
  if (s.n_references > 0) return;
  Arena& a = arena(block.arena);
  const int64_t index = block.slot;
  a.rows.release(index * a.block_bytes(), (index + 1) * a.block_bytes());
  stats.bytes_used -= a.block_bytes();
  if (s.is_annotated) {
    a.annotations.release(index * kAnnotationBytes, (index + 1) * kAnnotationBytes);
    stats.bytes_used -= kAnnotationBytes;
  }
  --stats.n_blocks_used;
  a.free_slots.push(block.slot);
}

void BlockPool::release(BlockId block) {
  release(std::span<const BlockId>(&block, 1));
}

void BlockPool::release(std::span<const BlockId> blocks) {
  for_locked(state_->mutex, blocks, [&](BlockId block) { state_->drop_reference(block); });
  std::vector<std::pair<PagedRegion*, std::vector<int64_t>>> idle;
  {
    const std::lock_guard lock(state_->mutex);
    for (Arena& arena : state_->arenas) {
      if (arena.rows.has_idle()) idle.emplace_back(&arena.rows, arena.rows.take_idle());
      if (arena.annotations.has_idle()) idle.emplace_back(&arena.annotations, arena.annotations.take_idle());
    }
  }
  for (auto& [region, pages] : idle) {
    std::sort(pages.begin(), pages.end());
    for_slices(std::span<const int64_t>(pages), [&, region = region](std::span<const int64_t> slice) {
      const std::lock_guard lock(state_->mutex);
      region->give_back(slice);
    });
  }
}

int32_t BlockPool::n_references(BlockId block) const {
  const std::lock_guard lock(state_->mutex);
  return state_->slot(block).n_references;
}

void BlockPool::are_shared(std::span<const BlockId> blocks, std::vector<bool>& result) const {
  result.clear();
  result.reserve(blocks.size());
  for_locked(state_->mutex, blocks,
             [&](BlockId block) { result.push_back(state_->slot(block).n_references > 1); });
}

std::byte* BlockPool::keys(BlockId block) {
  return state_->rows(block);
}

std::byte* BlockPool::values(BlockId block) {
  return state_->rows(block) + kBlockRows * state_->arenas[static_cast<size_t>(block.arena)].key_row_bytes;
}

float* BlockPool::bias(BlockId block) {
  return reinterpret_cast<float*>(state_->annotation(block));
}

int32_t* BlockPool::pos(BlockId block) {
  return reinterpret_cast<int32_t*>(state_->annotation(block) + kBlockRows * sizeof(float));
}

void BlockPool::State::annotate(BlockId block) {
  slot(block).is_annotated = true;
  arena(block.arena)
      .annotations.retain(block.slot * kAnnotationBytes, (block.slot + int64_t{1}) * kAnnotationBytes);
}

void BlockPool::mark_annotated(BlockId block) {
  const std::lock_guard lock(state_->mutex);
  if (state_->slot(block).is_annotated) return;
  SH_CHECK(state_->spend(kAnnotationBytes, nullptr), "the budget has no room for the annotation");
  state_->annotate(block);
}

void BlockPool::mark_annotated(BlockId block, Claim& claim) {
  const std::lock_guard lock(state_->mutex);
  if (state_->slot(block).is_annotated) return;
  SH_CHECK(state_->spend(kAnnotationBytes, &claim.n_bytes_), "the claim has no room for the annotation");
  state_->annotate(block);
}

bool BlockPool::is_annotated(BlockId block) const {
  const std::lock_guard lock(state_->mutex);
  return state_->slot(block).is_annotated;
}

Result<BlockId> BlockPool::clone(BlockId block) {
  const int64_t n_bytes = block_bytes(block.arena) + (is_annotated(block) ? kAnnotationBytes : 0);
  std::optional<Claim> room = claim(n_bytes);
  if (!room)
    return Error{
        ErrorKind::out_of_memory,
        fmt::format("KV cache: the copy of a shared block needs {} bytes, {} of {} are free; compact or end a "
                    "conversation, or raise the cache budget",
                    n_bytes, bytes_available(), state_->stats.bytes_budget)};
  return clone(block, *room);
}

BlockId BlockPool::clone(BlockId block, Claim& claim) {
  const BlockId copy = allocate(block.arena, claim);
  const bool with_annotation = is_annotated(block);
  if (with_annotation) mark_annotated(copy, claim);
  {
    const std::lock_guard lock(state_->mutex);
    ++state_->stats.n_copies_on_write;
  }
  std::memcpy(state_->rows(copy), state_->rows(block), static_cast<size_t>(block_bytes(block.arena)));
  if (with_annotation)
    std::memcpy(state_->annotation(copy), state_->annotation(block), static_cast<size_t>(kAnnotationBytes));
  return copy;
}

}  // namespace sh::kv
