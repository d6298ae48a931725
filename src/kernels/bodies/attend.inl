// SPDX-License-Identifier: MIT
// Attention over blocks of at most 16 rows. A block's keys are decoded and turned so that lanes are rows, its
// values are decoded; then every query of the tile takes one online-softmax step with it. The order of a query's
// sums depends on its own list of blocks only. Included inside a target region and namespace.

constexpr int64_t kRowVectors = kMaxBlockRows / kLanes;

/// The parts of AttendTile::scratch. Widths are padded to 16 floats, so that vectors need no tails.
struct AttendScratch {
  int64_t key_padded, value_padded;
  float* key_rows;     // [16, key_padded] decoded
  float* turned_keys;  // [key_padded, 16]
  float* values;       // [16, value_padded]
  float* outs;         // [n_queries, value_padded]
  float* weights;      // [n_queries, 16] scores, then exp(score - maximum)
  float* sums;         // [n_queries, 16] lanes of the sum of weights
  float* maxima;       // [n_queries]
  float* factors;      // [n_queries] what the step multiplies earlier sums by
};

inline AttendScratch attend_scratch(const AttendTile& tile) {
  const auto padded = [](int64_t n) { return (n + 15) / 16 * 16; };
  AttendScratch s{};
  s.key_padded = padded(tile.key_width);
  s.value_padded = padded(tile.value_width);
  float* p = tile.scratch + (16 - reinterpret_cast<uintptr_t>(tile.scratch) / sizeof(float) % 16) % 16;
  const auto take = [&p](int64_t n) {
    float* part = p;
    p += n;
    return part;
  };
  const int64_t n_queries = tile.n_queries;
  s.key_rows = take(16 * s.key_padded);
  s.turned_keys = take(16 * s.key_padded);
  s.values = take(16 * s.value_padded);
  s.outs = take(n_queries * s.value_padded);
  s.weights = take(n_queries * 16);
  s.sums = take(n_queries * 16);
  s.maxima = take(n_queries);
  s.factors = take(n_queries);
  return s;
}

/// Rows as floats: decoded to `buffer`, or where they lie if they are floats that need no padding.
struct FloatRows {
  const float* first;
  int64_t stride;
};
/// `next` is the same part of the next block, or null: its rows are fetched while these are decoded.
inline FloatRows decode_rows(DType dtype, const std::byte* rows, const std::byte* next, int64_t n_rows,
                             int64_t width, int64_t padded, float* buffer) {
  const int64_t bytes = row_bytes(dtype, width);
  if (next != nullptr && dtype == DType::f32) prefetch_bytes(next, n_rows * bytes);
  if (dtype == DType::f32 && width == padded && n_rows == kMaxBlockRows)
    return {reinterpret_cast<const float*>(rows), width};
  for (int64_t r = 0; r < n_rows; ++r) {
    if (next != nullptr && dtype != DType::f32) prefetch_bytes(next + r * bytes, bytes);
    decode_row(dtype, rows + r * bytes, width, buffer + r * padded);
  }
  return {buffer, padded};
}

inline void turn_keys(const FloatRows& rows, const AttendScratch& s) {
  for (int64_t r = 0; r < kMaxBlockRows; r += kLanes)
    for (int64_t i = 0; i < s.key_padded; i += kLanes)
      transpose_words(reinterpret_cast<const std::byte*>(rows.first + r * rows.stride + i), rows.stride * 4,
                      reinterpret_cast<std::byte*>(s.turned_keys + i * kMaxBlockRows + r), kMaxBlockRows * 4);
}

/// Products of kQueries queries with all rows of the block, unscaled. kScoreChains sums a product, by k modulo
/// kScoreChains.
template <int kQueries>
void score_tile(const float* queries, int64_t query_stride, int64_t key_width, const float* turned_keys,
                float* scores) {
  constexpr int kVectors = static_cast<int>(kRowVectors);
  F sums[kScoreChains][kQueries][kVectors];
#pragma GCC unroll 8
  for (int chain = 0; chain < kScoreChains; ++chain)
#pragma GCC unroll 8
    for (int q = 0; q < kQueries; ++q)
#pragma GCC unroll 8
      for (int v = 0; v < kVectors; ++v) sums[chain][q][v] = zero();
  int64_t k = 0;
  for (; k + kScoreChains <= key_width; k += kScoreChains) {
#pragma GCC unroll 8
    for (int chain = 0; chain < kScoreChains; ++chain) {
      F keys[kVectors];
#pragma GCC unroll 8
      for (int v = 0; v < kVectors; ++v) keys[v] = load(turned_keys + (k + chain) * kMaxBlockRows + v * kLanes);
#pragma GCC unroll 8
      for (int q = 0; q < kQueries; ++q) {
        const F x = set1(queries[q * query_stride + k + chain]);
#pragma GCC unroll 8
        for (int v = 0; v < kVectors; ++v) sums[chain][q][v] = fma(x, keys[v], sums[chain][q][v]);
      }
    }
  }
  for (; k < key_width; ++k)
#pragma GCC unroll 8
    for (int q = 0; q < kQueries; ++q)
#pragma GCC unroll 8
      for (int v = 0; v < kVectors; ++v)
        sums[0][q][v] = fma(set1(queries[q * query_stride + k]),
                            load(turned_keys + k * kMaxBlockRows + v * kLanes), sums[0][q][v]);
#pragma GCC unroll 8
  for (int q = 0; q < kQueries; ++q)
#pragma GCC unroll 8
    for (int v = 0; v < kVectors; ++v) {
      F sum = sums[0][q][v];
#pragma GCC unroll 8
      for (int chain = 1; chain < kScoreChains; ++chain) sum = add(sum, sums[chain][q][v]);
      store(scores + q * kMaxBlockRows + v * kLanes, sum);
    }
}

template <int kQueries>
void score_tile_of(int64_t n_queries, const float* queries, int64_t query_stride, int64_t key_width,
                   const float* turned_keys, float* scores) {
  if (n_queries == kQueries)
    score_tile<kQueries>(queries, query_stride, key_width, turned_keys, scores);
  else if constexpr (kQueries > 1)
    score_tile_of<kQueries - 1>(n_queries, queries, query_stride, key_width, turned_keys, scores);
}

/// outs = factor · outs + weights · values, for kQueries queries and kVectors vectors of the value.
template <int kQueries, int kVectors>
void mix_tile(const float* weights, const float* factors, const FloatRows& values, int64_t value_padded,
              int64_t n_rows, float* outs) {
  F sums[kQueries][kVectors];
#pragma GCC unroll 8
  for (int q = 0; q < kQueries; ++q) {
    const F factor = set1(factors[q]);
#pragma GCC unroll 8
    for (int v = 0; v < kVectors; ++v) sums[q][v] = mul(factor, load(outs + q * value_padded + v * kLanes));
  }
  for (int64_t r = 0; r < n_rows; ++r) {
    F row[kVectors];
#pragma GCC unroll 8
    for (int v = 0; v < kVectors; ++v) row[v] = load(values.first + r * values.stride + v * kLanes);
#pragma GCC unroll 8
    for (int q = 0; q < kQueries; ++q) {
      const F weight = set1(weights[q * kMaxBlockRows + r]);
#pragma GCC unroll 8
      for (int v = 0; v < kVectors; ++v) sums[q][v] = fma(weight, row[v], sums[q][v]);
    }
  }
#pragma GCC unroll 8
  for (int q = 0; q < kQueries; ++q)
#pragma GCC unroll 8
    for (int v = 0; v < kVectors; ++v) store(outs + q * value_padded + v * kLanes, sums[q][v]);
}

template <int kQueries>
void mix_rows(const float* weights, const float* factors, const FloatRows& values, int64_t value_padded,
              int64_t n_rows, float* outs) {
  int64_t i = 0;
  for (; i + kMixVectors * kLanes <= value_padded; i += kMixVectors * kLanes)
    mix_tile<kQueries, kMixVectors>(weights, factors, {values.first + i, values.stride}, value_padded, n_rows,
                                    outs + i);
  for (; i < value_padded; i += kLanes)
    mix_tile<kQueries, 1>(weights, factors, {values.first + i, values.stride}, value_padded, n_rows, outs + i);
}

/// What a block's rows need beyond their products.
struct BlockMask {
  bool is_needed;              // some query of the tile does not see some row
  int32_t pos[kMaxBlockRows];  // rows past the end: INT32_MAX, so that no query sees them
  float bias[kMaxBlockRows];
  int32_t first_pos, last_pos;  // smallest and largest of the rows
};

inline BlockMask block_mask(const KvBlockView& block) {
  BlockMask mask;
  mask.is_needed = block.n_rows < kMaxBlockRows;
  mask.first_pos = INT32_MAX;
  mask.last_pos = INT32_MIN;
  for (int32_t r = 0; r < kMaxBlockRows; ++r) {
    const bool exists = r < block.n_rows;
    mask.pos[r] = !exists ? INT32_MAX : block.pos != nullptr ? block.pos[r] : block.first_pos + r;
    mask.bias[r] = exists && block.bias != nullptr ? block.bias[r] : 0.0f;
    if (!exists) continue;
    if (mask.pos[r] < mask.first_pos) mask.first_pos = mask.pos[r];
    if (mask.pos[r] > mask.last_pos) mask.last_pos = mask.pos[r];
  }
  return mask;
}

/// tanh by exp: 1 - 2 / (exp(2 x) + 1), absolute error below 2e-7.
inline F tanh_of(F x) {
  return sub(set1(1.0f), div(set1(2.0f), add(exp_of(add(x, x)), set1(1.0f))));
}

/// Scores of one query to weights, and its running maximum and sum on to include them.
inline void softmax_step(const AttendTile& tile, const AttendScratch& s, const BlockMask& mask, int32_t query) {
  constexpr int kVectors = static_cast<int>(kRowVectors);
  float* weights = s.weights + int64_t{query} * kMaxBlockRows;
  float* sum = s.sums + int64_t{query} * kMaxBlockRows;
  F scores[kVectors];
#pragma GCC unroll 2
  for (int v = 0; v < kVectors; ++v) {
    scores[v] = mul(load(weights + v * kLanes), set1(tile.scale));
    if (tile.softcap > 0.0f) scores[v] = mul(set1(tile.softcap), tanh_of(div(scores[v], set1(tile.softcap))));
    scores[v] = add(scores[v], load(mask.bias + v * kLanes));
    if (mask.is_needed) {
      const int32_t query_pos = tile.query_pos[query];
      const int64_t oldest = int64_t{query_pos} - tile.window;
      const int32_t after = tile.window == 0 || oldest < INT32_MIN ? INT32_MIN : static_cast<int32_t>(oldest);
      const int32_t until = query_pos == INT32_MAX ? INT32_MAX - 1 : query_pos;
      scores[v] = mask_by_pos(scores[v], mask.pos + v * kLanes, after, until);
    }
  }
  F largest = scores[0];
#pragma GCC unroll 2
  for (int v = 1; v < kVectors; ++v) largest = max(largest, scores[v]);
  const float old_max = s.maxima[query];
  const float block_max = max_lane(largest);
  const float new_max = block_max > old_max ? block_max : old_max;
  if (new_max == -__builtin_inff()) {  // nothing seen yet: -inf - -inf would be NaN
    s.factors[query] = 1.0f;
#pragma GCC unroll 2
    for (int v = 0; v < kVectors; ++v) store(weights + v * kLanes, zero());
    return;
  }
  s.maxima[query] = new_max;
  const float factor = old_max == new_max ? 1.0f : first_lane(exp_of(set1(old_max - new_max)));
  s.factors[query] = factor;
#pragma GCC unroll 2
  for (int v = 0; v < kVectors; ++v) {
    const F weight = exp_of(sub(scores[v], set1(new_max)));
    store(weights + v * kLanes, weight);
    store(sum + v * kLanes, fma(set1(factor), load(sum + v * kLanes), weight));
  }
}

/// The queries of [begin, end) that may see a row of the block: those outside at both ends are cut off.
struct QueryRange {
  int32_t begin, end;
};
inline QueryRange seeing_queries(const AttendTile& tile, const KvBlockView& block, BlockMask& mask) {
  const auto sees_none = [&](int32_t q) {
    return tile.query_pos[q] < mask.first_pos ||
           (tile.window != 0 && int64_t{tile.query_pos[q]} - mask.last_pos >= tile.window);
  };
  QueryRange range{block.query_begin, block.query_end};
  while (range.begin < range.end && sees_none(range.begin)) ++range.begin;
  while (range.begin < range.end && sees_none(range.end - 1)) --range.end;
  for (int32_t q = range.begin; q < range.end && !mask.is_needed; ++q)
    mask.is_needed = tile.query_pos[q] < mask.last_pos ||
                     (tile.window != 0 && int64_t{tile.query_pos[q]} - mask.first_pos >= tile.window);
  return range;
}

inline void attend_block(const AttendTile& tile, const AttendScratch& s, const KvBlockView& block,
                         const KvBlockView* next) {
  BlockMask mask = block_mask(block);
  const QueryRange range = seeing_queries(tile, block, mask);
  if (range.begin == range.end) return;
  turn_keys(decode_rows(tile.key_type, block.keys, next != nullptr ? next->keys : nullptr, block.n_rows,
                        tile.key_width, s.key_padded, s.key_rows),
            s);
  for (int32_t q = range.begin; q < range.end; q += kScoreQueries)
    score_tile_of<kScoreQueries>(smaller(kScoreQueries, range.end - q), tile.queries + q * tile.query_stride,
                                 tile.query_stride, tile.key_width, s.turned_keys,
                                 s.weights + int64_t{q} * kMaxBlockRows);
  for (int32_t q = range.begin; q < range.end; ++q) softmax_step(tile, s, mask, q);
  const FloatRows values = decode_rows(tile.value_type, block.values, next != nullptr ? next->values : nullptr,
                                       block.n_rows, tile.value_width, s.value_padded, s.values);
  int32_t q = range.begin;
  for (; q + kMixQueries <= range.end; q += kMixQueries)
    mix_rows<kMixQueries>(s.weights + int64_t{q} * kMaxBlockRows, s.factors + q, values, s.value_padded,
                          block.n_rows, s.outs + q * s.value_padded);
  for (; q < range.end; ++q)
    mix_rows<1>(s.weights + int64_t{q} * kMaxBlockRows, s.factors + q, values, s.value_padded, block.n_rows,
                s.outs + q * s.value_padded);
}

void attend(const AttendTile& tile) {
  const AttendScratch s = attend_scratch(tile);
  fill(s.key_rows, 16 * s.key_padded, 0.0f);  // rows and columns of padding stay zero
  fill(s.values, 16 * s.value_padded, 0.0f);
  fill(s.outs, tile.n_queries * s.value_padded, 0.0f);
  fill(s.sums, int64_t{tile.n_queries} * kMaxBlockRows, 0.0f);
  fill(s.maxima, tile.n_queries, -__builtin_inff());
  const KvBlockView* blocks = tile.blocks.data();
  const int64_t n_blocks = static_cast<int64_t>(tile.blocks.size());
  for (int64_t b = 0; b < n_blocks; ++b)
    attend_block(tile, s, blocks[b], b + 1 < n_blocks ? blocks + b + 1 : nullptr);
  for (int32_t q = 0; q < tile.n_queries; ++q) {
    F lanes = load(s.sums + int64_t{q} * kMaxBlockRows);
    for (int64_t v = 1; v < kRowVectors; ++v)
      lanes = add(lanes, load(s.sums + int64_t{q} * kMaxBlockRows + v * kLanes));
    const float sum = sum_lanes(lanes);
    const bool sees_any = s.maxima[q] != -__builtin_inff();
    const F inverse = set1(sees_any ? 1.0f / sum : 0.0f);
    const float* from = s.outs + q * s.value_padded;
    float* to = tile.out + q * tile.out_stride;
    over_lanes(
        tile.value_width, [&](int64_t i) { store(to + i, mul(load(from + i), inverse)); },
        [&](int64_t i, int64_t rest) { store_n(to + i, mul(load_n(from + i, rest), inverse), rest); });
    if (tile.lse != nullptr) tile.lse[q] = sees_any ? s.maxima[q] + __builtin_logf(sum) : -__builtin_inff();
  }
}
