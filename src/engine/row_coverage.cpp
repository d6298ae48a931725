// SPDX-License-Identifier: MIT
#include "engine/row_coverage.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <limits>

#include "base/clock.h"
#include "engine/engine.h"

namespace sh::engine {

namespace {

constexpr float kInf = std::numeric_limits<float>::infinity();
// Tokens whose queries are folded at once. Decoding a tile of rows costs as much as their products with about ten
// queries; the end of a round steps with a few conversations only.
constexpr int64_t kPendingTokens = 128;
// Rows of a tile: keys and products of one worker stay within the second-level cache.
constexpr int64_t kTileRows = 256;
// Squares of larger numbers leave the range of f32 (as in compaction::finite_rows).
constexpr float kMaxMagnitude = 1e15f;

/// All finite, and no larger than kMaxMagnitude. Compares bits, because without -ffast-math a loop over floats is
/// not vectorised, and every row of the cache passes here.
bool is_usable(const float* x, int64_t n) {
  constexpr auto kHighest = std::bit_cast<int32_t>(kMaxMagnitude);
  int32_t differences = 0;  // negative once some magnitude is larger; NaN and infinity are larger than all
  for (int64_t i = 0; i < n; ++i) differences |= kHighest - (std::bit_cast<int32_t>(x[i]) & 0x7FFFFFFF);
  return differences >= 0;
}

}  // namespace

RowCoverage::RowCoverage(Executor& executor, const kv::SequenceCache& sequence, std::span<const HeadPlan> plans)
    : executor_(executor),
      sequence_(sequence),
      plans_(plans),
      workers_(static_cast<size_t>(executor.thread_pool().n_threads())) {
  const Stopwatch watch;
  const Engine& engine = executor.engine();
  for (size_t l = 0; l < engine.kv_layout().layers.size(); ++l) {
    const kv::LayerLayout& shape = engine.kv_layout().layers[l];
    const auto index = static_cast<int32_t>(l);
    Layer layer{.n_kv_heads = shape.n_heads, .key_width = shape.key_width, .window = shape.window};
    if (shape.n_heads > 0) {
      layer.n_heads = engine.model().n_query_heads(index);
      layer.scale = engine.model().attention_scale(index);
    }
    layers_.push_back(std::move(layer));
  }
  int64_t n_rows = 0;
  for (size_t i = 0; i < plans.size(); ++i) {
    layers_[static_cast<size_t>(plans[i].layer)].plans.push_back(static_cast<int64_t>(i));
    first_.push_back(n_rows);
    n_rows += static_cast<int64_t>(plans[i].rows.size());
  }
  best_.assign(static_cast<size_t>(n_rows), -kInf);
  seconds_ = watch.seconds();
}

bool RowCoverage::wants_layer(int32_t layer) const {
  return !layers_[static_cast<size_t>(layer)].plans.empty();
}

void RowCoverage::fold(int32_t layer_index, std::span<const kv::Pos> pos, MatView<const float> queries,
                       MatView<const float> lse) {
  Layer& layer = layers_[static_cast<size_t>(layer_index)];
  if (layer.plans.empty()) return;
  const Stopwatch watch;
  for (int64_t i = 0; i < queries.rows; ++i) {
    layer.queries.insert(layer.queries.end(), queries.row(i), queries.row(i) + layer.query_floats());
    layer.lse.insert(layer.lse.end(), lse.row(i), lse.row(i) + layer.n_heads);
    layer.pos.push_back(pos[static_cast<size_t>(i)].value);
    if (static_cast<int64_t>(layer.pos.size()) == kPendingTokens) fold_pending(layer_index);
  }
  seconds_ += watch.seconds();
}

void RowCoverage::fold_pending(int32_t layer_index) {
  Layer& layer = layers_[static_cast<size_t>(layer_index)];
  if (layer.pos.empty() && layer.has_checked_rows) return;
  // A query that is not finite asks for nothing: no row has a finite product with it.
  for (size_t i = 0; i < layer.pos.size(); ++i)
    for (int32_t head = 0; head < layer.n_heads; ++head) {
      float* query =
          layer.queries.data() + static_cast<int64_t>(i) * layer.query_floats() + int64_t{head} * layer.key_width;
      float& lse = layer.lse[i * static_cast<size_t>(layer.n_heads) + static_cast<size_t>(head)];
      if (std::isfinite(lse) && is_usable(query, layer.key_width)) continue;
      std::fill_n(query, layer.key_width, 0.0f);
      lse = kInf;
    }
  std::vector<std::pair<int64_t, int64_t>> tiles;  // (plan, first row)
  for (const int64_t plan : layer.plans)
    for (int64_t begin = 0; begin < static_cast<int64_t>(plans_[static_cast<size_t>(plan)].rows.size());
         begin += kTileRows)
      tiles.emplace_back(plan, begin);
  executor_.thread_pool().run(static_cast<int64_t>(tiles.size()), [&](int64_t i, int worker) {
    const auto [plan, begin] = tiles[static_cast<size_t>(i)];
    const auto n = static_cast<int64_t>(plans_[static_cast<size_t>(plan)].rows.size());
    fold_tile(layer, plan, begin, std::min(n, begin + kTileRows), workers_[static_cast<size_t>(worker)]);
  });
  layer.queries.clear();
  layer.lse.clear();
  layer.pos.clear();
  layer.has_checked_rows = true;
}

void RowCoverage::fold_tile(const Layer& layer, int64_t plan_index, int64_t begin, int64_t end, Worker& w) {
  const HeadPlan& plan = plans_[static_cast<size_t>(plan_index)];
  const auto rows = std::span(plan.rows).subspan(static_cast<size_t>(begin), static_cast<size_t>(end - begin));
  sequence_.decode_keys(executor_.kernels(), plan.layer, plan.head, rows, w.keys);
  sequence_.read_annotations(plan.layer, plan.head, rows, w.bias, w.pos);
  const int64_t n_rows = end - begin, group = layer.n_heads / layer.n_kv_heads;
  const auto n_queries = static_cast<int64_t>(layer.pos.size());
  w.products.resize(static_cast<size_t>(kPendingTokens * kTileRows));
  w.best.assign(static_cast<size_t>(n_rows), -kInf);
  for (int64_t g = 0; g < group && n_queries > 0; ++g) {
    const int64_t head = plan.head * group + g;
    executor_.kernels().gemm_nt({.m = n_queries,
                                 .n = n_rows,
                                 .k = layer.key_width,
                                 .a = layer.queries.data() + head * layer.key_width,
                                 .a_stride = layer.query_floats(),
                                 .b = w.keys.data.data(),
                                 .b_stride = w.keys.cols,
                                 .c = w.products.data(),
                                 .c_stride = n_rows,
                                 .alpha = layer.scale});
    for (int64_t i = 0; i < n_queries; ++i) {
      const int32_t pos = layer.pos[static_cast<size_t>(i)];
      const auto seen_end = std::upper_bound(w.pos.begin(), w.pos.end(), pos);
      auto seen_begin = w.pos.begin();
      if (layer.window > 0) seen_begin = std::upper_bound(w.pos.begin(), seen_end, pos - layer.window);
      const float lse = layer.lse[static_cast<size_t>(i * layer.n_heads + head)];
      const float* products = w.products.data() + i * n_rows;
      for (int64_t row = seen_begin - w.pos.begin(), last = seen_end - w.pos.begin(); row < last; ++row)
        w.best[static_cast<size_t>(row)] = std::max(w.best[static_cast<size_t>(row)], products[row] - lse);
    }
  }
  float* best = best_.data() + first_[static_cast<size_t>(plan_index)] + begin;
  for (int64_t row = 0; row < n_rows; ++row)
    best[row] = std::max(best[row], w.best[static_cast<size_t>(row)] + w.bias[static_cast<size_t>(row)]);
  if (layer.has_checked_rows) return;
  // With the first queries, while the keys are decoded anyway.
  sequence_.decode_values(executor_.kernels(), plan.layer, plan.head, rows, w.values);
  for (int64_t row = 0; row < n_rows; ++row)
    if (!is_usable(w.keys.row(row), w.keys.cols) || !is_usable(w.values.row(row), w.values.cols) ||
        !std::isfinite(w.bias[static_cast<size_t>(row)]))
      best[row] = kInf;
}

void RowCoverage::flush() {
  for (size_t layer = 0; layer < layers_.size(); ++layer) fold_pending(static_cast<int32_t>(layer));
}

double RowCoverage::end_round(int64_t n_kept) {
  const Stopwatch watch;
  flush();
  std::vector<int64_t> order;
  for (int64_t row = 0; row < n_rows(); ++row)
    if (best_[static_cast<size_t>(row)] < kInf) order.push_back(row);
  n_kept = std::clamp<int64_t>(n_kept, 0, static_cast<int64_t>(order.size()));
  const auto is_better = [&](int64_t a, int64_t b) {
    const float best_a = best_[static_cast<size_t>(a)], best_b = best_[static_cast<size_t>(b)];
    return best_a > best_b || (best_a == best_b && a < b);
  };
  if (n_kept < static_cast<int64_t>(order.size()))
    std::nth_element(order.begin(), order.begin() + n_kept, order.end(), is_better);
  std::vector<uint8_t> is_kept(best_.size(), 0);
  int64_t n_new = 0;
  for (int64_t i = 0; i < n_kept; ++i) {
    const auto row = static_cast<size_t>(order[static_cast<size_t>(i)]);
    is_kept[row] = 1;
    if (was_kept_.empty() || !was_kept_[row]) ++n_new;
  }
  was_kept_ = std::move(is_kept);
  seconds_ += watch.seconds();
  return static_cast<double>(n_new) / static_cast<double>(std::max<int64_t>(1, n_kept));
}

std::vector<std::vector<float>> RowCoverage::scores() {
  flush();
  std::vector<std::vector<float>> scores;
  for (size_t i = 0; i < plans_.size(); ++i) {
    const auto begin = best_.begin() + first_[i];
    std::vector<float>& head =
        scores.emplace_back(begin, begin + static_cast<std::ptrdiff_t>(plans_[i].rows.size()));
    for (float& score : head) score = score == kInf ? -kInf : std::exp(std::min(score, 0.0f));
  }
  return scores;
}

}  // namespace sh::engine
