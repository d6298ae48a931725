// SPDX-License-Identifier: MIT
#include "engine/rebase.h"

#include <fmt/format.h>

#include <algorithm>
#include <vector>

#include "engine/engine.h"

namespace sh::engine {

namespace {

using kv::HeadRows;
using kv::Pos;
using kv::SequenceCache;

/// Where a position goes.
struct Squeeze {
  Pos keep_end, old_end, new_end;

  int64_t shift() const { return old_end - new_end; }
  Pos operator()(Pos pos) const {
    if (pos < keep_end) return pos;
    if (pos >= old_end) return Pos(pos.value - shift());
    return keep_end + (pos - keep_end) * (new_end - keep_end) / (old_end - keep_end);
  }
};

/// How the rows of a layer move: `is_rigid` moves all by the same amount; rows before `first_kept` are dropped.
struct LayerMove {
  bool is_rigid = false;
  Pos first_kept;
};

LayerMove plan_layer(int32_t window, const Squeeze& squeeze, Pos next_pos) {
  if (window == 0) return {};
  if (next_pos.value - squeeze.shift() >= window) return {true, Pos(squeeze.shift())};
  return {false, Pos(std::max<int64_t>(0, int64_t{next_pos.value} + 1 - window))};
}

void erase_first(HeadRows& rows, size_t n) {
  const auto erase = [&](auto& values, size_t n_values) {
    values.erase(values.begin(), values.begin() + static_cast<std::ptrdiff_t>(n_values));
  };
  if (n == 0) return;
  const size_t n_rows = rows.pos.size();
  erase(rows.keys, rows.keys.size() / n_rows * n);
  erase(rows.values, rows.values.size() / n_rows * n);
  erase(rows.bias, n);
  erase(rows.pos, n);
}

/// The head's rows at their new positions. Rows that stay where they are keep their bytes.
HeadRows move_head(Executor& executor, const SequenceCache& sequence, int32_t layer, int32_t head,
                   const Squeeze& squeeze, const LayerMove& move) {
  const kv::KvLayout& layout = sequence.pool().layout();
  const int64_t width = layout.layers[static_cast<size_t>(layer)].key_width;
  HeadRows rows = sequence.copy_head(layer, head);
  erase_first(rows, static_cast<size_t>(std::lower_bound(rows.pos.begin(), rows.pos.end(), move.first_kept) -
                                        rows.pos.begin()));
  std::vector<int32_t> deltas(rows.pos.size());
  for (size_t r = 0; r < rows.pos.size(); ++r) {
    const Pos to = move.is_rigid ? Pos(rows.pos[r].value - squeeze.shift()) : squeeze(rows.pos[r]);
    deltas[r] = static_cast<int32_t>(to - rows.pos[r]);
    rows.pos[r] = to;
  }
  // Decoded a piece at a time: a head of a long context would be large as f32.
  constexpr size_t kPiece = 256;
  Mat<float> keys(kPiece, width);
  const auto n_bytes = static_cast<size_t>(row_bytes(layout.key_type, width));
  for (size_t begin = 0; begin < deltas.size(); begin += kPiece) {
    const size_t n = std::min(kPiece, deltas.size() - begin);
    std::byte* bytes = rows.keys.data() + begin * n_bytes;
    for (size_t r = 0; r < n; ++r)
      executor.kernels().decode_row(layout.key_type, bytes + r * n_bytes, width,
                                    keys.row(static_cast<int64_t>(r)));
    const auto piece = std::span<const int32_t>(deltas).subspan(begin, n);
    executor.engine().model().shift_keys(layer, piece, keys.view().slice(0, static_cast<int64_t>(n)));
    for (size_t r = 0; r < n; ++r)
      if (piece[r] != 0)
        executor.kernels().encode_row(layout.key_type, keys.row(static_cast<int64_t>(r)), width,
                                      bytes + r * n_bytes);
  }
  return rows;
}

}  // namespace

Result<void> rebase(Executor& executor, SequenceCache& sequence, Pos keep_end, Pos new_compacted_end) {
  if (keep_end < Pos(0) || new_compacted_end < keep_end || sequence.compacted_end() < new_compacted_end)
    return Error{
        ErrorKind::invalid_argument,
        fmt::format("rebase: compacted rows are to end at position {} with those before {} unmoved; expected "
                    "0 <= unmoved <= end <= {}, where they end now",
                    new_compacted_end.value, keep_end.value, sequence.compacted_end().value)};
  const Squeeze squeeze{keep_end, sequence.compacted_end(), new_compacted_end};
  if (squeeze.shift() == 0) return {};
  const auto& layers = sequence.pool().layout().layers;
  std::vector<std::vector<HeadRows>> rows(layers.size());
  std::vector<LayerMove> moves;
  std::vector<std::pair<int32_t, int32_t>> heads;
  for (size_t l = 0; l < layers.size(); ++l) {
    moves.push_back(plan_layer(layers[l].window, squeeze, sequence.next_pos()));
    rows[l].resize(static_cast<size_t>(layers[l].n_heads));
    for (int32_t h = 0; h < layers[l].n_heads; ++h) heads.emplace_back(static_cast<int32_t>(l), h);
  }
  executor.thread_pool().run(static_cast<int64_t>(heads.size()), [&](int64_t i, int) {
    const auto [layer, head] = heads[static_cast<size_t>(i)];
    const auto l = static_cast<size_t>(layer);
    rows[l][static_cast<size_t>(head)] = move_head(executor, sequence, layer, head, squeeze, moves[l]);
  });

  SequenceCache::Identity identity = sequence.identity();
  for (size_t l = 0; l < layers.size(); ++l) {
    Pos& dropped_end = identity.dropped_end[l];
    const Pos first_kept = moves[l].first_kept;
    if (moves[l].is_rigid) {
      // A rigid move ends what is there at position 0; 1 says that more was before it.
      dropped_end = Pos(std::max<int64_t>(1, dropped_end - Pos(squeeze.shift())));
    } else {
      dropped_end = squeeze(std::max(dropped_end, first_kept));
    }
  }
  identity.compacted_end = squeeze.new_end;
  identity.next_pos = squeeze(identity.next_pos);
  identity.n_squeezed += squeeze.shift();
  ++identity.n_rebases;
  return sequence.restore(rows, identity);
}

}  // namespace sh::engine
