// SPDX-License-Identifier: MIT
#include "kv/sequence_cache.h"

#include <fmt/format.h>

#include <algorithm>
#include <numeric>
#include <limits>
#include <optional>
#include <utility>

namespace sh::kv {

namespace {

int64_t n_blocks_for(int64_t n_rows) {
  return (n_rows + kBlockRows - 1) / kBlockRows;
}

}  // namespace

Pos pos_of_row(BlockPool& pool, const BlockEntry& entry, int64_t row) {
  return entry.is_annotated ? Pos(pool.pos(entry.block)[row]) : entry.first_pos + row;
}

float bias_of_row(BlockPool& pool, const BlockEntry& entry, int64_t row) {
  return entry.is_annotated ? pool.bias(entry.block)[row] : 0.0f;
}

kernels::KvBlockView block_view(BlockPool& pool, const BlockEntry& entry) {
  return kernels::KvBlockView{
      .keys = pool.keys(entry.block),
      .values = pool.values(entry.block),
      .bias = entry.is_annotated ? pool.bias(entry.block) : nullptr,
      .pos = entry.is_annotated ? pool.pos(entry.block) : nullptr,
      .first_pos = entry.first_pos.value,
      .n_rows = entry.n_rows,
      .query_begin = 0,
      .query_end = 0,
      .place = 0,
  };
}

SequenceCache::SequenceCache(BlockPool& pool) : pool_(&pool) {
  for (const LayerLayout& layer : pool.layout().layers) heads_.emplace_back(static_cast<size_t>(layer.n_heads));
  identity_.dropped_end.resize(heads_.size());
}

SequenceCache::~SequenceCache() {
  release_all();
}

SequenceCache::SequenceCache(SequenceCache&& other) noexcept
    : pool_(other.pool_),
      heads_(std::exchange(other.heads_, {})),
      identity_(std::exchange(other.identity_, {})),
      n_reserved_(std::exchange(other.n_reserved_, 0)) {}

SequenceCache& SequenceCache::operator=(SequenceCache&& other) noexcept {
  if (this == &other) return *this;
  release_all();
  pool_ = other.pool_;
  heads_ = std::exchange(other.heads_, {});
  identity_ = std::exchange(other.identity_, {});
  n_reserved_ = std::exchange(other.n_reserved_, 0);
  return *this;
}

// --- A step: reserve, append, commit or rollback ---

SequenceCache::Growth SequenceCache::growth(int32_t arena, const HeadCache& cache, int64_t n_tokens,
                                            bool tail_is_shared) const {
  Growth result;
  const BlockEntry* tail = cache.blocks.empty() ? nullptr : &cache.blocks.back();
  const int64_t n_room = tail == nullptr || tail->is_sealed ? 0 : kBlockRows - tail->n_rows;
  if (n_room > 0) {
    result.copies_tail = tail_is_shared;
    result.annotates_tail = !tail->is_annotated && tail->first_pos + tail->n_rows != identity_.next_pos;
  }
  result.n_blocks = n_blocks_for(std::max<int64_t>(0, n_tokens - n_room));
  result.n_bytes = (result.n_blocks + result.copies_tail) * pool_->block_bytes(arena);
  if (result.annotates_tail || (result.copies_tail && tail->is_annotated))
    result.n_bytes += BlockPool::kAnnotationBytes;
  return result;
}

void SequenceCache::grow(HeadCache& cache, const Growth& growth, std::span<const BlockId> blocks,
                         BlockPool::Claim& claim) {
  if (growth.copies_tail) {
    BlockEntry& tail = cache.blocks.back();
    const BlockId copy = pool_->clone(tail.block, claim);
    pool_->release(tail.block);
    tail.block = copy;
  }
  if (growth.annotates_tail) {
    BlockEntry& tail = cache.blocks.back();
    pool_->mark_annotated(tail.block, claim);
    tail.is_annotated = true;
    std::fill_n(pool_->bias(tail.block), tail.n_rows, 0.0f);
    for (int32_t row = 0; row < tail.n_rows; ++row) pool_->pos(tail.block)[row] = tail.first_pos.value + row;
  }
  for (const BlockId block : blocks) {
    BlockEntry entry;
    entry.block = block;
    cache.blocks.push_back(entry);
  }
}

Result<void> SequenceCache::reserve(int64_t n_tokens) {
  SH_CHECK(n_tokens >= 0, "a step cannot take back tokens");
  SH_CHECK(n_reserved_ == 0, "the step before was neither committed nor rolled back");
  if (n_tokens > std::numeric_limits<int32_t>::max() - int64_t{identity_.next_pos.value})
    return Error{ErrorKind::context_exceeded,
                 fmt::format("KV cache: {} tokens after {} are more positions than can be numbered", n_tokens,
                             identity_.next_pos.value)};
  if (n_tokens == 0) return {};
  auto& [tails, tail_is_shared, growths, new_blocks, n_taken] = plan_;
  tails.clear();
  for (const std::vector<HeadCache>& layer : heads_) {
    for (const HeadCache& cache : layer) {
      if (!cache.blocks.empty()) tails.push_back(cache.blocks.back().block);
    }
  }
  // A tail that is shared now may be alone when it is copied; the copy is then needless, not wrong.
  pool_->are_shared(tails, tail_is_shared);
  auto next_tail = tail_is_shared.begin();
  growths.clear();
  for (std::vector<BlockId>& of_arena : new_blocks) of_arena.clear();
  int64_t n_blocks = 0, n_bytes = 0;
  for (size_t layer = 0; layer < heads_.size(); ++layer) {
    const int32_t arena = pool_->arena_of_layer(static_cast<int32_t>(layer));
    if (arena >= std::ssize(new_blocks)) new_blocks.resize(static_cast<size_t>(arena) + 1);
    for (const HeadCache& cache : heads_[layer]) {
      const Growth need = growth(arena, cache, n_tokens, !cache.blocks.empty() && *next_tail++);
      std::vector<BlockId>& of_arena = new_blocks[static_cast<size_t>(arena)];
      of_arena.resize(of_arena.size() + static_cast<size_t>(need.n_blocks));
      growths.push_back(need);
      n_blocks += need.n_blocks + need.copies_tail;
      n_bytes += need.n_bytes;
    }
  }
  std::optional<BlockPool::Claim> claim = pool_->claim(n_bytes);
  if (!claim)
    return Error{
        ErrorKind::out_of_memory,
        fmt::format(
            "KV cache: {} tokens after {} need {} blocks ({} bytes), {} of {} bytes are free; compact or end a "
            "conversation, or raise the cache budget",
            n_tokens, identity_.next_pos.value, n_blocks, n_bytes, pool_->bytes_available(),
            pool_->stats().bytes_budget)};
  for (size_t arena = 0; arena < new_blocks.size(); ++arena)
    pool_->allocate(static_cast<int32_t>(arena), new_blocks[arena], *claim);
  n_taken.assign(new_blocks.size(), 0);
  auto next = growths.begin();
  for (size_t layer = 0; layer < heads_.size(); ++layer) {
    if (heads_[layer].empty()) continue;
    const auto arena = static_cast<size_t>(pool_->arena_of_layer(static_cast<int32_t>(layer)));
    for (HeadCache& cache : heads_[layer]) {
      const auto n = static_cast<size_t>(next->n_blocks);
      grow(cache, *next++, std::span(new_blocks[arena]).subspan(n_taken[arena], n), *claim);
      n_taken[arena] += n;
    }
  }
  n_reserved_ = n_tokens;
  return {};
}

Pos SequenceCache::last_pos(const BlockEntry& entry) const {
  return pos_of_row(*pool_, entry, entry.n_rows - 1);
}

int64_t SequenceCache::n_appended(const HeadCache& cache) const {
  for (auto entry = cache.blocks.rbegin(); entry != cache.blocks.rend(); ++entry) {
    if (entry->n_rows > 0) return std::max<int64_t>(0, last_pos(*entry) + 1 - identity_.next_pos);
  }
  return 0;
}

void SequenceCache::append(const kernels::KernelSet& kernels, int32_t layer, int64_t offset,
                           MatView<const float> keys, MatView<const float> values) {
  SH_CHECK(layer >= 0 && layer < static_cast<int32_t>(heads_.size()), "no such layer");
  const LayerLayout& shape = pool_->layout().layers[static_cast<size_t>(layer)];
  SH_CHECK(shape.n_heads > 0, "the layer has no attention");
  SH_CHECK(keys.rows == values.rows && keys.cols == int64_t{shape.n_heads} * shape.key_width &&
               values.cols == int64_t{shape.n_heads} * shape.value_width,
           "keys or values do not have the layer's shape");
  SH_CHECK(offset >= 0 && offset + keys.rows <= n_reserved_, "more rows than the step reserved");
  for (int32_t head = 0; head < shape.n_heads; ++head) {
    HeadCache& cache = heads_[static_cast<size_t>(layer)][static_cast<size_t>(head)];
    SH_CHECK(n_appended(cache) == offset, "rows of a layer must be appended in order");
    MatView<const float> head_keys(keys.data + int64_t{head} * shape.key_width, keys.rows, shape.key_width,
                                   keys.stride);
    MatView<const float> head_values(values.data + int64_t{head} * shape.value_width, values.rows,
                                     shape.value_width, values.stride);
    append_head(kernels, shape, cache, identity_.next_pos + offset, head_keys, head_values);
  }
}

void SequenceCache::append_head(const kernels::KernelSet& kernels, const LayerLayout& shape, HeadCache& cache,
                                Pos first, MatView<const float> keys, MatView<const float> values) {
  const KvLayout& layout = pool_->layout();
  const int64_t key_row_bytes = row_bytes(layout.key_type, shape.key_width);
  const int64_t value_row_bytes = row_bytes(layout.value_type, shape.value_width);
  size_t index = cache.blocks.size();  // of the block to write: the first after the last full or sealed one
  while (index > 0 && cache.blocks[index - 1].n_rows < kBlockRows && !cache.blocks[index - 1].is_sealed) {
    --index;
    if (cache.blocks[index].n_rows > 0) break;
  }
  for (int64_t token = 0; token < keys.rows; ++token) {
    if (cache.blocks[index].n_rows == kBlockRows) ++index;
    BlockEntry& entry = cache.blocks[index];
    const int32_t row = entry.n_rows++;
    if (row == 0) entry.first_pos = first + token;
    if (entry.is_annotated) {
      pool_->bias(entry.block)[row] = 0.0f;
      pool_->pos(entry.block)[row] = (first + token).value;
    }
    kernels.encode_row(layout.key_type, keys.row(token), shape.key_width,
                       pool_->keys(entry.block) + row * key_row_bytes);
    kernels.encode_row(layout.value_type, values.row(token), shape.value_width,
                       pool_->values(entry.block) + row * value_row_bytes);
  }
  cache.n_rows += keys.rows;
}

void SequenceCache::commit(int64_t n_tokens) {
  SH_CHECK(n_tokens >= 0 && n_tokens <= n_reserved_, "more tokens than the step reserved");
  for (const std::vector<HeadCache>& layer : heads_) {
    for (const HeadCache& cache : layer)
      SH_CHECK(n_appended(cache) >= n_tokens, "a layer did not append its rows");
  }
  identity_.next_pos = identity_.next_pos + n_tokens;
  drop_from(identity_.next_pos);
  n_reserved_ = 0;
}

void SequenceCache::rollback() {
  drop_from(identity_.next_pos);
  n_reserved_ = 0;
}

// --- Whole-sequence changes ---

void SequenceCache::drop_from(Pos end) {
  std::vector<BlockId> unused;
  for (std::vector<HeadCache>& layer : heads_) {
    for (HeadCache& cache : layer) {
      while (!cache.blocks.empty()) {
        BlockEntry& entry = cache.blocks.back();
        const int32_t n_before = entry.n_rows;
        while (entry.n_rows > 0 && last_pos(entry) >= end) --entry.n_rows;
        cache.n_rows -= n_before - entry.n_rows;
        if (entry.n_rows > 0) break;
        unused.push_back(entry.block);
        cache.blocks.pop_back();
      }
    }
  }
  pool_->release(unused);
}

std::vector<BlockId> SequenceCache::all_blocks() const {
  size_t n_blocks = 0;
  for (const std::vector<HeadCache>& layer : heads_)
    for (const HeadCache& cache : layer) n_blocks += cache.blocks.size();
  std::vector<BlockId> blocks;
  blocks.reserve(n_blocks);
  for (const std::vector<HeadCache>& layer : heads_) {
    for (const HeadCache& cache : layer) {
      for (const BlockEntry& entry : cache.blocks) blocks.push_back(entry.block);
    }
  }
  return blocks;
}

void SequenceCache::release_all() {
  pool_->release(all_blocks());
  for (std::vector<HeadCache>& layer : heads_) std::fill(layer.begin(), layer.end(), HeadCache{});
}

SequenceCache SequenceCache::fork() const {
  SH_CHECK(n_reserved_ == 0, "a sequence cannot be forked inside a step");
  SequenceCache copy(*pool_);
  pool_->add_reference(all_blocks());
  copy.heads_ = heads_;
  copy.identity_ = identity_;
  return copy;
}

void SequenceCache::seal() {
  SH_CHECK(n_reserved_ == 0, "a sequence cannot be sealed inside a step");
  for (std::vector<HeadCache>& layer : heads_) {
    for (HeadCache& cache : layer) {
      if (!cache.blocks.empty()) cache.blocks.back().is_sealed = true;
    }
  }
}

void SequenceCache::clear() {
  release_all();
  identity_ = Identity{};
  identity_.dropped_end.resize(heads_.size());
  n_reserved_ = 0;
}

Result<void> SequenceCache::truncate(Pos end) {
  SH_CHECK(n_reserved_ == 0, "a sequence cannot be truncated inside a step");
  if (end < Pos(0) || end > identity_.next_pos)
    return Error{ErrorKind::invalid_argument,
                 fmt::format("KV cache: cannot truncate to {} tokens, the conversation has {}", end.value,
                             identity_.next_pos.value)};
  if (end < identity_.compacted_end)
    return Error{
        ErrorKind::unsupported,
        fmt::format(
            "KV cache: cannot truncate to {} tokens, the first {} are compacted; clear the conversation and read "
            "it again",
            end.value, identity_.compacted_end.value)};
  for (size_t layer = 0; layer < heads_.size(); ++layer) {
    const int64_t first_seen = std::max<int64_t>(0, int64_t{end.value} + 1 - pool_->layout().layers[layer].window);
    if (first_seen < std::min(identity_.dropped_end[layer], end).value)
      return Error{ErrorKind::unsupported,
                   fmt::format("KV cache: cannot truncate to {} tokens, the window of layer {} would need rows "
                               "from {} on and those "
                               "before {} are gone; clear the conversation and read it again",
                               end.value, layer, first_seen, identity_.dropped_end[layer].value)};
  }
  drop_from(end);
  identity_.next_pos = end;
  for (Pos& dropped : identity_.dropped_end) dropped = std::min(dropped, end);
  return {};
}

void SequenceCache::drop_outside_window(Pos lowest_query) {
  std::vector<BlockId> unused;
  for (size_t layer = 0; layer < heads_.size(); ++layer) {
    const int32_t window = pool_->layout().layers[layer].window;
    if (window == 0) continue;
    for (HeadCache& cache : heads_[layer]) {
      size_t n_drop = 0;
      for (; n_drop < cache.blocks.size(); ++n_drop) {
        const BlockEntry& entry = cache.blocks[n_drop];
        if (entry.n_rows == 0 || lowest_query - last_pos(entry) < window) break;
        identity_.dropped_end[layer] = std::max(identity_.dropped_end[layer], last_pos(entry) + 1);
        cache.n_rows -= entry.n_rows;
        unused.push_back(entry.block);
      }
      cache.blocks.erase(cache.blocks.begin(), cache.blocks.begin() + static_cast<std::ptrdiff_t>(n_drop));
    }
  }
  pool_->release(unused);
}

// --- Reading ---

const HeadCache& SequenceCache::head(int32_t layer, int32_t head) const {
  SH_CHECK(layer >= 0 && layer < static_cast<int32_t>(heads_.size()), "no such layer");
  const std::vector<HeadCache>& heads = heads_[static_cast<size_t>(layer)];
  SH_CHECK(head >= 0 && head < static_cast<int32_t>(heads.size()), "no such head");
  return heads[static_cast<size_t>(head)];
}

CacheUsage SequenceCache::usage() const {
  CacheUsage result;
  result.n_logical = n_logical();
  result.n_positions = identity_.next_pos.value;
  result.n_compactions = identity_.n_compactions;
  result.n_rebases = identity_.n_rebases;
  for (const std::vector<HeadCache>& layer : heads_) {
    for (const HeadCache& cache : layer) {
      result.n_rows += cache.n_rows;
      result.n_blocks += static_cast<int64_t>(cache.blocks.size());
      for (const BlockEntry& entry : cache.blocks)
        result.bytes +=
            pool_->block_bytes(entry.block.arena) + (entry.is_annotated ? BlockPool::kAnnotationBytes : 0);
    }
  }
  const int64_t n_heads = pool_->layout().n_heads_total();
  if (n_heads > 0) result.n_physical = static_cast<double>(result.n_rows) / static_cast<double>(n_heads);
  return result;
}

void SequenceCache::block_views(int32_t layer, int32_t head_index, std::vector<kernels::KvBlockView>& out) const {
  out.clear();
  for (const BlockEntry& entry : head(layer, head_index).blocks) {
    if (entry.n_rows > 0) out.push_back(block_view(*pool_, entry));
  }
}

SequenceCache::DecodedHead SequenceCache::decode_head(const kernels::KernelSet& kernels, int32_t layer,
                                                      int32_t head_index) const {
  std::vector<int32_t> rows(static_cast<size_t>(head(layer, head_index).n_rows)), pos;
  std::iota(rows.begin(), rows.end(), 0);
  DecodedHead decoded;
  decode_keys(kernels, layer, head_index, rows, decoded.keys);
  decode_values(kernels, layer, head_index, rows, decoded.values);
  read_annotations(layer, head_index, rows, decoded.bias, pos);
  for (const int32_t p : pos) decoded.pos.emplace_back(p);
  return decoded;
}

namespace {

/// fn(entry, row, n, next): `n` rows of a block from its row `row` on are rows[next] and those after it.
template <typename Fn>
void for_runs(const HeadCache& cache, std::span<const int32_t> rows, Fn&& fn) {
  size_t next = 0;
  int64_t first = 0;  // row of the head where the block begins
  for (const BlockEntry& entry : cache.blocks) {
    if (next == rows.size()) break;
    while (next < rows.size() && rows[next] < first + entry.n_rows) {
      size_t end = next + 1;
      while (end < rows.size() && rows[end] == rows[end - 1] + 1 && rows[end] < first + entry.n_rows) ++end;
      fn(entry, rows[next] - first, static_cast<int64_t>(end - next), next);
      next = end;
    }
    first += entry.n_rows;
  }
  SH_CHECK(next == rows.size(), "rows to decode lie within the head");
}

/// Replaces `out`. encoded(block): where the rows of a block begin.
template <typename Encoded>
void decode_runs(const kernels::KernelSet& kernels, const HeadCache& cache, std::span<const int32_t> rows,
                 DType type, int64_t width, Mat<float>& out, Encoded&& encoded) {
  out.resize(std::ssize(rows), width);
  const int64_t n_bytes = row_bytes(type, width);
  for_runs(cache, rows, [&](const BlockEntry& entry, int64_t row, int64_t n, size_t next) {
    kernels.decode_row(type, encoded(entry.block) + row * n_bytes, n * width, out.row(static_cast<int64_t>(next)));
  });
}

}  // namespace

void SequenceCache::decode_keys(const kernels::KernelSet& kernels, int32_t layer, int32_t head_index,
                                std::span<const int32_t> rows, Mat<float>& keys) const {
  const KvLayout& layout = pool_->layout();
  decode_runs(kernels, head(layer, head_index), rows, layout.key_type,
              layout.layers[static_cast<size_t>(layer)].key_width, keys,
              [&](BlockId block) { return pool_->keys(block); });
}

void SequenceCache::decode_values(const kernels::KernelSet& kernels, int32_t layer, int32_t head_index,
                                  std::span<const int32_t> rows, Mat<float>& values) const {
  const KvLayout& layout = pool_->layout();
  decode_runs(kernels, head(layer, head_index), rows, layout.value_type,
              layout.layers[static_cast<size_t>(layer)].value_width, values,
              [&](BlockId block) { return pool_->values(block); });
}

void SequenceCache::read_annotations(int32_t layer, int32_t head_index, std::span<const int32_t> rows,
                                     std::vector<float>& bias, std::vector<int32_t>& pos) const {
  bias.clear();
  pos.clear();
  bias.reserve(rows.size());
  pos.reserve(rows.size());
  for_runs(head(layer, head_index), rows, [&](const BlockEntry& entry, int64_t row, int64_t n, size_t) {
    for (int64_t r = row; r < row + n; ++r) {
      bias.push_back(bias_of_row(*pool_, entry, r));
      pos.push_back(pos_of_row(*pool_, entry, r).value);
    }
  });
}

std::vector<Pos> SequenceCache::positions(int32_t layer, int32_t head_index) const {
  const HeadCache& cache = head(layer, head_index);
  std::vector<Pos> pos;
  pos.reserve(static_cast<size_t>(cache.n_rows));
  for (const BlockEntry& entry : cache.blocks)
    for (int32_t row = 0; row < entry.n_rows; ++row) pos.push_back(pos_of_row(*pool_, entry, row));
  return pos;
}

HeadRows SequenceCache::copy_head(int32_t layer, int32_t head_index) const {
  const HeadCache& cache = head(layer, head_index);
  const KvLayout& layout = pool_->layout();
  const LayerLayout& shape = layout.layers[static_cast<size_t>(layer)];
  const int64_t key_row_bytes = row_bytes(layout.key_type, shape.key_width);
  const int64_t value_row_bytes = row_bytes(layout.value_type, shape.value_width);
  HeadRows rows;
  for (const BlockEntry& entry : cache.blocks) {
    const std::byte* keys = pool_->keys(entry.block);
    const std::byte* values = pool_->values(entry.block);
    rows.keys.insert(rows.keys.end(), keys, keys + entry.n_rows * key_row_bytes);
    rows.values.insert(rows.values.end(), values, values + entry.n_rows * value_row_bytes);
    for (int32_t row = 0; row < entry.n_rows; ++row) {
      rows.bias.push_back(bias_of_row(*pool_, entry, row));
      rows.pos.push_back(pos_of_row(*pool_, entry, row));
    }
  }
  return rows;
}

int64_t forks_that_fit(const BlockPool& pool, int64_t tokens_each) {
  int64_t bytes_each = 0;
  const auto& layers = pool.layout().layers;
  for (size_t l = 0; l < layers.size(); ++l) {
    const int32_t arena = pool.arena_of_layer(static_cast<int32_t>(l));
    if (arena < 0) continue;
    const int64_t n_blocks = 2 + tokens_each / kBlockRows;
    bytes_each += layers[l].n_heads * (n_blocks * pool.block_bytes(arena) + BlockPool::kAnnotationBytes);
  }
  return pool.bytes_available() / std::max<int64_t>(1, bytes_each);
}

}  // namespace sh::kv
