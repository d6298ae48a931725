// SPDX-License-Identifier: MIT
#include "kv/block_pool.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstring>
#include <functional>
#include <limits>
#include <queue>
#include <vector>

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

}  // namespace

struct BlockPool::State {
  KvLayout layout;
  std::vector<int32_t> arena_of_layer;
  std::vector<Arena> arenas;
  PoolStats stats;

  Arena& arena(int32_t index) {
    SH_CHECK(index >= 0 && index < static_cast<int32_t>(arenas.size()), "no such arena");
    return arenas[static_cast<size_t>(index)];
  }
  Slot& slot(BlockId block) {
    Arena& a = arena(block.arena);
    SH_CHECK(block.slot >= 0 && block.slot < static_cast<int32_t>(a.slots.size()), "no such block");
    Slot& s = a.slots[static_cast<size_t>(block.slot)];
    SH_CHECK(s.n_references > 0, "the block was released");
    return s;
  }
  std::byte* rows(BlockId block) {
    Arena& a = arenas[static_cast<size_t>(block.arena)];
    return a.rows.data() + block.slot * a.block_bytes();
  }
  std::byte* annotation(BlockId block) {
    return arenas[static_cast<size_t>(block.arena)].annotations.data() + block.slot * kAnnotationBytes;
  }
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

int64_t BlockPool::bytes_available() const {
  return state_->stats.bytes_budget - state_->stats.bytes_used;
}

int64_t BlockPool::n_available(int32_t arena) const {
  return std::max<int64_t>(0, bytes_available() / block_bytes(arena));
}

Result<BlockId> BlockPool::allocate(int32_t arena_index) {
  State& state = *state_;
  Arena& arena = state.arena(arena_index);
  if (n_available(arena_index) < 1)
    return Error{
        ErrorKind::out_of_memory,
        fmt::format(
            "KV cache: a block needs {} bytes, {} of {} are free; compact or end a conversation, or raise the "
            "cache budget",
            arena.block_bytes(), bytes_available(), state.stats.bytes_budget)};
  int32_t slot = static_cast<int32_t>(arena.slots.size());
  if (arena.free_slots.empty()) {
    arena.slots.emplace_back();
  } else {
    slot = arena.free_slots.top();
    arena.free_slots.pop();
  }
  arena.slots[static_cast<size_t>(slot)] = Slot{.n_references = 1, .is_annotated = false};
  arena.rows.retain(slot * arena.block_bytes(), (slot + int64_t{1}) * arena.block_bytes());
  ++state.stats.n_blocks_used;
  state.stats.bytes_used += arena.block_bytes();
  return BlockId{arena_index, slot};
}

void BlockPool::add_reference(BlockId block) {
  if (++state_->slot(block).n_references == 2) ++state_->stats.n_blocks_shared;
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
  for (const BlockId block : blocks) state_->drop_reference(block);
  for (Arena& arena : state_->arenas) {
    arena.rows.give_back();
    arena.annotations.give_back();
  }
}

int32_t BlockPool::n_references(BlockId block) const {
  return state_->slot(block).n_references;
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

void BlockPool::mark_annotated(BlockId block) {
  Slot& slot = state_->slot(block);
  if (slot.is_annotated) return;
  SH_CHECK(bytes_available() >= kAnnotationBytes, "the budget has no room for the annotation");
  slot.is_annotated = true;
  state_->arena(block.arena)
      .annotations.retain(block.slot * kAnnotationBytes, (block.slot + int64_t{1}) * kAnnotationBytes);
  state_->stats.bytes_used += kAnnotationBytes;
}

bool BlockPool::is_annotated(BlockId block) const {
  return state_->slot(block).is_annotated;
}

Result<BlockId> BlockPool::clone(BlockId block) {
  const bool with_annotation = is_annotated(block);
  const int64_t n_bytes = block_bytes(block.arena) + (with_annotation ? kAnnotationBytes : 0);
  if (n_bytes > bytes_available())
    return Error{
        ErrorKind::out_of_memory,
        fmt::format("KV cache: the copy of a shared block needs {} bytes, {} of {} are free; compact or end a "
                    "conversation, or raise the cache budget",
                    n_bytes, bytes_available(), state_->stats.bytes_budget)};
  SH_ASSIGN(const BlockId copy, allocate(block.arena));
  std::memcpy(state_->rows(copy), state_->rows(block), static_cast<size_t>(block_bytes(block.arena)));
  if (with_annotation) {
    mark_annotated(copy);
    std::memcpy(state_->annotation(copy), state_->annotation(block), static_cast<size_t>(kAnnotationBytes));
  }
  ++state_->stats.n_copies_on_write;
  return copy;
}

PoolStats BlockPool::stats() const {
  return state_->stats;
}

}  // namespace sh::kv
