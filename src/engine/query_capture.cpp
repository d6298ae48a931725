// SPDX-License-Identifier: MIT
#include "engine/query_capture.h"

#include <algorithm>
#include <cstring>
#include <numeric>

#include "base/aligned.h"
#include "base/check.h"
#include "base/pages.h"

namespace sh::engine {

namespace {
constexpr int64_t kMaxStride = int64_t{1} << 61;
// Of the store, committed at once.
constexpr size_t kCommittedFloats = size_t{1} << 20;
}  // namespace

/// Sampled tokens are those whose ordinal is a multiple of `stride`. Storage is one flat row a token: for each
/// layer the queries, lse and outputs of its heads, so that dropping every second token is a compaction of one
/// array.
struct QueryCapture::Sampling {
  struct Layer {
    int64_t offset = 0;  // floats into a token's row
    int32_t n_heads = 0, n_kv_heads = 0, key_width = 0, value_width = 0;
  };
  std::vector<Layer> layers;
  int64_t row_floats = 0;
  int64_t max_rows = 0;
  int64_t stride = 1, first_stride = 1;
  int64_t n_seen = 0;            // tokens announced so far: the next token's ordinal
  int64_t n_seen_before = 0;     // the same before the forward that runs
  std::vector<int32_t> row_pos;  // [n_rows]
  std::vector<int64_t> ordinal;  // [n_rows]
  std::vector<std::pair<int32_t, int64_t>>
      pending;  // (row of the batch, ordinal; then row of the store) of the forward that runs
};

struct QueryCapture::State : Sampling {
  AlignedBuffer<float> rows;  // [max_rows, row_floats], of which the first n_rows are written or about to be
  size_t n_committed = 0;     // floats of `rows` whose memory is there

  State() = default;
  State(const State& other) : Sampling(other), rows(other.rows.n()) {
    resize(row_pos.size());
    std::copy_n(other.rows.data(), row_pos.size() * static_cast<size_t>(row_floats), rows.data());
  }

  int64_t row_bytes() const {
    return row_floats * static_cast<int64_t>(sizeof(float)) +
           static_cast<int64_t>(sizeof(int32_t) + sizeof(int64_t));
  }
  void drop_every_second() {
    stride *= 2;
    size_t kept = 0;
    for (size_t row = 0; row < row_pos.size(); ++row) {
      if (ordinal[row] % stride != 0) continue;
      if (kept != row) {
        std::copy_n(row_at(row), row_floats, row_at(kept));
        row_pos[kept] = row_pos[row];
        ordinal[kept] = ordinal[row];
      }
      ++kept;
    }
    resize(kept);
  }
  float* row_at(size_t row) { return rows.data() + row * static_cast<size_t>(row_floats); }
  const float* row_at(size_t row) const { return rows.data() + row * static_cast<size_t>(row_floats); }
  void resize(size_t n_rows) {
    const size_t n_floats = n_rows * static_cast<size_t>(row_floats);
    if (n_floats > n_committed) {
      const size_t end = std::min(rows.n(), std::max(n_floats, n_committed + kCommittedFloats));
      commit_pages(rows.data() + n_committed, (end - n_committed) * sizeof(float));
      n_committed = end;
    }
    row_pos.resize(n_rows);
    ordinal.resize(n_rows);
  }
};

QueryCapture::QueryCapture(const models::Model& model, const kv::KvLayout& layout, int64_t max_bytes,
                           int64_t first_stride)
    : state_(std::make_unique<State>()) {
  SH_CHECK(first_stride >= 1, "a stride counts tokens");
  State& s = *state_;
  s.stride = s.first_stride = first_stride;
  for (size_t l = 0; l < layout.layers.size(); ++l) {
    const kv::LayerLayout& kv_layer = layout.layers[l];
    State::Layer layer{.offset = s.row_floats,
                       .n_heads = kv_layer.n_heads > 0 ? model.n_query_heads(static_cast<int32_t>(l)) : 0,
                       .n_kv_heads = kv_layer.n_heads,
                       .key_width = kv_layer.key_width,
                       .value_width = kv_layer.value_width};
    s.row_floats += int64_t{layer.n_heads} * (layer.key_width + 1 + layer.value_width);
    s.layers.push_back(layer);
  }
  s.max_rows = s.row_floats == 0 ? 0 : max_bytes / s.row_bytes();
  // Address space only: a vector that doubles would hold up to twice the bound while it grows.
  s.rows.grow(static_cast<size_t>(s.max_rows * s.row_floats));
  s.row_pos.reserve(static_cast<size_t>(s.max_rows));
  s.ordinal.reserve(static_cast<size_t>(s.max_rows));
}

QueryCapture::QueryCapture(const QueryCapture& other)
    : ops::AttentionTap(other), state_(std::make_unique<State>(*other.state_)) {}
QueryCapture::~QueryCapture() = default;

void QueryCapture::begin_batch(std::span<const kv::Pos> pos, std::span<const bool> is_wanted,
                               std::span<const int64_t> labels) {
  State& s = *state_;
  s.pending.clear();
  s.n_seen_before = s.n_seen;
  if (s.max_rows < 1) return;
  for (size_t i = 0; i < pos.size(); ++i) {
    if (!is_wanted.empty() && !is_wanted[i]) continue;
    const int64_t ordinal = labels.empty() ? s.n_seen : labels[i];
    ++s.n_seen;
    if (ordinal % s.stride != 0) continue;
    while (static_cast<int64_t>(s.row_pos.size()) >= s.max_rows && s.max_rows > 1 && s.stride < kMaxStride) {
      s.drop_every_second();
      // Until the end of this function `pending` holds ordinals, which do not move.
      std::erase_if(s.pending, [&](const auto& entry) { return entry.second % s.stride != 0; });
    }
    if (ordinal % s.stride != 0 || static_cast<int64_t>(s.row_pos.size()) >= s.max_rows) continue;
    s.pending.emplace_back(static_cast<int32_t>(i), ordinal);
    s.resize(s.row_pos.size() + 1);
    s.row_pos.back() = pos[i].value;
    s.ordinal.back() = ordinal;
  }
  // From ordinals to rows of the store, now that nothing moves any more: they are its last ones.
  auto row = static_cast<int64_t>(s.row_pos.size() - s.pending.size());
  for (auto& [batch_row, target] : s.pending) target = row++;
}

void QueryCapture::abort_batch() {
  State& s = *state_;
  // Its tokens are the last rows of the store; a stride that doubled for them stays.
  s.resize(s.row_pos.size() - s.pending.size());
  s.pending.clear();
  s.n_seen = s.n_seen_before;
}

bool QueryCapture::on_attention(int32_t layer_index, MatView<const float> queries, MatView<const float> lse,
                                MatView<const float> out) {
  State& s = *state_;
  const State::Layer& layer = s.layers[static_cast<size_t>(layer_index)];
  const auto copy = [](const float* from, int64_t n, float*& to) {
    std::memcpy(to, from, static_cast<size_t>(n) * sizeof(float));
    to += n;
  };
  for (const auto& [batch_row, row] : s.pending) {
    float* to = s.row_at(static_cast<size_t>(row)) + layer.offset;
    copy(queries.row(batch_row), int64_t{layer.n_heads} * layer.key_width, to);
    copy(lse.row(batch_row), layer.n_heads, to);
    copy(out.row(batch_row), int64_t{layer.n_heads} * layer.value_width, to);
  }
  return false;
}

bool QueryCapture::wants_layer(int32_t layer) const {
  return !state_->pending.empty() && state_->layers[static_cast<size_t>(layer)].n_heads > 0;
}

void QueryCapture::clear() {
  state_->resize(0);
  state_->pending.clear();
  state_->stride = state_->first_stride;
  state_->n_seen = 0;
}

void QueryCapture::truncate(kv::Pos end) {
  State& s = *state_;
  size_t n = s.row_pos.size();
  while (n > 0 && s.row_pos[n - 1] >= end.value) --n;
  s.resize(n);
}

int64_t QueryCapture::n_tokens() const {
  return static_cast<int64_t>(state_->row_pos.size());
}
int64_t QueryCapture::n_bytes() const {
  const State& s = *state_;
  return static_cast<int64_t>(s.rows.n() * sizeof(float) + s.row_pos.capacity() * sizeof(int32_t) +
                              s.ordinal.capacity() * sizeof(int64_t));
}

QuerySets QueryCapture::take(ThreadPool& threads, int64_t ordinals_per_asker) const {
  const State& s = *state_;
  const auto n_rows = static_cast<int64_t>(s.row_pos.size());
  std::vector<int64_t> order(s.row_pos.size());
  std::iota(order.begin(), order.end(), int64_t{0});
  std::stable_sort(order.begin(), order.end(), [&](int64_t a, int64_t b) {
    return s.ordinal[static_cast<size_t>(a)] < s.ordinal[static_cast<size_t>(b)];
  });
  QuerySets sets(s.layers.size());
  threads.run(std::ssize(s.layers), [&](int64_t index, int) {
    const auto l = static_cast<size_t>(index);
    const State::Layer& layer = s.layers[l];
    sets[l] = pool_groups({.n_heads = layer.n_kv_heads, .key_width = layer.key_width, .value_width = layer.value_width},
                          layer.n_heads, n_rows, [&](int64_t i) {
                            const auto row = static_cast<size_t>(order[static_cast<size_t>(i)]);
                            const float* base = s.row_at(row) + layer.offset;
                            const float* lse = base + int64_t{layer.n_heads} * layer.key_width;
                            return TokenQueries{base, lse, lse + layer.n_heads, s.row_pos[row],
                                                static_cast<int32_t>(s.ordinal[row] / ordinals_per_asker)};
                          });
  });
  return sets;
}

std::vector<QuerySet> pool_groups(const kv::LayerLayout& layer, int32_t n_query_heads, int64_t n_tokens,
                                  const std::function<TokenQueries(int64_t token)>& queries_of) {
  std::vector<QuerySet> sets(static_cast<size_t>(layer.n_heads));
  if (layer.n_heads == 0) return sets;
  const int32_t group = n_query_heads / layer.n_heads;
  const auto n_queries = static_cast<size_t>(n_tokens * group);
  for (QuerySet& set : sets) {
    // Filled row after row below, not zeroed first: this is as much memory as the capture itself.
    set.queries.rows = set.out.rows = n_tokens * group;
    set.queries.cols = layer.key_width;
    set.out.cols = layer.value_width;
    set.queries.data.reserve(n_queries * static_cast<size_t>(layer.key_width));
    set.out.data.reserve(n_queries * static_cast<size_t>(layer.value_width));
  }
  for (int64_t token = 0; token < n_tokens; ++token) {
    const TokenQueries from = queries_of(token);
    for (int64_t head = 0; head < n_query_heads; ++head) {
      QuerySet& set = sets[static_cast<size_t>(head / group)];
      const float* query = from.queries + head * layer.key_width;
      const float* out = from.out + head * layer.value_width;
      set.queries.data.insert(set.queries.data.end(), query, query + layer.key_width);
      set.out.data.insert(set.out.data.end(), out, out + layer.value_width);
      set.lse.push_back(from.lse[head]);
      set.pos.push_back(from.pos);
      set.asker.push_back(from.asker);
    }
  }
  return sets;
}

}  // namespace sh::engine
