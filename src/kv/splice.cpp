// SPDX-License-Identifier: MIT
// SequenceCache::splice, splice_layer and replace_layer: new rows before a boundary in front of rows that stay.
#include <fmt/format.h>

#include <algorithm>
#include <cstring>
#include <optional>

#include "kv/sequence_cache.h"

namespace sh::kv {

int32_t SequenceCache::n_rows_before(const BlockEntry& entry, Pos boundary) const {
  if (!entry.is_annotated)
    return static_cast<int32_t>(std::clamp<int64_t>(boundary - entry.first_pos, 0, entry.n_rows));
  const int32_t* pos = pool_->pos(entry.block);
  return static_cast<int32_t>(std::lower_bound(pos, pos + entry.n_rows, boundary.value) - pos);
}

SequenceCache::Cut SequenceCache::cut_at(const HeadCache& cache, Pos boundary) const {
  Cut cut;
  for (; cut.first_kept < cache.blocks.size(); ++cut.first_kept) {
    const BlockEntry& entry = cache.blocks[cut.first_kept];
    const int32_t n_before = n_rows_before(entry, boundary);
    cut.n_rows_before += n_before;
    if (entry.n_rows > n_before || entry.n_rows == 0) {
      cut.n_rows_gone = n_before;
      break;
    }
  }
  cut.moves_to_copy = cut.n_rows_gone > 0 && pool_->n_references(cache.blocks[cut.first_kept].block) > 1;

  // Rows that the open step has yet to append. The last block with rows takes some when it stays, unless its cut
  // made room in it that a row without annotation does not continue.
  const int64_t n_to_come = n_reserved_ - n_appended(cache);
  if (n_to_come == 0) return cut;
  int64_t n_room = 0;
  for (size_t i = cache.blocks.size(); i > cut.first_kept; --i) {
    const BlockEntry& entry = cache.blocks[i - 1];
    const bool is_cut = i - 1 == cut.first_kept && cut.n_rows_gone > 0;
    if (entry.n_rows > 0) {
      const Pos next = identity_.next_pos + (n_reserved_ - n_to_come);
      cut.seals_tail = !entry.is_sealed && !entry.is_annotated && entry.first_pos + entry.n_rows != next;
      if (!cut.seals_tail && !entry.is_sealed)
        n_room += kBlockRows - entry.n_rows + (is_cut ? cut.n_rows_gone : 0);
      break;
    }
    n_room += kBlockRows;
  }
  cut.n_new_blocks = (std::max<int64_t>(0, n_to_come - n_room) + kBlockRows - 1) / kBlockRows;
  return cut;
}

void SequenceCache::cut_block(size_t layer, BlockEntry& entry, const Cut& cut, BlockPool::Claim& claim) {
  const KvLayout& layout = pool_->layout();
  const LayerLayout& shape = layout.layers[layer];
  const size_t key_row_bytes = static_cast<size_t>(row_bytes(layout.key_type, shape.key_width));
  const size_t value_row_bytes = static_cast<size_t>(row_bytes(layout.value_type, shape.value_width));
  const size_t n_gone = static_cast<size_t>(cut.n_rows_gone), n_left = static_cast<size_t>(entry.n_rows) - n_gone;
  const BlockId from = entry.block;
  if (cut.moves_to_copy) {
    entry.block = pool_->allocate(from.arena, claim);
    if (entry.is_annotated) pool_->mark_annotated(entry.block, claim);
  }
  std::memmove(pool_->keys(entry.block), pool_->keys(from) + n_gone * key_row_bytes, n_left * key_row_bytes);
  std::memmove(pool_->values(entry.block), pool_->values(from) + n_gone * value_row_bytes,
               n_left * value_row_bytes);
  entry.n_rows = static_cast<int32_t>(n_left);
  if (entry.is_annotated) {
    std::memmove(pool_->bias(entry.block), pool_->bias(from) + n_gone, n_left * sizeof(float));
    std::memmove(pool_->pos(entry.block), pool_->pos(from) + n_gone, n_left * sizeof(int32_t));
    entry.first_pos = Pos(pool_->pos(entry.block)[0]);
  } else {
    entry.first_pos = entry.first_pos + cut.n_rows_gone;
  }
  if (cut.moves_to_copy) pool_->release(from);
}

Result<void> SequenceCache::replace_front(size_t begin, size_t end, Pos boundary, Need need,
                                          const MakeFronts& fronts) {
  std::vector<std::vector<Cut>> cuts(heads_.size());
  std::vector<BlockId> gone;
  for (size_t layer = begin; layer < end; ++layer) {
    const int32_t arena = pool_->arena_of_layer(static_cast<int32_t>(layer));
    for (const HeadCache& cache : heads_[layer]) {
      const Cut cut = cut_at(cache, boundary);
      cuts[layer].push_back(cut);
      for (size_t i = 0; i < cut.first_kept; ++i) gone.push_back(cache.blocks[i].block);
      const int64_t n_blocks = cut.n_new_blocks + (cut.moves_to_copy ? 1 : 0);
      need.n_blocks += n_blocks;
      need.n_bytes += n_blocks * pool_->block_bytes(arena);
      if (cut.moves_to_copy && cache.blocks[cut.first_kept].is_annotated)
        need.n_bytes += BlockPool::kAnnotationBytes;
    }
  }
  const int64_t n_bytes_coming = pool_->bytes_held_alone(gone);
  std::optional<BlockPool::Claim> claim = pool_->claim(need.n_bytes, n_bytes_coming);
  if (!claim)
    return Error{
        ErrorKind::out_of_memory,
        fmt::format(
            "KV cache: new rows before {} need {} blocks ({} bytes), {} of {} bytes are free or used by the rows "
            "they replace; end a conversation or raise the cache budget",
            boundary.value, need.n_blocks, need.n_bytes, pool_->bytes_available() + n_bytes_coming,
            pool_->stats().bytes_budget)};
  pool_->release(gone);
  for (size_t layer = begin; layer < end; ++layer) {
    const int32_t arena = pool_->arena_of_layer(static_cast<int32_t>(layer));
    std::vector<HeadCache> made = fronts(layer, *claim);
    for (size_t head = 0; head < heads_[layer].size(); ++head) {
      HeadCache& cache = heads_[layer][head];
      const Cut& cut = cuts[layer][head];
      HeadCache joined = std::move(made[head]);
      // Inside a step the room at the front's end is not this sequence's: its block is shared, or has no
      // annotation for what comes. Outside, reserve() decides.
      if (n_reserved_ > 0 && !joined.blocks.empty()) joined.blocks.back().is_sealed = true;
      if (cut.n_rows_gone > 0) cut_block(layer, cache.blocks[cut.first_kept], cut, *claim);
      joined.blocks.insert(joined.blocks.end(), cache.blocks.begin() + static_cast<std::ptrdiff_t>(cut.first_kept),
                           cache.blocks.end());
      joined.n_rows += cache.n_rows - cut.n_rows_before;
      if (cut.seals_tail) {
        const auto tail = std::find_if(joined.blocks.rbegin(), joined.blocks.rend(),
                                       [](const BlockEntry& entry) { return entry.n_rows > 0; });
        tail->is_sealed = true;
      }
      for (int64_t i = 0; i < cut.n_new_blocks; ++i)
        joined.blocks.push_back(BlockEntry{.block = pool_->allocate(arena, *claim)});
      cache = std::move(joined);
    }
  }
  return {};
}

Result<void> SequenceCache::splice_layers(size_t begin, size_t end, const SequenceCache& other, Pos boundary) {
  SH_CHECK(this != &other, "a sequence cannot be spliced with itself");
  if (pool_ != other.pool_)
    return Error{ErrorKind::invalid_argument, "KV cache: rows of another pool cannot be spliced in; copy them"};
  // Its tail block must stay its own until the step ends: it writes there without asking again.
  if (other.n_reserved_ > 0)
    return Error{ErrorKind::invalid_argument,
                 "KV cache: the sequence to splice in has an open step; commit it or roll it back"};
  if (boundary < Pos(0) || boundary > identity_.next_pos || boundary > other.identity_.next_pos)
    return Error{ErrorKind::invalid_argument,
                 fmt::format("KV cache: cannot splice at {}: this sequence has {} tokens, the other {}",
                             boundary.value, identity_.next_pos.value, other.identity_.next_pos.value)};
  const auto fronts = [&](size_t layer, BlockPool::Claim&) {
    std::vector<HeadCache> shared(other.heads_[layer].size());
    std::vector<BlockId> blocks;
    for (size_t head = 0; head < shared.size(); ++head)
      for (BlockEntry entry : other.heads_[layer][head].blocks) {
        // What its block holds behind these rows stays unread here: a row that is added goes to a copy of the
        // block, or over them when the other sequence is gone.
        entry.n_rows = n_rows_before(entry, boundary);
        entry.is_sealed = false;
        if (entry.n_rows == 0) break;
        blocks.push_back(entry.block);
        shared[head].blocks.push_back(entry);
        shared[head].n_rows += entry.n_rows;
      }
    pool_->add_reference(blocks);
    return shared;
  };
  return replace_front(begin, end, boundary, Need{}, fronts);
}

Result<void> SequenceCache::splice(const SequenceCache& other, Pos boundary) {
  if (n_reserved_ > 0)
    return Error{ErrorKind::invalid_argument,
                 "KV cache: a sequence with an open step cannot be spliced; commit it or roll it back"};
  if (identity_.compacted_end > boundary || other.identity_.compacted_end > boundary)
    return Error{
        ErrorKind::invalid_argument,
        fmt::format(
            "KV cache: cannot splice at {}: rows up to {} here, up to {} in the other sequence are compacted "
            "and stand for their tokens together only",
            boundary.value, identity_.compacted_end.value, other.identity_.compacted_end.value)};
  SH_RETURN_IF_ERROR(splice_layers(0, heads_.size(), other, boundary));
  identity_.compacted_end = other.identity_.compacted_end;
  identity_.n_compactions = other.identity_.n_compactions;
  // Of rows before the boundary those are gone that the other sequence dropped; own rows behind it may be, too.
  for (size_t layer = 0; layer < heads_.size(); ++layer) {
    Pos& dropped_end = identity_.dropped_end[layer];
    if (dropped_end <= boundary) dropped_end = std::min(other.identity_.dropped_end[layer], boundary);
  }
  return {};
}

Result<void> SequenceCache::splice_layer(int32_t layer, const SequenceCache& other, Pos boundary) {
  SH_CHECK(layer >= 0 && layer < static_cast<int32_t>(heads_.size()), "no such layer");
  const size_t index = static_cast<size_t>(layer);
  return splice_layers(index, index + 1, other, boundary);
}

Result<void> SequenceCache::replace_layer(ThreadPool& threads, int32_t layer, const std::vector<HeadRows>& rows) {
  SH_CHECK(layer >= 0 && layer < static_cast<int32_t>(heads_.size()), "no such layer");
  const size_t index = static_cast<size_t>(layer);
  SH_RETURN_IF_ERROR(check_layer(rows, index, identity_.next_pos));
  const auto fronts = [&](size_t of_layer, BlockPool::Claim& claim) {
    std::vector<HeadCache> written(rows.size());
    threads.run(std::ssize(rows), [&](int64_t head, int) {
      const auto i = static_cast<size_t>(head);
      written[i] = write_head(of_layer, rows[i], claim);
    });
    return written;
  };
  return replace_front(index, index + 1, identity_.next_pos, need_of(rows, index), fronts);
}

Result<void> SequenceCache::mark_compacted(Pos compacted_end) {
  if (compacted_end < identity_.compacted_end || compacted_end > identity_.next_pos)
    return Error{
        ErrorKind::invalid_argument,
        fmt::format("KV cache: {} tokens cannot be marked as compacted: the conversation has {}, of which "
                    "{} are",
                    compacted_end.value, identity_.next_pos.value, identity_.compacted_end.value)};
  identity_.compacted_end = compacted_end;
  ++identity_.n_compactions;
  return {};
}

}  // namespace sh::kv
