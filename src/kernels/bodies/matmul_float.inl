// SPDX-License-Identifier: MIT
// Products with float weights. Lanes run along the inner dimension: no repacking, so that one column streams the
// weights from memory as they lie, and tiles of rows and columns reuse every load. A sum is formed in chunks of
// kFloatChunk: lane sums, lanes added (sum_lanes), chunks added in order. Included inside a target region and
// namespace.

struct WeightF32 {
  using Element = float;
  static constexpr bool kIsLaidSideBySide = kLaysSideBySide;
  static F load_full(const float* p) { return load(p); }
  static F load_part(const float* p, int64_t n) { return load_n(p, n); }
};
struct WeightF16 {
  using Element = uint16_t;
  static constexpr bool kIsLaidSideBySide = false;
  static F load_full(const uint16_t* p) { return load_half(p); }
  static F load_part(const uint16_t* p, int64_t n) { return load_half_n(p, n); }
};
struct WeightBf16 {
  using Element = uint16_t;
  static constexpr bool kIsLaidSideBySide = kLaysSideBySide;
  static F load_full(const uint16_t* p) { return load_bf16(p); }
  static F load_part(const uint16_t* p, int64_t n) { return load_bf16_n(p, n); }
};

constexpr int64_t kFloatChunk = 1024;  // a chunk of kFloatColumns columns stays in the first cache
// Rows whose chunk stays in the second cache while all columns pass, which come from the third. One thread, 512 columns,
// AVX2: 64 rows 1.08 to 1.13 times as fast as 32 (f16; a whole prompt 1.03), 128 1.03 times again, but bf16 0.9.
constexpr int64_t kFloatRowBlock = 64;

/// Fetches part `part` of `n_parts` of n floats of each column into the second cache. The columns of the next tile come
/// from the third while this one is multiplied: with 8192 floats a row 1.06 to 1.1 times as fast, with 1024 as fast (f16,
/// 512 columns, AVX2); fetched into the first cache no better.
inline void prefetch_columns(const float* x, int64_t x_stride, int64_t n_columns, int64_t n, int64_t part,
                             int64_t n_parts) {
  constexpr int64_t kLine = 16;  // floats
  const int64_t n_lines = (n + kLine - 1) / kLine, end = (part + 1) * n_lines / n_parts;
  for (int64_t line = part * n_lines / n_parts; line < end; ++line)
    for (int64_t c = 0; c < n_columns; ++c) __builtin_prefetch(x + c * x_stride + line * kLine, 0, 2);
}

/// One vector along k of every row times one of every column; the last one of a row may be partial (n lanes). Columns stay
/// in registers while rows come one by one, so that with 16 registers there is room for three columns: 1.05 (f16), 1.2
/// (bf16) and 1.6 times (f32) as fast as two columns beside four rows (AVX2, Zen 3).
template <typename Weight, int kRows, int kColumns, bool kIsPart>
inline __attribute__((always_inline)) void float_step(const typename Weight::Element* w, int64_t w_stride,
                                                      const float* x, int64_t x_stride, int64_t n,
                                                      F (&sums)[kColumns][kRows]) {
  F column[kColumns];
#pragma GCC unroll 8
  for (int c = 0; c < kColumns; ++c) column[c] = kIsPart ? load_n(x + c * x_stride, n) : load(x + c * x_stride);
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r) {
    const F row = kIsPart ? Weight::load_part(w + r * w_stride, n) : Weight::load_full(w + r * w_stride);
#pragma GCC unroll 8
    for (int c = 0; c < kColumns; ++c) sums[c][r] = fma(row, column[c], sums[c][r]);
  }
}

/// out[c][r] (+)= the chunk's part of the sums of kRows rows and kColumns columns.
/// kIsSideBySide: a vector of each row, then the next of each, and so of the columns, the last ones filled with zeros.
template <typename Weight, int kRows, int kColumns, bool kIsSideBySide = false>
void float_tile(const typename Weight::Element* w, int64_t w_stride, const float* x, int64_t x_stride, int64_t n,
                bool is_first, float* out, int64_t out_stride) {
  F sums[kColumns][kRows];
#pragma GCC unroll 8
  for (int c = 0; c < kColumns; ++c)
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) sums[c][r] = zero();
  constexpr int64_t kRowStep = kIsSideBySide ? kRows * kLanes : kLanes;
  constexpr int64_t kColumnStep = kIsSideBySide ? kColumns * kLanes : kLanes;
  for (; n >= kLanes; n -= kLanes, w += kRowStep, x += kColumnStep)
    float_step<Weight, kRows, kColumns, false>(w, w_stride, x, x_stride, n, sums);
  if (n > 0) float_step<Weight, kRows, kColumns, true>(w, w_stride, x, x_stride, n, sums);
#pragma GCC unroll 8
  for (int c = 0; c < kColumns; ++c) {
    float* to = out + c * out_stride;
    if constexpr (kRows == 4) {
      const Quad sum = sum_lanes4(sums[c][0], sums[c][1], sums[c][2], sums[c][3]);
      store_quad(to, is_first ? sum : add_quads(load_quad(to), sum));
    } else {
      for (int r = 0; r < kRows; ++r) to[r] = is_first ? sum_lanes(sums[c][r]) : to[r] + sum_lanes(sums[c][r]);
    }
  }
}

/// kRows rows, `apart` from one another, times one column. The bits of float_tile.
template <typename Weight, int kRows>
void multiply_column(const MatmulArgs& args, int64_t row, int64_t apart) {
  using Element = typename Weight::Element;
  const float* x = reinterpret_cast<const float*>(args.activations);
  const Element* w[kRows];
  for (int r = 0; r < kRows; ++r)
    w[r] = reinterpret_cast<const Element*>(args.weights + (row + r * apart) * args.weight_row_bytes);
  for (int64_t k = 0; k == 0 || k < args.n_inner; k += kFloatChunk) {
    const int64_t end = smaller(k + kFloatChunk, args.n_inner);
    F sums[kRows];
    for (int r = 0; r < kRows; ++r) sums[r] = zero();
    int64_t i = k;
    for (; i + 4 * kLanes <= end; i += 4 * kLanes)
#pragma GCC unroll 4
      for (int64_t j = 0; j < 4 * kLanes; j += kLanes)
#pragma GCC unroll 4
        for (int r = 0; r < kRows; ++r) sums[r] = fma(Weight::load_full(w[r] + i + j), load(x + i + j), sums[r]);
    for (; i + kLanes <= end; i += kLanes)
      for (int r = 0; r < kRows; ++r) sums[r] = fma(Weight::load_full(w[r] + i), load(x + i), sums[r]);
    if (i < end)
      for (int r = 0; r < kRows; ++r)
        sums[r] = fma(Weight::load_part(w[r] + i, end - i), load_n(x + i, end - i), sums[r]);
    for (int r = 0; r < kRows; ++r) {
      float& to = args.out[row + r * apart];
      to = k == 0 ? sum_lanes(sums[r]) : to + sum_lanes(sums[r]);
    }
  }
}

/// One column waits for memory only. Two rows at once hide the latency of their sums; they are read from the two halves
/// of the range, because what fetches ahead loses its way where several streams share a page: four neighbouring rows
/// of 2048 bytes came at 13 instead of 28 GB/s a thread (Zen 4).
template <typename Weight>
void multiply_column(const MatmulArgs& args) {
  const int64_t half = (args.row_end - args.row_begin) / 2;
  for (int64_t row = args.row_begin; row < args.row_begin + half; ++row) multiply_column<Weight, 2>(args, row, half);
  for (int64_t row = args.row_begin + 2 * half; row < args.row_end; ++row) multiply_column<Weight, 1>(args, row, 0);
}

/// Copies n elements of `count` rows side by side as floats.
template <typename Weight>
void place_side_by_side(const typename Weight::Element* from, int64_t stride, int64_t count, int64_t n, float* to) {
  for (int64_t j = 0; j < count; ++j) {
    int64_t i = 0;
    for (; i + kLanes <= n; i += kLanes) store(to + i * count + j * kLanes, Weight::load_full(from + j * stride + i));
    if (i < n) store(to + i * count + j * kLanes, Weight::load_part(from + j * stride + i, n - i));
  }
}

constexpr int64_t kFewestSideBySide = 40;  // columns: of 12 bf16 is 0.75 to 0.9 times as fast, of 36 0.97 to 1.07 times

/// Many columns: a block of rows is copied once for all of them, as floats, in the order in which the tiles read. The
/// same bits. One thread, 512 columns, AVX2: bf16, which takes two instructions to widen, 1.2 times as fast, f32 1.05 to
/// 1.1; f16, which one instruction reads and widens at half the bytes, 0.93. Needs: as many rows as fill tiles.
template <typename Weight>
void matmul_side_by_side(const MatmulArgs& args, int64_t row_begin, int64_t row_end) {
  using Element = typename Weight::Element;
  const int64_t w_stride = args.weight_row_bytes / static_cast<int64_t>(sizeof(Element));
  const int64_t x_stride = args.activation_row_bytes / static_cast<int64_t>(sizeof(float));
  const Element* weights = reinterpret_cast<const Element*>(args.weights);
  const float* activations = reinterpret_cast<const float*>(args.activations);
  float* rows = reinterpret_cast<float*>(
      thread_scratch((kFloatRowBlock + kFloatColumns) * kFloatChunk * static_cast<int64_t>(sizeof(float))));
  float* columns = rows + kFloatRowBlock * kFloatChunk;
  for (int64_t row = row_begin; row < row_end; row += kFloatRowBlock) {
    const int64_t block_end = smaller(row + kFloatRowBlock, row_end);
    for (int64_t k = 0; k == 0 || k < args.n_inner; k += kFloatChunk) {
      const int64_t n = smaller(kFloatChunk, args.n_inner - k), padded = (n + kLanes - 1) / kLanes * kLanes;
      for (int64_t r = row; r < block_end; r += kFloatRows)
        place_side_by_side<Weight>(weights + r * w_stride + k, w_stride, kFloatRows, n, rows + (r - row) * padded);
      in_even_parts<kFloatColumns>(args.n_cols, [&](int64_t c, int64_t n_columns) {
        place_side_by_side<WeightF32>(activations + c * x_stride + k, x_stride, n_columns, n, columns);
        with_count<kFloatColumns>(n_columns, [&](auto count) {
          constexpr int kColumns = decltype(count)::value;
          const int64_t n_next = smaller(kColumns, args.n_cols - c - kColumns);
          const int64_t n_parts = (block_end - row) / kFloatRows;
          for (int64_t r = row; r < block_end; r += kFloatRows) {
            prefetch_columns(activations + (c + kColumns) * x_stride + k, x_stride, n_next, n, (r - row) / kFloatRows,
                             n_parts);
            float_tile<WeightF32, kFloatRows, kColumns, true>(rows + (r - row) * padded, kLanes, columns, kLanes, padded,
                                                              k == 0, args.out + c * args.out_stride + r,
                                                              args.out_stride);
          }
        });
      });
    }
  }
}

/// Rows as they lie, in blocks that stay in the second cache.
template <typename Weight>
void matmul_in_place(const MatmulArgs& args, int64_t row_begin) {
  using Element = typename Weight::Element;
  const int64_t w_stride = args.weight_row_bytes / static_cast<int64_t>(sizeof(Element));
  const int64_t x_stride = args.activation_row_bytes / static_cast<int64_t>(sizeof(float));
  const Element* weights = reinterpret_cast<const Element*>(args.weights);
  const float* activations = reinterpret_cast<const float*>(args.activations);
  // With few columns nothing is reused: rows are read from end to end, four at a time.
  const int64_t row_block = args.n_cols <= kFloatColumns ? kFloatRows : kFloatRowBlock;
  for (int64_t row = row_begin; row < args.row_end; row += row_block) {
    const int64_t row_end = row + row_block < args.row_end ? row + row_block : args.row_end;
    for (int64_t k = 0; k == 0 || k < args.n_inner; k += kFloatChunk) {
      const int64_t n = args.n_inner - k < kFloatChunk ? args.n_inner - k : kFloatChunk;
      in_even_parts<kFloatColumns>(args.n_cols, [&](int64_t c, int64_t n_columns) {
        const float* x = activations + c * x_stride + k;
        with_count<kFloatColumns>(n_columns, [&](auto count) {
          constexpr int kColumns = decltype(count)::value;
          const int64_t n_next = smaller(kColumns, args.n_cols - c - kColumns), n_parts = (row_end - row) / kFloatRows;
          int64_t r = row;
          for (; r + kFloatRows <= row_end; r += kFloatRows) {
            prefetch_columns(x + kColumns * x_stride, x_stride, n_next, n, (r - row) / kFloatRows, n_parts);
            float_tile<Weight, kFloatRows, kColumns>(weights + r * w_stride + k, w_stride, x, x_stride, n, k == 0,
                                                     args.out + c * args.out_stride + r, args.out_stride);
          }
          for (; r < row_end; ++r)
            float_tile<Weight, 1, kColumns>(weights + r * w_stride + k, w_stride, x, x_stride, n, k == 0,
                                            args.out + c * args.out_stride + r, args.out_stride);
        });
      });
    }
  }
}

template <typename Weight>
void matmul_float(const MatmulArgs& args) {
  static_assert(kFloatRows == 4, "float_tile stores four rows at once");
  if (args.n_cols == 1) return multiply_column<Weight>(args);
  int64_t row = args.row_begin;
  if (Weight::kIsLaidSideBySide && args.n_cols >= kFewestSideBySide) {
    row += (args.row_end - args.row_begin) / kFloatRows * kFloatRows;
    matmul_side_by_side<Weight>(args, args.row_begin, row);
  }
  matmul_in_place<Weight>(args, row);
}
