// SPDX-License-Identifier: MIT
// Attention in steps of up to kStepBlocks blocks. The keys of a step are decoded and turned so that lanes are
// rows, and every query's scores of the whole step are written to one row of 64 weights; then every query takes
// one online-softmax step over that row; then the values of the step are mixed into the outputs. What a query does
// not see has the score -inf, so the weight 0 and, alone, the factor 1: both change nothing, so the order of a
// query's sums depends on its own list of blocks only. (The sign of a sum that is zero may change; the end drops
// it.) Included inside a target region and namespace.

constexpr int64_t kRowVectors = kMaxBlockRows / kLanes;
constexpr int64_t kStepRows = kStepBlocks * kMaxBlockRows;
// Fewer queries than this (decode) mix block by block from a buffer that stays in the first-level cache: there is
// no reuse that would pay for going over a step's values in columns.
constexpr int32_t kWideMix = 16;
// Fewer queries than this score block by block: the turned keys of two blocks would push what is fetched ahead out
// of the first-level cache (one row over q8_0 rows beyond the caches: 14.1 GFLOP/s with pairs, 14.9 without).
constexpr int32_t kPairQueries = 5;
// How many parts (keys or values of a block) ahead rows are fetched. More is slower, for the same reason: 15.5
// GFLOP/s with 2, 14.9 with 4; and so are keys and values decoded in turns (13.1), whose values fill 32 KB. AVX2: 3 are
// level, 4 and more slower; so is fetching a part bit by bit while values are mixed (four f16 queries 1.17 instead of
// 0.91 us a block).
constexpr int64_t kPartsAhead = 2;

/// The queries of [begin, end).
struct QueryRange {
  int32_t begin, end;
};

/// The parts of AttendTile::scratch. Widths are padded to 16 floats, so that vectors need no tails.
struct AttendScratch {
  int64_t key_padded, value_padded;
  float* key_rows;     // [16, key_padded] decoded
  float* turned_keys;  // [key_padded, 16 · kScoreBlocks]
  float* values;       // [kStepRows, value_padded]
  float* outs;         // [n_queries, value_padded]
  float* weights;      // [n_queries, kStepRows] scores, then exp(score - maximum)
  float* sums;         // [n_queries, 16] lanes of the sum of weights
  float* maxima;       // [n_queries]
  float* factors;      // [n_queries] what the step multiplies earlier sums by
  QueryRange* ranges;  // [kStepBlocks · n_queries] of the step's views: who sees any of its rows
  float* coded_queries;  // [n_queries, CodedQuery::n_floats(key_width)] for keys that are not decoded
  float* key_scales;     // [key_padded / 32, 16] of keys that are turned without them
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
  s.turned_keys = take(16 * kScoreBlocks * s.key_padded);
  s.values = take(kStepRows * s.value_padded);
  s.outs = take(n_queries * s.value_padded);
  s.weights = take(n_queries * kStepRows);
  s.sums = take(n_queries * 16);
  s.maxima = take(n_queries);
  s.factors = take(n_queries);
  s.ranges = reinterpret_cast<QueryRange*>(take(2 * kStepBlocks * n_queries));
  s.coded_queries = take(n_queries * CodedQuery::n_floats(s.key_padded));
  s.key_scales = take(16 * s.key_padded / kKeyGroup);
  return s;
}

/// The views of one step, and how many of the list follow them.
struct Step {
  const KvBlockView* views;
  int64_t n_views, n_after;
  bool is_single;  // only slot 0 is taken (always so in a layer with a window): the other slots are left alone
};

inline int32_t slot_of(const KvBlockView& view) {
  return view.place % kStepBlocks;
}

/// The step that begins at `views`.
inline Step next_step(const AttendTile& tile, const KvBlockView* views) {
  Step step{views, 1, 0, true};
  const int64_t n = tile.blocks.data() + tile.blocks.size() - views;
  while (step.n_views < n && views[step.n_views].place / kStepBlocks == views[0].place / kStepBlocks)
    ++step.n_views;
  SH_CHECK(step.n_views <= kStepBlocks * tile.n_queries, "views of one place must have queries of their own");
  step.n_after = n - step.n_views;
  for (int64_t i = 0; i < step.n_views; ++i) step.is_single = step.is_single && slot_of(views[i]) == 0;
  return step;
}

/// What is read kPartsAhead parts after part `part` of the step, whose parts are the keys of all views, then their
/// values; the keys of the next step follow. Null at the end of the list.
inline const std::byte* part_ahead(const Step& step, int64_t part) {
  part += kPartsAhead;
  if (part < step.n_views) return step.views[part].keys;
  part -= step.n_views;
  if (part < step.n_views) return step.views[part].values;
  return part < step.n_views + step.n_after ? step.views[part].keys : nullptr;
}

/// Rows as floats: decoded to `buffer`, or where they lie if they are floats that need no padding.
struct FloatRows {
  const float* first;
  int64_t stride;
};
/// `ahead` is a part that will be read soon, or null: as many bytes of it are fetched while these are decoded.
inline void decode_rows(DType dtype, const std::byte* rows, const std::byte* ahead, int64_t n_rows, int64_t width,
                        int64_t padded, float* buffer) {
  const int64_t bytes = row_bytes(dtype, width);
  for (int64_t r = 0; r < n_rows; ++r) {
    if (ahead != nullptr) prefetch_bytes(ahead + r * bytes, bytes);
    decode_row(dtype, rows + r * bytes, width, buffer + r * padded);
  }
}
inline FloatRows float_rows(DType dtype, const std::byte* rows, const std::byte* ahead, int64_t n_rows,
                            int64_t width, int64_t padded, float* buffer) {
  if (dtype == DType::f32 && width == padded && n_rows == kMaxBlockRows) {
    if (ahead != nullptr) prefetch_bytes(ahead, n_rows * row_bytes(dtype, width));
    return {reinterpret_cast<const float*>(rows), width};
  }
  decode_rows(dtype, rows, ahead, n_rows, width, padded, buffer);
  return {buffer, padded};
}

/// Whether rows of halves can be taken in whole vectors.
inline bool are_whole_halves(DType dtype, int64_t width, int64_t n_rows) {
  return dtype == DType::f16 && width % (2 * kMaxBlockRows) == 0 && n_rows == kMaxBlockRows;
}

inline void turn_halves(const std::byte* rows, const std::byte* ahead, int64_t width, float* turned,
                        int64_t columns) {
  const int64_t bytes = 2 * width, n_parts = kRowVectors * width / (2 * kLanes);
  const int64_t part_bytes = kMaxBlockRows * bytes / n_parts;
  for (int64_t r = 0; r < kMaxBlockRows; r += kLanes)
    for (int64_t i = 0; i < width; i += 2 * kLanes) {
      if (ahead != nullptr) {
        prefetch_bytes(ahead, part_bytes);
        ahead += part_bytes;
      }
      turn_half_rows(rows + r * bytes + 2 * i, bytes, turned + i * columns + r, columns);
    }
}

/// The keys of a view to columns [column, column + 16) of the turned keys, which have `columns` of them.
inline void turn_keys(const AttendTile& tile, const AttendScratch& s, const Step& step, int64_t view,
                      int64_t column, int64_t columns) {
  const KvBlockView& block = step.views[view];
  if (are_whole_halves(tile.key_type, tile.key_width, block.n_rows)) {
    turn_halves(block.keys, part_ahead(step, view), tile.key_width, s.turned_keys + column, columns);
    return;
  }
  const FloatRows rows = float_rows(tile.key_type, block.keys, part_ahead(step, view), block.n_rows,
                                    tile.key_width, s.key_padded, s.key_rows);
  for (int64_t r = 0; r < kMaxBlockRows; r += kLanes)
    for (int64_t i = 0; i < s.key_padded; i += kLanes)
      transpose_words(reinterpret_cast<const std::byte*>(rows.first + r * rows.stride + i), rows.stride * 4,
                      reinterpret_cast<std::byte*>(s.turned_keys + i * columns + column + r), columns * 4);
}

/// Products of kQueries queries with kVectors vectors of rows, times scale. kScoreChains sums a product, by k
/// modulo kScoreChains, whatever kQueries and kVectors are.
template <int kQueries, int kVectors>
void score_tile(const float* queries, int64_t query_stride, int64_t key_width, const float* turned_keys,
                float scale, float* scores) {
  constexpr int64_t kColumns = kVectors * kLanes;
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
      for (int v = 0; v < kVectors; ++v) keys[v] = load(turned_keys + (k + chain) * kColumns + v * kLanes);
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
        sums[0][q][v] =
            fma(set1(queries[q * query_stride + k]), load(turned_keys + k * kColumns + v * kLanes), sums[0][q][v]);
#pragma GCC unroll 8
  for (int q = 0; q < kQueries; ++q)
#pragma GCC unroll 8
    for (int v = 0; v < kVectors; ++v) {
      F sum = sums[0][q][v];
#pragma GCC unroll 8
      for (int chain = 1; chain < kScoreChains; ++chain) sum = add(sum, sums[chain][q][v]);
      store(scores + q * kStepRows + v * kLanes, mul(sum, set1(scale)));
    }
}

/// Scores of the queries with kBlocks blocks whose keys are turned, from slot `slot` on.
template <int64_t kBlocks>
void score_blocks(const AttendTile& tile, const AttendScratch& s, const QueryRange& range, int32_t slot) {
  in_even_parts<kScoreQueries>(range.end - range.begin, [&](int64_t first, int64_t n) {
    const int64_t q = range.begin + first;
    with_count<kScoreQueries>(n, [&](auto count) {
      score_tile<decltype(count)::value, static_cast<int>(kBlocks * kRowVectors)>(
          tile.queries + q * tile.query_stride, tile.query_stride, tile.key_width, s.turned_keys, tile.scale,
          s.weights + q * kStepRows + slot * kMaxBlockRows);
    });
  });
}

template <typename Codes>
void score_coded_view(const AttendTile& tile, const AttendScratch& s, const Step& step, int64_t view) {
  const KvBlockView& block = step.views[view];
  const QueryRange range = s.ranges[view];
  const std::byte* rows = block.keys;
  if (block.n_rows < kMaxBlockRows) {
    rows = reinterpret_cast<const std::byte*>(s.key_rows);
    __builtin_memcpy(s.key_rows, block.keys,
                     static_cast<size_t>(block.n_rows * row_bytes(tile.key_type, tile.key_width)));
  }
  score_coded<Codes>(range.end - range.begin, s.coded_queries + range.begin * CodedQuery::n_floats(tile.key_width),
                     tile.key_width, {rows, part_ahead(step, view), tile.key_width / kKeyGroup}, s.turned_keys,
                     s.key_scales, tile.scale, s.weights + range.begin * kStepRows + slot_of(block) * kMaxBlockRows, kStepRows);
}

/// Rows from one of their columns on, and vectors of them. Those of halves and bytes are decoded as they are mixed.
inline FloatRows from_column(const FloatRows& rows, int64_t i) {
  return {rows.first + i, rows.stride};
}
inline F load_values(const FloatRows& rows, int64_t r, int64_t i) {
  return load(rows.first + r * rows.stride + i);
}
struct HalfRows {
  const uint16_t* first;
  int64_t stride;
  int64_t row_bytes() const { return 2 * stride; }
};
inline HalfRows from_column(const HalfRows& rows, int64_t i) {
  return {rows.first + i, rows.stride};
}
inline F load_values(const HalfRows& rows, int64_t r, int64_t i) {
  return load_half(rows.first + r * rows.stride + i);
}
/// Blocks of 32 elements.
template <typename Block>
struct BlocksOfRows {
  const Block* first;
  int64_t stride;  // in blocks
  int64_t skip;    // elements of the first block
  int64_t row_bytes() const { return stride * static_cast<int64_t>(sizeof(Block)); }
};
template <typename Block>
inline BlocksOfRows<Block> from_column(const BlocksOfRows<Block>& rows, int64_t i) {
  return {rows.first + i / 32, rows.stride, i % 32};
}
inline F load_codes(const BlockQ8_0& block, int64_t i) {
  return load_signed_bytes(block.qs + i);
}
inline F load_codes(const BlockQ4_0& block, int64_t i) {
  const I bytes = load_unsigned_bytes(block.qs + i % 16);
  return to_float(int_add(i < 16 ? int_and(bytes, int_set1(15)) : shift_right<4>(bytes), int_set1(-8)));
}
template <typename Block>
inline F load_values(const BlocksOfRows<Block>& rows, int64_t r, int64_t i) {
  const Block& block = rows.first[r * rows.stride + (rows.skip + i) / 32];
  return mul(load_codes(block, (rows.skip + i) % 32), set1(half_scale(block.d)));
}

/// outs = factor · outs + weights · values, for kQueries queries and kVectors vectors of the value.
template <int kQueries, int kVectors, typename Rows>
void mix_tile(const float* weights, const float* factors, const Rows& values, int64_t value_padded,
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
    for (int v = 0; v < kVectors; ++v) row[v] = load_values(values, r, v * kLanes);
#pragma GCC unroll 8
    for (int q = 0; q < kQueries; ++q) {
      const F weight = set1(weights[q * kStepRows + r]);
#pragma GCC unroll 8
      for (int v = 0; v < kVectors; ++v) sums[q][v] = fma(weight, row[v], sums[q][v]);
    }
  }
#pragma GCC unroll 8
  for (int q = 0; q < kQueries; ++q)
#pragma GCC unroll 8
    for (int v = 0; v < kVectors; ++v) store(outs + q * value_padded + v * kLanes, sums[q][v]);
}

/// kVectors vectors of the value, for all queries of the range, kQueries at a time: so many columns of the rows (a step's
/// are 64 rows) stay in the first-level cache from one group of queries to the next.
template <int kQueries, int kVectors, typename Rows>
void mix_columns(const AttendScratch& s, const QueryRange& range, const Rows& values, int64_t n_rows,
                 const float* weights, float* outs) {
  in_even_parts<kQueries>(range.end - range.begin, [&](int64_t first, int64_t n) {
    const int64_t q = range.begin + first;
    with_count<kQueries>(n, [&](auto count) {
      mix_tile<decltype(count)::value, kVectors>(weights + q * kStepRows, s.factors + q, values, s.value_padded, n_rows,
                                                 outs + q * s.value_padded);
    });
  });
}

/// n_rows rows of values, whose weights begin at slot `slot`, into the outputs of the queries.
template <typename Rows>
void mix(const AttendScratch& s, const QueryRange& range, const Rows& values, int64_t n_rows, int32_t slot) {
  const float* weights = s.weights + slot * kMaxBlockRows;
  with_count<kMixQueries>(smaller(kMixQueries, range.end - range.begin), [&](auto count) {
    constexpr int kQueries = decltype(count)::value, kVectors = kMixVectors[kQueries];
    int64_t i = 0;
    for (; i + kVectors * kLanes <= s.value_padded; i += kVectors * kLanes)
      mix_columns<kQueries, kVectors>(s, range, from_column(values, i), n_rows, weights, s.outs + i);
    if constexpr (kVectors > kRowVectors)  // widths are padded to kRowVectors vectors
      for (; i < s.value_padded; i += kMaxBlockRows)
        mix_columns<kQueries, kRowVectors>(s, range, from_column(values, i), n_rows, weights, s.outs + i);
  });
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

/// The queries that may see a row of the block: those outside at both ends are cut off.
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

/// What the scaled products of a block still lack: softcap, bias and mask. Most blocks of most models lack
/// nothing.
inline void finish_scores(const AttendTile& tile, const AttendScratch& s, const KvBlockView& block,
                          const BlockMask& mask, const QueryRange& range) {
  if (tile.softcap == 0.0f && block.bias == nullptr && !mask.is_needed) return;
  for (int32_t q = range.begin; q < range.end; ++q) {
    const int32_t query_pos = tile.query_pos[q];
    const int64_t oldest = int64_t{query_pos} - tile.window;
    const int32_t after = tile.window == 0 || oldest < INT32_MIN ? INT32_MIN : static_cast<int32_t>(oldest);
    const int32_t until = query_pos == INT32_MAX ? INT32_MAX - 1 : query_pos;
    float* scores = s.weights + q * kStepRows + slot_of(block) * kMaxBlockRows;
#pragma GCC unroll 2
    for (int64_t v = 0; v < kRowVectors; ++v) {
      F score = load(scores + v * kLanes);
      if (tile.softcap > 0.0f) score = mul(set1(tile.softcap), tanh_of(div(score, set1(tile.softcap))));
      score = add(score, load(mask.bias + v * kLanes));
      if (mask.is_needed) score = mask_by_pos(score, mask.pos + v * kLanes, after, until);
      store(scores + v * kLanes, score);
    }
  }
}

/// Scores of kBlocks views from `view` on, neighbouring slots that the same queries see.
template <int64_t kBlocks>
void score_views(const AttendTile& tile, const AttendScratch& s, const Step& step, int64_t view,
                 const BlockMask* masks) {
  const QueryRange range = s.ranges[view];
  for (int64_t b = 0; b < kBlocks; ++b)
    turn_keys(tile, s, step, view + b, b * kMaxBlockRows, kBlocks * kMaxBlockRows);
  score_blocks<kBlocks>(tile, s, range, slot_of(step.views[view]));
  for (int64_t b = 0; b < kBlocks; ++b) finish_scores(tile, s, step.views[view + b], masks[b], range);
}

/// Whether views `view` and `view + 1` are neighbouring slots that the same queries hold.
inline bool are_neighbours(const Step& step, int64_t view) {
  if (view + 1 >= step.n_views) return false;
  const KvBlockView &a = step.views[view], &b = step.views[view + 1];
  return b.place == a.place + 1 && a.query_begin == b.query_begin && a.query_end == b.query_end;
}

/// Scores of all views of the step to the weights, -inf where a query does not see a view. Returns the range of
/// queries that see any.
inline QueryRange score_step(const AttendTile& tile, const AttendScratch& s, const Step& step) {
  const int64_t n_rows = step.is_single ? kMaxBlockRows : kStepRows;
  for (int32_t q = 0; q < tile.n_queries; ++q)
    for (int64_t r = 0; r < n_rows; r += kLanes) store(s.weights + q * kStepRows + r, set1(-__builtin_inff()));
  const bool is_coded = with_coded_keys(tile.key_type, [](auto) {});
  QueryRange all{tile.n_queries, 0};
  for (int64_t i = 0; i < step.n_views; ++i) {
    BlockMask masks[kScoreBlocks] = {block_mask(step.views[i])};
    const QueryRange range = s.ranges[i] = seeing_queries(tile, step.views[i], masks[0]);
    if (range.begin == range.end) continue;
    if (range.begin < all.begin) all.begin = range.begin;
    if (range.end > all.end) all.end = range.end;
    if constexpr (kScoreBlocks == 2) {
      if (!is_coded && range.end - range.begin >= kPairQueries && are_neighbours(step, i)) {
        masks[1] = block_mask(step.views[i + 1]);
        const QueryRange other = s.ranges[i + 1] = seeing_queries(tile, step.views[i + 1], masks[1]);
        if (other.begin == range.begin && other.end == range.end) {
          score_views<2>(tile, s, step, i++, masks);
          continue;
        }
      }
    }
    if (is_coded) {
      with_coded_keys(tile.key_type, [&](auto codes) { score_coded_view<decltype(codes)>(tile, s, step, i); });
      finish_scores(tile, s, step.views[i], masks[0], range);
    } else {
      score_views<1>(tile, s, step, i, masks);
    }
  }
  return all;
}

/// Scores of one query over kRows rows to weights, and its running maximum and sum on to include them.
template <int64_t kRows>
void softmax_step(const AttendScratch& s, int32_t query) {
  float* weights = s.weights + query * kStepRows;
  float* sum = s.sums + int64_t{query} * kMaxBlockRows;
  F largest = load(weights);
#pragma GCC unroll 8
  for (int64_t r = kLanes; r < kRows; r += kLanes) largest = max(largest, load(weights + r));
  const float old_max = s.maxima[query];
  const float step_max = max_lane(largest);
  const float new_max = step_max > old_max ? step_max : old_max;
  if (new_max == -__builtin_inff()) {  // nothing seen yet: -inf - -inf would be NaN
    s.factors[query] = 1.0f;
    for (int64_t r = 0; r < kRows; r += kLanes) store(weights + r, zero());
    return;
  }
  s.maxima[query] = new_max;
  const float factor = old_max == new_max ? 1.0f : first_lane(exp_of(set1(old_max - new_max)));
  s.factors[query] = factor;
  F step_sum[kRowVectors];
#pragma GCC unroll 8
  for (int64_t r = 0; r < kRows; r += kLanes) {
    const F weight = exp_of(sub(load(weights + r), set1(new_max)));
    store(weights + r, weight);
    F& part = step_sum[r / kLanes % kRowVectors];
    part = r < kMaxBlockRows ? weight : add(part, weight);
  }
#pragma GCC unroll 2
  for (int64_t v = 0; v < kRowVectors; ++v)
    store(sum + v * kLanes, fma(set1(factor), load(sum + v * kLanes), step_sum[v]));
}

/// Whether the step is kStepBlocks full blocks that the same queries see.
inline bool is_whole(const AttendScratch& s, const Step& step) {
  if (step.n_views != kStepBlocks) return false;
  for (int64_t i = 0; i < step.n_views; ++i)
    if (step.views[i].n_rows != kMaxBlockRows || s.ranges[i].begin != s.ranges[0].begin ||
        s.ranges[i].end != s.ranges[0].end)
      return false;
  return true;
}

/// Values of the step into the outputs: in one go, so that outputs are read and written once a step, or view by
/// view with the same bits, the first view that a query sees applying its factor.
inline void mix_step(const AttendTile& tile, const AttendScratch& s, const Step& step) {
  if (is_whole(s, step) && s.ranges[0].end - s.ranges[0].begin >= kWideMix) {
    for (int64_t i = 0; i < kStepBlocks; ++i)
      decode_rows(tile.value_type, step.views[i].values, part_ahead(step, step.n_views + i), kMaxBlockRows,
                  tile.value_width, s.value_padded, s.values + i * kMaxBlockRows * s.value_padded);
    mix(s, s.ranges[0], FloatRows{s.values, s.value_padded}, kStepRows, 0);
    return;
  }
  for (int64_t i = 0; i < step.n_views; ++i) {
    const KvBlockView& block = step.views[i];
    const QueryRange range = s.ranges[i];
    if (range.begin == range.end) continue;
    const std::byte* ahead = part_ahead(step, step.n_views + i);
    // One tile of queries decodes each value once; more take it from a buffer.
    const bool is_one_tile = range.end - range.begin <= kMixQueries;
    const auto mix_as_they_are = [&](const auto& rows) __attribute__((always_inline)) {
      if (ahead != nullptr) prefetch_bytes(ahead, kMaxBlockRows * rows.row_bytes());
      mix(s, range, rows, block.n_rows, slot_of(block));
    };
    const auto blocks_of_rows = [&](auto kind) {
      using Block = decltype(kind);
      return BlocksOfRows<Block>{reinterpret_cast<const Block*>(block.values), tile.value_width / 32, 0};
    };
    if (is_one_tile && are_whole_halves(tile.value_type, tile.value_width, block.n_rows))
      mix_as_they_are(HalfRows{reinterpret_cast<const uint16_t*>(block.values), tile.value_width});
    else if (is_one_tile && tile.value_type == DType::q8_0)
      mix_as_they_are(blocks_of_rows(BlockQ8_0{}));
    else if (is_one_tile && tile.value_type == DType::q4_0)
      mix_as_they_are(blocks_of_rows(BlockQ4_0{}));
    else
      mix(s, range,
          float_rows(tile.value_type, block.values, ahead, block.n_rows, tile.value_width, s.value_padded, s.values),
          block.n_rows, slot_of(block));
    fill(s.factors + range.begin, range.end - range.begin, 1.0f);
  }
}

inline void attend_step(const AttendTile& tile, const AttendScratch& s, const Step& step) {
  const QueryRange range = score_step(tile, s, step);
  for (int32_t q = range.begin; q < range.end; ++q) {
    if (step.is_single)
      softmax_step<kMaxBlockRows>(s, q);
    else
      softmax_step<kStepRows>(s, q);
  }
  mix_step(tile, s, step);
}

void attend(const AttendTile& tile) {
  const AttendScratch s = attend_scratch(tile);
  fill(s.key_rows, 16 * s.key_padded, 0.0f);  // rows and columns of padding stay zero
  if (s.value_padded != tile.value_width) fill(s.values, kStepRows * s.value_padded, 0.0f);
  fill(s.outs, tile.n_queries * s.value_padded, 0.0f);
  fill(s.sums, int64_t{tile.n_queries} * kMaxBlockRows, 0.0f);
  fill(s.maxima, tile.n_queries, -__builtin_inff());
  with_coded_keys(tile.key_type, [&](auto codes) {
    const int64_t query_floats = CodedQuery::n_floats(tile.key_width);
    for (int32_t q = 0; q < tile.n_queries; ++q)
      code_query(tile.queries + q * tile.query_stride, tile.key_width, decltype(codes)::kOffsetBits,
                 CodedQuery::at(s.coded_queries + q * query_floats, tile.key_width));
  });
  const KvBlockView* end = tile.blocks.data() + tile.blocks.size();
  for (const KvBlockView* views = tile.blocks.data(); views != end;) {
    const Step step = next_step(tile, views);
    attend_step(tile, s, step);
    views += step.n_views;
  }
  for (int32_t q = 0; q < tile.n_queries; ++q) {
    F lanes = load(s.sums + int64_t{q} * kMaxBlockRows);
    for (int64_t v = 1; v < kRowVectors; ++v)
      lanes = add(lanes, load(s.sums + int64_t{q} * kMaxBlockRows + v * kLanes));
    const float sum = sum_lanes(lanes);
    const bool sees_any = s.maxima[q] != -__builtin_inff();
    const F inverse = set1(sees_any ? 1.0f / sum : 0.0f);
    const float* from = s.outs + q * s.value_padded;
    float* to = tile.out + q * tile.out_stride;
    // + 0 gives every zero the same sign: weights of 0 may have turned -0 to +0, as the company in the tile had
    // it.
    over_lanes(
        tile.value_width, [&](int64_t i) { store(to + i, fma(load(from + i), inverse, zero())); },
        [&](int64_t i, int64_t rest) { store_n(to + i, fma(load_n(from + i, rest), inverse, zero()), rest); });
    if (tile.lse != nullptr) tile.lse[q] = sees_any ? s.maxima[q] + __builtin_logf(sum) : -__builtin_inff();
  }
}
