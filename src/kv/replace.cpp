// SPDX-License-Identifier: MIT
// SequenceCache::replace and restore: new content for all heads in one step, or none.
#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <optional>

#include "kv/sequence_cache.h"

namespace sh::kv {

namespace {

struct RowRange {
  size_t begin, end;
};

RowRange block_rows(const HeadRows& rows, size_t block) {
  const size_t begin = block * kBlockRows;
  return {begin, std::min(rows.pos.size(), begin + kBlockRows)};
}

size_t n_blocks(const HeadRows& rows) {
  return (rows.pos.size() + kBlockRows - 1) / kBlockRows;
}

/// Whether the block's rows are more than consecutive positions without bias.
bool needs_annotation(const HeadRows& rows, RowRange range) {
  for (size_t row = range.begin; row < range.end; ++row) {
    if (rows.bias[row] != 0.0f || rows.pos[row] - rows.pos[range.begin] != static_cast<int64_t>(row - range.begin))
      return true;
  }
  return false;
}

Error bad_rows(size_t layer, size_t head, const std::string& what) {
  return Error{ErrorKind::invalid_argument,
               fmt::format("KV cache: new rows of layer {}, head {}: {}", layer, head, what)};
}

Result<void> check_head(const HeadRows& rows, size_t layer, size_t head, int64_t key_row_bytes,
                        int64_t value_row_bytes, Pos next_pos) {
  const size_t n_rows = rows.pos.size();
  if (rows.bias.size() != n_rows || rows.keys.size() != n_rows * static_cast<size_t>(key_row_bytes) ||
      rows.values.size() != n_rows * static_cast<size_t>(value_row_bytes))
    return bad_rows(
        layer, head,
        fmt::format("{} positions, {} biases, {} key bytes, {} value bytes; expected {} and {} bytes a row",
                    n_rows, rows.bias.size(), rows.keys.size(), rows.values.size(), key_row_bytes,
                    value_row_bytes));
  Pos lowest(0);
  for (size_t row = 0; row < n_rows; ++row) {
    if (rows.pos[row] < lowest || rows.pos[row] >= next_pos)
      return bad_rows(layer, head,
                      fmt::format("row {} has position {}, expected {} to {} (positions do not fall)", row,
                                  rows.pos[row].value, lowest.value, int64_t{next_pos.value} - 1));
    if (std::isnan(rows.bias[row]) || rows.bias[row] == std::numeric_limits<float>::infinity())
      return bad_rows(layer, head,
                      fmt::format("row {} has bias {}, expected a finite number or -inf", row, rows.bias[row]));
    lowest = rows.pos[row];
  }
  return {};
}

}  // namespace

Result<void> SequenceCache::check_rows(const std::vector<std::vector<HeadRows>>& rows,
                                       const Identity& identity) const {
  const KvLayout& layout = pool_->layout();
  if (identity.next_pos < Pos(0) || identity.compacted_end < Pos(0) ||
      identity.compacted_end > identity.next_pos || identity.n_compactions < 0 || identity.n_rebases < 0 ||
      identity.n_squeezed < 0 || identity.dropped_end.size() != layout.layers.size())
    return Error{
        ErrorKind::invalid_argument,
        fmt::format("KV cache: {} positions of which {} compacted in {} compactions, {} tokens squeezed in {} "
                    "re-basings, over {} "
                    "layers; expected numbers of at least 0, no more compacted than there are, and {} layers",
                    identity.next_pos.value, identity.compacted_end.value, identity.n_compactions,
                    identity.n_squeezed, identity.n_rebases, identity.dropped_end.size(), layout.layers.size())};
  if (rows.size() != layout.layers.size())
    return Error{ErrorKind::invalid_argument,
                 fmt::format("KV cache: new rows for {} layers, expected {}", rows.size(), layout.layers.size())};
  for (size_t layer = 0; layer < rows.size(); ++layer)
    SH_RETURN_IF_ERROR(check_layer(rows[layer], layer, identity.next_pos));
  return {};
}

Result<void> SequenceCache::check_layer(const std::vector<HeadRows>& rows, size_t layer, Pos next_pos) const {
  const KvLayout& layout = pool_->layout();
  const LayerLayout& shape = layout.layers[layer];
  if (rows.size() != static_cast<size_t>(shape.n_heads))
    return Error{ErrorKind::invalid_argument,
                 fmt::format("KV cache: new rows for {} heads of layer {}, expected {}", rows.size(), layer,
                             shape.n_heads)};
  if (rows.empty()) return {};
  const int64_t key_row_bytes = row_bytes(layout.key_type, shape.key_width);
  const int64_t value_row_bytes = row_bytes(layout.value_type, shape.value_width);
  for (size_t head = 0; head < rows.size(); ++head)
    SH_RETURN_IF_ERROR(check_head(rows[head], layer, head, key_row_bytes, value_row_bytes, next_pos));
  return {};
}

SequenceCache::Need SequenceCache::need_of(const std::vector<HeadRows>& rows, size_t layer) const {
  Need need;
  for (const HeadRows& head : rows) {
    const int64_t block_bytes = pool_->block_bytes(pool_->arena_of_layer(static_cast<int32_t>(layer)));
    for (size_t i = 0; i < n_blocks(head); ++i, ++need.n_blocks)
      need.n_bytes +=
          block_bytes + (needs_annotation(head, block_rows(head, i)) ? BlockPool::kAnnotationBytes : 0);
  }
  return need;
}

HeadCache SequenceCache::write_head(size_t layer, const HeadRows& rows, BlockPool::Claim& claim) {
  HeadCache cache;
  const int32_t arena = pool_->arena_of_layer(static_cast<int32_t>(layer));
  const size_t key_row_bytes = rows.pos.empty() ? 0 : rows.keys.size() / rows.pos.size();
  const size_t value_row_bytes = rows.pos.empty() ? 0 : rows.values.size() / rows.pos.size();
  std::vector<BlockId> blocks(n_blocks(rows));
  pool_->allocate(arena, blocks, claim);
  for (size_t i = 0; i < blocks.size(); ++i) {
    const RowRange range = block_rows(rows, i);
    const size_t n_rows = range.end - range.begin;
    BlockEntry entry{.block = blocks[i],
                     .n_rows = static_cast<int32_t>(n_rows),
                     .first_pos = rows.pos[range.begin],
                     .is_annotated = needs_annotation(rows, range)};
    std::memcpy(pool_->keys(entry.block), rows.keys.data() + range.begin * key_row_bytes, n_rows * key_row_bytes);
    std::memcpy(pool_->values(entry.block), rows.values.data() + range.begin * value_row_bytes,
                n_rows * value_row_bytes);
    if (entry.is_annotated) {
      pool_->mark_annotated(entry.block, claim);
      std::copy_n(rows.bias.data() + range.begin, n_rows, pool_->bias(entry.block));
      for (size_t row = 0; row < n_rows; ++row) pool_->pos(entry.block)[row] = rows.pos[range.begin + row].value;
    }
    cache.blocks.push_back(entry);
  }
  cache.n_rows = static_cast<int64_t>(rows.pos.size());
  return cache;
}

Result<void> SequenceCache::replace(const std::vector<std::vector<HeadRows>>& rows, Pos compacted_end) {
  Identity identity = identity_;
  identity.compacted_end = compacted_end;
  ++identity.n_compactions;
  return restore(rows, identity);
}

Result<void> SequenceCache::restore(const std::vector<std::vector<HeadRows>>& rows, const Identity& identity) {
  SH_CHECK(n_reserved_ == 0, "rows cannot be replaced inside a step");
  SH_RETURN_IF_ERROR(check_rows(rows, identity));
  Need need;
  for (size_t layer = 0; layer < rows.size(); ++layer) {
    const Need of_layer = need_of(rows[layer], layer);
    need.n_blocks += of_layer.n_blocks;
    need.n_bytes += of_layer.n_bytes;
  }
  const int64_t n_bytes_coming = pool_->bytes_held_alone(all_blocks());
  std::optional<BlockPool::Claim> claim = pool_->claim(need.n_bytes, n_bytes_coming);
  if (!claim)
    return Error{
        ErrorKind::out_of_memory,
        fmt::format(
            "KV cache: the new content needs {} blocks ({} bytes), {} of {} bytes are free or used by this "
            "conversation alone; end a conversation or raise the cache budget",
            need.n_blocks, need.n_bytes, pool_->bytes_available() + n_bytes_coming, pool_->stats().bytes_budget)};
  release_all();
  for (size_t layer = 0; layer < rows.size(); ++layer) {
    for (size_t head = 0; head < rows[layer].size(); ++head)
      heads_[layer][head] = write_head(layer, rows[layer][head], *claim);
  }
  identity_ = identity;
  return {};
}

}  // namespace sh::kv
