// SPDX-License-Identifier: MIT
// Queries taken from forwards, in bounded memory.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <vector>

#include "base/mat_view.h"
#include "base/thread_pool.h"
#include "kv/layout.h"
#include "kv/pos.h"
#include "models/model.h"
#include "ops/ops.h"

namespace sh::engine {

/// Reference queries of one (layer, KV head): the query heads of the group pooled.
struct QuerySet {
  Mat<float> queries;        // [n, key_width]
  std::vector<int32_t> pos;  // [n]
  std::vector<float> lse;    // [n] over all rows that the query saw
  Mat<float> out;            // [n, value_width] attention output over all rows that it saw
  std::vector<int32_t> asker;  // [n] whose query it is: a token's, or a conversation's; neighbours
};
using QuerySets = std::vector<std::vector<QuerySet>>;  // [layer][KV head]

/// What one token saw in one layer, head after head.
struct TokenQueries {
  const float* queries;  // [n_heads * key_width]
  const float* lse;      // [n_heads]
  const float* out;      // [n_heads * value_width]
  int32_t pos;
  int32_t asker;
};
/// The queries of a layer by KV head; those of a token's heads in one group are neighbours.
/// Shapes: result [KV heads], n_tokens * group queries each.
std::vector<QuerySet> pool_groups(const kv::LayerLayout& layer, int32_t n_query_heads, int64_t n_tokens,
                                  const std::function<TokenQueries(int64_t token)>& queries_of);

/// One token of so many is captured while a conversation is read. Every token would cost a prefill 5 to 15 %
/// (bench/capture_bench: the copies touch as much new memory as the cache itself); one of 8 stays below 3 %.
inline constexpr int64_t kReadingStride = 8;

/// Keeps the queries of a bounded, evenly spread sample of the tokens that pass a forward: when the bound is
/// reached, every second sampled token is dropped and the stride doubles. Deterministic.
class QueryCapture : public ops::AttentionTap {
 public:
  /// `max_bytes` bounds what the capture holds, over all layers.
  /// `first_stride`: of so many tokens one is sampled from the beginning.
  QueryCapture(const models::Model& model, const kv::KvLayout& layout, int64_t max_bytes,
               int64_t first_stride = 1);
  QueryCapture(const QueryCapture& other);
  ~QueryCapture() override;

  /// Announces the tokens of the next forward: row i of the batch has position pos[i]. Rows with
  /// `is_wanted[i] == false` are not sampled; an empty span wants all. `labels` number the tokens where the order
  /// in which they pass is an accident of the batches: what is sampled and the order of take() then follow the
  /// labels. Needs: labels at least 0, no two the same; all batches or none have labels.
  void begin_batch(std::span<const kv::Pos> pos, std::span<const bool> is_wanted = {},
                   std::span<const int64_t> labels = {});
  /// The announced forward did not run: its tokens are forgotten.
  void abort_batch();
  bool on_attention(int32_t layer, MatView<const float> queries, MatView<const float> lse,
                    MatView<const float> out) override;
  bool wants_layer(int32_t layer) const override;

  void clear();
  /// Forgets tokens at positions >= end (a conversation that was cut back).
  void truncate(kv::Pos end);
  int64_t n_tokens() const;
  int64_t n_bytes() const;
  /// Copies in the order of the tokens, pooled over the group. So many ordinals (labels, where there are any) are one
  /// asker's.
  QuerySets take(ThreadPool& threads, int64_t ordinals_per_asker = 1) const;

 private:
  struct Sampling;
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace sh::engine
