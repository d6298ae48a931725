// SPDX-License-Identifier: MIT
// Which rows the reference queries have asked for so far.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "engine/executor.h"
#include "engine/region_plan.h"

namespace sh::engine {

/// For every row of a region the highest share of attention that any query gave it: compaction's score "max" under
/// weighting "attention_share". A query is folded in when it passes and none is kept, so a fact that one
/// conversation asked for stays in the scores however far the capture of queries is thinned.
/// Memory: a float a row, and of each layer 128 tokens' queries.
class RowCoverage {
 public:
  /// Borrows all. `plans` and the rows of `sequence` that they name must not change meanwhile.
  RowCoverage(Executor& executor, const kv::SequenceCache& sequence, std::span<const HeadPlan> plans);

  /// Queries of a forward at one layer, as an AttentionTap sees them: row i at position pos[i], of a sequence that
  /// continues `sequence` (or a part of it).
  /// Cost: the queries' products with the layer's region rows, parallel over heads and rows.
  void fold(int32_t layer, std::span<const kv::Pos> pos, MatView<const float> queries, MatView<const float> lse);
  bool wants_layer(int32_t layer) const;

  /// Ends a round: the share of the `n_kept` best rows over all heads that were not among the best when the last
  /// round ended; 1 after the first round, 0 when nothing would be kept.
  double end_round(int64_t n_kept);

  /// Of all queries so far, in the order of the plans; rows that are not finite have -inf, as in score_rows().
  /// Shapes: [plans][rows].
  std::vector<std::vector<float>> scores();

  int64_t n_rows() const { return static_cast<int64_t>(best_.size()); }  // over all heads
  double seconds() const { return seconds_; }                            // spent in here

 private:
  /// Queries of a layer that wait until there are enough to be worth decoding its rows.
  struct Layer {
    int32_t n_heads = 0, n_kv_heads = 0, key_width = 0, window = 0;
    float scale = 1.0f;
    bool has_checked_rows = false;  // rows that are not finite are known
    std::vector<int64_t> plans;     // that are of this layer
    std::vector<float> queries;     // [pending, n_heads * key_width]
    std::vector<float> lse;         // [pending, n_heads]
    std::vector<int32_t> pos;    // [pending]
    int64_t query_floats() const { return int64_t{n_heads} * key_width; }
  };
  struct Worker {
    Mat<float> keys, values;
    std::vector<float> bias, products, best;
    std::vector<int32_t> pos;
  };
  void fold_pending(int32_t layer);
  void fold_tile(const Layer& layer, int64_t plan, int64_t begin, int64_t end, Worker& worker);
  void flush();

  Executor& executor_;
  const kv::SequenceCache& sequence_;
  std::span<const HeadPlan> plans_;
  std::vector<Layer> layers_;
  std::vector<int64_t> first_;     // [plans] of the plan's rows in best_
  std::vector<float> best_;        // [n_rows] highest log share; +inf for a row that is not finite
  std::vector<uint8_t> was_kept_;  // [n_rows] when the last round ended; empty before the first
  std::vector<Worker> workers_;
  double seconds_ = 0;
};

}  // namespace sh::engine
