// SPDX-License-Identifier: MIT
// Products with float weights. Lanes run along the inner dimension: no repacking, so that one column streams the
// weights from memory as they lie, and tiles of rows and columns reuse every load. A sum is formed in chunks of
// kFloatChunk: lane sums, lanes added (sum_lanes), chunks added in order. Included inside a target region and
// namespace.

struct WeightF32 {
  using Element = float;
  static F load_full(const float* p) { return load(p); }
  static F load_part(const float* p, int64_t n) { return load_n(p, n); }
};
struct WeightF16 {
  using Element = uint16_t;
  static F load_full(const uint16_t* p) { return load_half(p); }
  static F load_part(const uint16_t* p, int64_t n) { return load_half_n(p, n); }
};
struct WeightBf16 {
  using Element = uint16_t;
  static F load_full(const uint16_t* p) { return load_bf16(p); }
  static F load_part(const uint16_t* p, int64_t n) { return load_bf16_n(p, n); }
};

constexpr int64_t kFloatChunk = 1024;  // a chunk of kFloatColumns columns stays in the first cache
constexpr int64_t kFloatAhead =
    1024;  // bytes that one column, which waits for memory only, prefetches in every row
constexpr int64_t kFloatRowBlock = 32;  // rows whose chunk stays in the second cache while all columns pass

/// One vector along k of every row times one of every column; the last one of a row may be partial (n lanes).
template <typename Weight, int kRows, int kColumns, bool kIsPart>
inline __attribute__((always_inline)) void float_step(const typename Weight::Element* w, int64_t w_stride,
                                                      const float* x, int64_t x_stride, int64_t n,
                                                      F (&sums)[kColumns][kRows]) {
  F rows[kRows];
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r)
    rows[r] = kIsPart ? Weight::load_part(w + r * w_stride, n) : Weight::load_full(w + r * w_stride);
  if constexpr (kColumns == 1 && !kIsPart) {
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r)
      __builtin_prefetch(reinterpret_cast<const char*>(w + r * w_stride) + kFloatAhead);
  }
#pragma GCC unroll 8
  for (int c = 0; c < kColumns; ++c) {
    const F column = kIsPart ? load_n(x + c * x_stride, n) : load(x + c * x_stride);
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) sums[c][r] = fma(rows[r], column, sums[c][r]);
  }
}

/// out[c][r] (+)= the chunk's part of the sums of kRows rows and kColumns columns.
template <typename Weight, int kRows, int kColumns>
void float_tile(const typename Weight::Element* w, int64_t w_stride, const float* x, int64_t x_stride, int64_t n,
                bool is_first, float* out, int64_t out_stride) {
  F sums[kColumns][kRows];
#pragma GCC unroll 8
  for (int c = 0; c < kColumns; ++c)
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) sums[c][r] = zero();
  for (; n >= kLanes; n -= kLanes, w += kLanes, x += kLanes)
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

template <typename Weight>
void matmul_float(const MatmulArgs& args) {
  static_assert(kFloatRows == 4, "float_tile stores four rows at once");
  using Element = typename Weight::Element;
  const int64_t w_stride = args.weight_row_bytes / static_cast<int64_t>(sizeof(Element));
  const int64_t x_stride = args.activation_row_bytes / static_cast<int64_t>(sizeof(float));
  const Element* weights = reinterpret_cast<const Element*>(args.weights);
  const float* activations = reinterpret_cast<const float*>(args.activations);
  // With few columns nothing is reused: rows are read from end to end, four at a time.
  const int64_t row_block = args.n_cols <= kFloatColumns ? kFloatRows : kFloatRowBlock;
  for (int64_t row = args.row_begin; row < args.row_end; row += row_block) {
    const int64_t row_end = row + row_block < args.row_end ? row + row_block : args.row_end;
    for (int64_t k = 0; k == 0 || k < args.n_inner; k += kFloatChunk) {
      const int64_t n = args.n_inner - k < kFloatChunk ? args.n_inner - k : kFloatChunk;
      for (int64_t c = 0; c < args.n_cols; c += kFloatColumns) {
        const int64_t n_columns = args.n_cols - c < kFloatColumns ? args.n_cols - c : kFloatColumns;
        const float* x = activations + c * x_stride + k;
        with_count<kFloatColumns>(n_columns, [&](auto count) {
          constexpr int kColumns = decltype(count)::value;
          int64_t r = row;
          for (; r + kFloatRows <= row_end; r += kFloatRows)
            float_tile<Weight, kFloatRows, kColumns>(weights + r * w_stride + k, w_stride, x, x_stride, n, k == 0,
                                                     args.out + c * args.out_stride + r, args.out_stride);
          for (; r < row_end; ++r)
            float_tile<Weight, 1, kColumns>(weights + r * w_stride + k, w_stride, x, x_stride, n, k == 0,
                                            args.out + c * args.out_stride + r, args.out_stride);
        });
      }
    }
  }
}
