// SPDX-License-Identifier: MIT
// Products of float matrices: both operands are packed into slivers, C is formed in register tiles of kGemmRows
// rows and kGemmVectors vectors. A sum is formed in chunks of kGemmChunk along k, each in order of k. Included
// inside a target region and namespace.
//
// Source:  Goto and van de Geijn, "Anatomy of high-performance matrix multiplication", ACM TOMS 34(3), 2008.

constexpr int64_t kGemmChunk = 256;
constexpr int64_t kGemmTileColumns = kGemmVectors * kLanes;
// 480 KiB of packed B: half of a second cache of 1 MiB; a multiple of both tile widths.
constexpr int64_t kGemmPanelColumns = 480;
static_assert(kGemmPanelColumns % kGemmTileColumns == 0);

/// Element (i, p) of op(A) is a[i * a_row + p * a_inner]; the same for the columns of op(B).
struct GemmStrides {
  int64_t a_row, a_inner, b_column, b_inner;
};

/// `count` lines of `width`-wide slivers: out[p * width + i] = in[i * line + p * inner], zero from n on.
inline void pack_sliver(const float* in, int64_t line, int64_t inner, int64_t n, int64_t width, int64_t n_inner,
                        float* out) {
  if (line == 1) {
    for (int64_t p = 0; p < n_inner; ++p, in += inner, out += width) {
      int64_t i = 0;
      for (; i + kLanes <= n; i += kLanes) store(out + i, load(in + i));
      for (; i < n; ++i) out[i] = in[i];
      for (; i < width; ++i) out[i] = 0.0f;
    }
    return;
  }
  int64_t i = 0;
  if (width % kLanes == 0) {  // the lines of B: transposed by whole squares
    for (; i + kLanes <= n; i += kLanes) {
      int64_t p = 0;
      for (; p + kLanes <= n_inner; p += kLanes)
        transpose_words(reinterpret_cast<const std::byte*>(in + i * line + p), line * 4,
                        reinterpret_cast<std::byte*>(out + p * width + i), width * 4);
      for (; p < n_inner; ++p)
        for (int64_t j = i; j < i + kLanes; ++j) out[p * width + j] = in[j * line + p];
    }
  }
  for (; i < width; ++i)
    for (int64_t p = 0; p < n_inner; ++p) out[p * width + i] = i < n ? in[i * line + p] : 0.0f;
}

/// C tile += alpha · (slivers of A and B). Only n_rows × n_columns of it exist.
inline void gemm_tile(const float* a, const float* b, int64_t n_inner, float alpha, bool is_first, float* c,
                      int64_t c_stride, int64_t n_rows, int64_t n_columns) {
  F sums[kGemmRows][kGemmVectors];
#pragma GCC unroll 8
  for (int i = 0; i < kGemmRows; ++i)
#pragma GCC unroll 8
    for (int v = 0; v < kGemmVectors; ++v) sums[i][v] = zero();
  for (int64_t p = 0; p < n_inner; ++p, a += kGemmRows, b += kGemmTileColumns) {
    F row[kGemmVectors];
#pragma GCC unroll 8
    for (int v = 0; v < kGemmVectors; ++v) row[v] = load(b + v * kLanes);
#pragma GCC unroll 8
    for (int i = 0; i < kGemmRows; ++i) {
      const F factor = set1(a[i]);
#pragma GCC unroll 8
      for (int v = 0; v < kGemmVectors; ++v) sums[i][v] = fma(factor, row[v], sums[i][v]);
    }
  }
  const F scale = set1(alpha);
#pragma GCC unroll 8
  for (int i = 0; i < kGemmRows; ++i) {
    if (i >= n_rows) break;
    float* to = c + i * c_stride;
#pragma GCC unroll 8
    for (int v = 0; v < kGemmVectors; ++v, to += kLanes) {
      const int64_t n = n_columns - v * kLanes;
      if (n >= kLanes)
        store(to, is_first ? mul(scale, sums[i][v]) : fma(scale, sums[i][v], load(to)));
      else if (n > 0)
        store_n(to, is_first ? mul(scale, sums[i][v]) : fma(scale, sums[i][v], load_n(to, n)), n);
    }
  }
}

void gemm(const GemmArgs& args, const GemmStrides& strides) {
  float* b_panel =
      reinterpret_cast<float*>(thread_scratch((kGemmPanelColumns + kGemmRows) * kGemmChunk * sizeof(float)));
  float* a_sliver = b_panel + kGemmPanelColumns * kGemmChunk;
  for (int64_t j = 0; j < args.n; j += kGemmPanelColumns) {
    const int64_t n_columns = smaller(kGemmPanelColumns, args.n - j);
    for (int64_t p = 0; p == 0 || p < args.k; p += kGemmChunk) {
      const int64_t n_inner = smaller(kGemmChunk, args.k - p);
      for (int64_t t = 0; t < n_columns; t += kGemmTileColumns)
        pack_sliver(args.b + (j + t) * strides.b_column + p * strides.b_inner, strides.b_column, strides.b_inner,
                    smaller(kGemmTileColumns, n_columns - t), kGemmTileColumns, n_inner, b_panel + t * n_inner);
      for (int64_t i = 0; i < args.m; i += kGemmRows) {
        const int64_t n_rows = smaller(kGemmRows, args.m - i);
        pack_sliver(args.a + i * strides.a_row + p * strides.a_inner, strides.a_row, strides.a_inner, n_rows,
                    kGemmRows, n_inner, a_sliver);
        for (int64_t t = 0; t < n_columns; t += kGemmTileColumns)
          gemm_tile(a_sliver, b_panel + t * n_inner, n_inner, args.alpha, p == 0 && !args.accumulate,
                    args.c + i * args.c_stride + j + t, args.c_stride, n_rows, n_columns - t);
      }
    }
  }
}

void gemm_nt(const GemmArgs& args) {
  gemm(args, {args.a_stride, 1, args.b_stride, 1});
}
void gemm_nn(const GemmArgs& args) {
  gemm(args, {args.a_stride, 1, 1, args.b_stride});
}
void gemm_tn(const GemmArgs& args) {
  gemm(args, {1, args.a_stride, 1, args.b_stride});
}
