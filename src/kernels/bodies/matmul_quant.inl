// SPDX-License-Identifier: MIT
// Products with quantised weights. A panel of kPanelRows rows by kQuantChunk codes is unpacked once and laid out
// so that lanes are rows; then tiles of columns multiply it. A sum is exact (integers) within a group of the
// format and adds the groups in order of k, so one column and many give the same bits, and no lane sums are
// needed. Included inside a target region and namespace, after quant_formats.inl.

constexpr int64_t kQuantChunk = 512;  // with 32 rows: 16 KiB of codes, which stay in the first cache
constexpr int64_t kMostGroups = kQuantChunk / 16;
constexpr int64_t kMostPanels =
    4;  // unpacked before many columns pass, so that these are fetched from memory less often
constexpr int64_t kMostChunkBytes =
    kQuantChunk / 32 * static_cast<int64_t>(sizeof(BlockQ8_0));  // the largest of the formats

/// One unpacked stretch of weights.
struct QuantPanel {
  uint8_t* codes;  // [kQuantChunk / 4, kPanelRows, 4]
  float* scales;   // [groups, kPanelRows]
  float* mins;     // [groups, kPanelRows]
};
constexpr int64_t kPanelCodes = kPanelRows * kQuantChunk;
constexpr int64_t kPanelBytes = kPanelCodes + 2 * kMostGroups * kPanelRows * static_cast<int64_t>(sizeof(float));
constexpr int64_t kQuantScratch = kMostPanels * kPanelBytes + kPanelRows * kMostChunkBytes;

inline QuantPanel quant_panel(std::byte* memory, int64_t index) {
  uint8_t* codes = reinterpret_cast<uint8_t*>(memory + index * kPanelBytes);
  float* scales = reinterpret_cast<float*>(codes + kPanelCodes);
  return {codes, scales, scales + kMostGroups * kPanelRows};
}

/// Every cache line of n bytes.
inline void prefetch_bytes(const std::byte* p, int64_t n) {
  const char* line = reinterpret_cast<const char*>(reinterpret_cast<uintptr_t>(p) & ~uintptr_t{63});
  for (const char* end = reinterpret_cast<const char*>(p) + n; line < end; line += 64)
    _mm_prefetch(line, _MM_HINT_T0);
}

/// Codes k to k + n of the rows from `row` on. `spare` holds copies when fewer than kPanelRows rows are left.
template <typename Codes>
void unpack_panel(const MatmulArgs& args, int64_t row, int64_t k, int64_t n, const QuantPanel& panel,
                  std::byte* spare) {
  constexpr int64_t kBlockBytes = sizeof(typename Codes::Block);
  constexpr int64_t kGroups = Codes::kElements / Codes::kGroup;
  const int64_t n_blocks = n / Codes::kElements;
  const int64_t n_bytes = n_blocks * kBlockBytes;
  const int64_t first_byte = k / Codes::kElements * kBlockBytes;
  BlockRows rows{args.weights + row * args.weight_row_bytes + first_byte, args.weight_row_bytes};
  const int64_t n_rows = smaller(kPanelRows, args.row_end - row);
  if (n_rows < kPanelRows) {  // the lanes of missing rows repeat the last one; they are not stored
    for (int64_t r = 0; r < kPanelRows; ++r)
      __builtin_memcpy(spare + r * n_bytes, rows.first + smaller(r, n_rows - 1) * rows.stride,
                       static_cast<size_t>(n_bytes));
    rows = {spare, n_bytes};
  }
  // What the next call reads (the same rows further on, or the next rows from the start) is asked for row by row
  // and spread over the work: many streams at once defeat the hardware's own prefetching.
  const int64_t ahead = k + n < args.n_inner ? n_bytes : kPanelRows * args.weight_row_bytes - first_byte;
  const std::byte* next = args.weights + row * args.weight_row_bytes + first_byte + ahead;
  const int64_t n_steps = kQuantPanels * n_blocks;
  int64_t n_asked = 0;
  for (int64_t part = 0; part < kQuantPanels; ++part) {
    const int64_t lane = part * kLanes;
    for (int64_t i = 0; i < n_blocks; ++i) {
      for (; n_asked * n_steps < (part * n_blocks + i + 1) * kPanelRows; ++n_asked)
        prefetch_bytes(next + n_asked * args.weight_row_bytes, n_bytes);
      Codes::unpack(
          {rows.first + lane * rows.stride + i * kBlockBytes, rows.stride},
          {panel.codes + (i * Codes::kElements * kPanelRows + lane * 4),
           panel.scales + i * kGroups * kPanelRows + lane, panel.mins + i * kGroups * kPanelRows + lane});
    }
  }
}

template <typename Codes>
inline I dot_codes(I acc, I codes, I x) {
  if constexpr (Codes::kWide)
    return dot4_wide(acc, codes, x);
  else
    return dot4(acc, codes, x);
}

/// out[c][lane] (+)= the panel's part of the sums of kColumns columns; `first_group` is where the panel lies in
/// the rows of x.
template <typename Codes, int kColumns>
void quant_tile(const QuantPanel& panel, int64_t first_group, int64_t n_groups, const Q8Row* columns,
                bool is_first, float* out, int64_t out_stride, int64_t n_rows) {
  constexpr int kGroup = Codes::kGroup;
  constexpr int kPanels = kQuantPanels;
  F sums[kColumns][kPanels];
#pragma GCC unroll 8
  for (int c = 0; c < kColumns; ++c)
#pragma GCC unroll 8
    for (int p = 0; p < kPanels; ++p) {
      const int64_t n = n_rows - p * kLanes;
      const float* from = out + c * out_stride + p * kLanes;
      sums[c][p] = is_first || n <= 0 ? zero() : n >= kLanes ? load(from) : load_n(from, n);
    }
  const int8_t* x[kColumns];
#pragma GCC unroll 8
  for (int c = 0; c < kColumns; ++c) x[c] = columns[c].q + first_group * kGroup;
  const uint8_t* codes = panel.codes;
  for (int64_t g = 0; g < n_groups; ++g) {
    const int64_t x_group = first_group + g;
    I dots[kColumns][kPanels];
#pragma GCC unroll 8
    for (int c = 0; c < kColumns; ++c) {
      I start = int_set1(0);
      if constexpr (Codes::kOffsetBits != kNoOffset)
        start = shift_left<Codes::kOffsetBits>(
            int_set1(kGroup == 16 ? columns[c].negative_sum_16[x_group] : columns[c].negative_sum[x_group]));
#pragma GCC unroll 8
      for (int p = 0; p < kPanels; ++p) dots[c][p] = start;
    }
#pragma GCC unroll 8
    for (int i = 0; i < kGroup / 4; ++i, codes += kPanelRows * 4) {
      I w[kPanels];
#pragma GCC unroll 8
      for (int p = 0; p < kPanels; ++p) w[p] = int_load(codes + p * kLanes * 4);
#pragma GCC unroll 8
      for (int c = 0; c < kColumns; ++c) {
        int32_t four;
        __builtin_memcpy(&four, x[c] + g * kGroup + 4 * i, 4);
        const I broadcast = int_set1(four);
#pragma GCC unroll 8
        for (int p = 0; p < kPanels; ++p) dots[c][p] = dot_codes<Codes>(dots[c][p], w[p], broadcast);
      }
    }
#pragma GCC unroll 8
    for (int p = 0; p < kPanels; ++p) {
      const F w_scale = load(panel.scales + g * kPanelRows + p * kLanes);
#pragma GCC unroll 8
      for (int c = 0; c < kColumns; ++c) {
        const F scale = mul(w_scale, set1(columns[c].scale[x_group * kGroup / kQ8Group]));
        sums[c][p] = fma(to_float(dots[c][p]), scale, sums[c][p]);
      }
      if constexpr (Codes::kHasMin) {
        const F min = load(panel.mins + g * kPanelRows + p * kLanes);
#pragma GCC unroll 8
        for (int c = 0; c < kColumns; ++c) {
          const float x_sum = kGroup == 16 ? columns[c].scaled_sum_16[x_group] : columns[c].scaled_sum[x_group];
          sums[c][p] = fma(min, set1(x_sum), sums[c][p]);
        }
      }
    }
  }
#pragma GCC unroll 8
  for (int c = 0; c < kColumns; ++c)
#pragma GCC unroll 8
    for (int p = 0; p < kPanels; ++p) {
      const int64_t n = n_rows - p * kLanes;
      float* to = out + c * out_stride + p * kLanes;
      if (n >= kLanes)
        store(to, sums[c][p]);
      else if (n > 0)
        store_n(to, sums[c][p], n);
    }
}

/// quant_tile for a number of columns known at run time, up to kColumns.
template <typename Codes, int kColumns>
void quant_tile_of(int64_t n_columns, const QuantPanel& panel, int64_t first_group, int64_t n_groups,
                   const Q8Row* columns, bool is_first, float* out, int64_t out_stride, int64_t n_rows) {
  if (n_columns == kColumns) {
    quant_tile<Codes, kColumns>(panel, first_group, n_groups, columns, is_first, out, out_stride, n_rows);
  } else if constexpr (kColumns > 1) {
    quant_tile_of<Codes, kColumns - 1>(n_columns, panel, first_group, n_groups, columns, is_first, out, out_stride,
                                       n_rows);
  }
}

/// All columns times the panels of rows [row, row_end), for codes k to k + n.
template <typename Codes>
void multiply_panels(const MatmulArgs& args, int64_t row, int64_t row_end, int64_t k, int64_t n,
                     std::byte* scratch) {
  for (int64_t c = 0; c < args.n_cols; c += kQuantColumns) {
    const int64_t n_columns = smaller(kQuantColumns, args.n_cols - c);
    Q8Row columns[kQuantColumns];
    for (int64_t i = 0; i < n_columns; ++i)
      columns[i] = Q8Row::at(args.activations + (c + i) * args.activation_row_bytes, args.n_inner);
    for (int64_t r = row; r < row_end; r += kPanelRows)
      quant_tile_of<Codes, kQuantColumns>(
          n_columns, quant_panel(scratch, (r - row) / kPanelRows), k / Codes::kGroup, n / Codes::kGroup, columns,
          k == 0, args.out + c * args.out_stride + r, args.out_stride, smaller(kPanelRows, row_end - r));
  }
}

template <typename Codes>
void matmul_quant(const MatmulArgs& args) {
  std::byte* scratch = thread_scratch(kQuantScratch);
  std::byte* spare = scratch + kMostPanels * kPanelBytes;
  const bool is_memory_bound = args.n_cols <= kQuantColumns;
  const int64_t block = kPanelRows * (is_memory_bound ? 1 : kMostPanels);
  // Prefetching goes a chunk ahead; of the largest blocks one at a time is the better distance (Q6_K: 23 instead
  // of 17 GB/s).
  const int64_t chunk = is_memory_bound && sizeof(typename Codes::Block) > 128 ? 256 : kQuantChunk;
  for (int64_t row = args.row_begin; row < args.row_end; row += block) {
    const int64_t row_end = smaller(row + block, args.row_end);
    for (int64_t k = 0; k == 0 || k < args.n_inner; k += chunk) {
      const int64_t n = smaller(chunk, args.n_inner - k);
      for (int64_t r = row; r < row_end; r += kPanelRows)
        unpack_panel<Codes>(args, r, k, n, quant_panel(scratch, (r - row) / kPanelRows), spare);
      multiply_panels<Codes>(args, row, row_end, k, n, scratch);
    }
  }
}
