// SPDX-License-Identifier: MIT
// Products with quantised weights, from a file's blocks or packed (tensor/packed.h). A panel of kPanelRows rows by
// kQuantChunk codes is unpacked once and laid out so that lanes are rows; then tiles of columns multiply it. One
// column of packed weights multiplies them as they come. A sum is exact (integers) within a group of the format
// and adds the groups in order of k, so one column and many give the same bits, and no lane sums are needed.
// Included inside a target region and namespace, after quant_formats.inl.

constexpr int64_t kQuantChunk = 512;  // with 32 rows: 16 KiB of codes, which stay in the first cache
constexpr int64_t kMostGroups = kQuantChunk / kQ8Group;
// Panels unpacked before many columns pass, so that these are fetched from memory less often.
constexpr int64_t kMostPanels = 4;
constexpr int64_t kMostChunkBytes =
    kQuantChunk / 32 * static_cast<int64_t>(sizeof(BlockQ8_0));  // the largest of the formats

constexpr int64_t kPackedAhead = 4096;  // bytes that few columns, which wait for memory only, prefetch
// Few columns unpack blocks of 4 to 7 KB from several places at once, which loses what fetches ahead of the loads. What
// helps differs. AVX-512, two vectors a panel: read from end to end first they come 1.3 to 1.5 times as fast (Zen 4, GB/s a
// thread: q4_K 14.8 and 21.6, q6_K 9.8 and 14.0; 38 to 40 from the second cache), fetched by instructions, all at once,
// spread or by touching a line a word, at 7 to 10 (q6_K). AVX2, four vectors: the next block fetched by a quarter a vector,
// 19.4 and 17 (Zen 3), with the copy 15.3 and 14.5, with the copy alone 10.9 and 10.3, as reading and multiplying then take
// turns; all four vectors unrolled are a quarter slower.
constexpr bool kLongBlocksAreCopied = kPackedRows / kLanes != 4;

/// One unpacked stretch of weights.
struct QuantPanel {
  uint8_t* codes;      // [kQuantChunk / 4, kPanelRows, 4]
  float* scales;       // [groups, kPanelRows]
  float* mins;         // [groups, kPanelRows], or what sums of flipped codes start with
  int32_t* subscales;  // of formats that have them: [groups, 2, kPanelRows]
  int32_t* pairs;      // [groups, kPanelRows]
};
template <bool kIsFlipped>
constexpr int64_t kPanelCodes = kPanelRows * kQuantChunk * (kIsFlipped ? 2 : 1);
template <bool kIsFlipped>
constexpr int64_t kPanelBytes = kPanelCodes<kIsFlipped> +
                                5 * kMostGroups * kPanelRows * static_cast<int64_t>(sizeof(float));
constexpr int64_t kPanelsBytes = kMostPanels * kPanelBytes<kFlipsWide>;
constexpr int64_t kQuantScratch = kPanelsBytes + kPanelRows * kMostChunkBytes;

template <bool kIsFlipped>
QuantPanel quant_panel(std::byte* memory, int64_t index) {
  uint8_t* codes = reinterpret_cast<uint8_t*>(memory + index * kPanelBytes<kIsFlipped>);
  float* scales = reinterpret_cast<float*>(codes + kPanelCodes<kIsFlipped>);
  float* mins = scales + kMostGroups * kPanelRows;
  int32_t* subscales = reinterpret_cast<int32_t*>(mins + kMostGroups * kPanelRows);
  return {codes, scales, mins, subscales, subscales + 2 * kMostGroups * kPanelRows};
}

/// Where block i of kLanes rows goes.
template <typename Codes>
inline auto panel_part(const QuantPanel& panel, int64_t i, int64_t lane) {
  const int64_t at = i * (Codes::kElements / kQ8Group) * kPanelRows + lane;
  uint8_t* codes = panel.codes + i * Codes::kElements * kPanelRows * (kIsFlipped<Codes> ? 2 : 1) + lane * 4;
  if constexpr (kIsFlipped<Codes>)
    return FlippedPanelPart{codes, panel.scales + at, panel.mins + at};
  else
    return PanelPart{codes, panel.scales + at, panel.mins + at, panel.subscales + 2 * at - lane, panel.pairs + at};
}

/// Every cache line of n bytes.
inline void prefetch_bytes(const std::byte* p, int64_t n) {
  const char* line = reinterpret_cast<const char*>(reinterpret_cast<uintptr_t>(p) & ~uintptr_t{63});
  for (const char* end = reinterpret_cast<const char*>(p) + n; line < end; line += 64)
    __builtin_prefetch(line);
}

/// Codes k to k + n of the rows from `row` on. `spare` holds copies when fewer than kPanelRows rows are left.
template <typename Codes>
void unpack_panel(const MatmulArgs& args, int64_t row, int64_t k, int64_t n, const QuantPanel& panel,
                  std::byte* spare) {
  constexpr int64_t kBlockBytes = sizeof(typename Codes::Block);
  const int64_t n_blocks = n / Codes::kElements;
  const int64_t n_bytes = n_blocks * kBlockBytes;
  const int64_t first_byte = k / Codes::kElements * kBlockBytes;
  using Rows = BlockRows<typename Codes::Block>;
  Rows rows{args.weights + row * args.weight_row_bytes + first_byte, args.weight_row_bytes};
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
      auto to = panel_part<Codes>(panel, i, lane);
      Codes::unpack(Rows{rows.first + lane * rows.stride + i * kBlockBytes, rows.stride}, to);
    }
  }
}

/// The same from a packed panel, whose missing rows are zeros.
template <typename Codes>
void unpack_packed_panel(const MatmulArgs& args, int64_t row, int64_t k, int64_t n, const QuantPanel& panel) {
  using Block = typename Codes::Block;
  constexpr int64_t kBlockBytes = kPackedRows * static_cast<int64_t>(sizeof(Block));
  const int64_t first_lane = row % kPackedRows;
  const std::byte* block =
      args.weights + (row - first_lane) * args.weight_row_bytes + k / Codes::kElements * kBlockBytes;
  const int64_t n_blocks = n / Codes::kElements;
  for (int64_t i = 0; i < n_blocks; ++i, block += kBlockBytes) {
    // The next chunk, a part for every block: without it 2 columns run at half the speed.
    prefetch_bytes(block + n_blocks * kBlockBytes, kBlockBytes);
    for (int64_t lane = 0; lane < kPanelRows; lane += kLanes) {
      auto to = panel_part<Codes>(panel, i, lane);
      Codes::unpack(PackedBlock<Block>{block, first_lane + lane}, to);
    }
  }
}

/// The same four bytes in every lane.
inline I four_bytes(const void* p) {
  int32_t bytes;
  __builtin_memcpy(&bytes, p, 4);
  return int_set1(bytes);
}

/// Σ code · x over the words of one group of kLanes rows, beginning with start(), in as few sums of 32 bits as the target
/// allows. Needs: the words of a stretch that is summed together come in order, and those of the first are complete first.
template <typename Codes, bool kIsWide = Codes::kWide>
struct GroupDot {
  static constexpr int kMost = Codes::kHasSubscales ? kGroupWords / 2 : kGroupWords;
  static constexpr int kTogether = words_together(Codes::kLargest) < kMost ? words_together(Codes::kLargest) : kMost;
  static_assert(kTogether > 0 && kMost % kTogether == 0);
  I sums[kGroupWords / kTogether];
  I dot;

  template <typename Start>
  SH_INLINE void put(int64_t word, I codes, I x, Start start) {
    const int64_t stretch = word % kGroupWords / kTogether, i = word % kTogether;
    I& sum = sums[stretch];
    sum = i == 0 ? begin_words<kIsWide>(stretch == 0 ? start() : dot, codes, x)
                 : add_word<kIsWide>(sum, codes, x);
    if (i == kTogether - 1) dot = end_words(stretch == 0 ? start() : dot, sum);
  }
  /// The same with subscale(0) in front of the words of the first half and subscale(1) of the second. Apart: with one
  /// function for both, formats without subscales are 0.93 times as fast.
  template <typename Start, typename Subscale>
  SH_INLINE void put_scaled(int64_t word, I codes, I x, Start start, Subscale subscale) {
    const int64_t stretch = word % kGroupWords / kTogether, i = word % kTogether;
    I& sum = sums[stretch];
    sum = i == 0 ? begin_words<kIsWide>(int_set1(0), codes, x) : add_word<kIsWide>(sum, codes, x);
    if (i == kTogether - 1)
      dot = end_words_scaled(stretch == 0 ? start() : dot, sum, subscale(stretch * kTogether / kMost));
  }
};

/// What the sum of a group of a column begins with: its part of the codes' offset.
template <typename Codes>
SH_INLINE I group_start(const Q8Row& column, int64_t group, I pair) {
  if constexpr (Codes::kOffsetBits == kNoOffset)
    return int_set1(0);
  else if constexpr (Codes::kHasSubscales)
    return pair_dots(pair, four_bytes(column.negative_half_sums[group]));
  else
    return shift_left<Codes::kOffsetBits>(int_set1(column.negative_sum[group]));
}

/// The sum of a column of kLanes rows and of one more group, scaled and with its minimum.
template <typename Codes, bool kIsWide>
SH_INLINE F add_group(F sum, const GroupDot<Codes, kIsWide>& dot, F scale, F min, I pair, const Q8Row& column,
                      int64_t group) {
  if constexpr (Codes::kHasSubscales && Codes::kHasMin) {
    const F minima = to_float(pair_dots(pair, four_bytes(column.negative_half_sums[group])));
    return fma(fma(minima, min, mul(to_float(dot.dot), scale)), set1(column.scale[group]), sum);
  } else {
    sum = fma(to_float(dot.dot), mul(scale, set1(column.scale[group])), sum);
    if constexpr (Codes::kHasMin) sum = fma(min, set1(column.scaled_sum[group]), sum);
    return sum;
  }
}

/// Words that a tile multiplies column by column: two, if these are summed together, so that their sums need not stay in
/// registers while the other columns pass.
template <typename Dot>
constexpr int kTileWords = Dot::kTogether == 2 ? 2 : 1;

/// out[c][lane] (+)= the panel's part of the sums of kColumns columns; `first_group` is where the panel lies in
/// the rows of x.
///
/// Of 32 values a group 4 of 5 instructions that take the multipliers are dot products, so that 80 % of the peak
/// is the limit; measured with 512 columns: 66 % (q8_0), 64 % (q4_K), 55 % (q6_K). Tried: starts shifted once a
/// tile and scales copied side by side (60 %), prefetching the next tile's columns, chunks of 1024 (no
/// difference). AVX2, Gop/s a thread of 302 that two instructions and a broadcast a word allow (Zen 3): q4_K 234, q4_0 235,
/// q5_0 224, q6_K 165 (1.11 times that with subscales as integers and two words at a time), q8_0 133; with sums of 32 bits
/// a word and put off until they left the registers 157, 151, 175, 121, 119.
template <typename Codes, int kColumns>
void quant_tile(const QuantPanel& panel, int64_t first_group, int64_t n_groups, const Q8Row* columns,
                bool is_first, float* out, int64_t out_stride, int64_t n_rows) {
  constexpr int kPanels = kQuantPanels;
  using Dot = GroupDot<Codes, Codes::kWide && !kIsFlipped<Codes>>;
  static_assert(!kIsFlipped<Codes> || kTileWords<Dot> == 1, "one word's masks are held");
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
  for (int c = 0; c < kColumns; ++c) x[c] = columns[c].q + first_group * kQ8Group;
  const uint8_t* codes = panel.codes;
  const float *scales = panel.scales, *mins = panel.mins;
  for (int64_t g = 0; g < n_groups; ++g) {
    const int64_t x_group = first_group + g;
    Dot dots[kColumns][kPanels];
    const auto pair = [&](int p) {
      return Codes::kHasSubscales ? int_load(panel.pairs + g * kPanelRows + p * kLanes) : int_set1(0);
    };
#pragma GCC unroll 8
    for (int i = 0; i < kGroupWords; i += kTileWords<Dot>) {
      I w[kTileWords<Dot>][kPanels], masks[kPanels];
#pragma GCC unroll 8
      for (int j = 0; j < kTileWords<Dot>; ++j) {
#pragma GCC unroll 8
        for (int p = 0; p < kPanels; ++p) w[j][p] = int_load(codes + p * kLanes * 4);
        codes += kPanelRows * 4;
      }
      if constexpr (kIsFlipped<Codes>) {
#pragma GCC unroll 8
        for (int p = 0; p < kPanels; ++p) masks[p] = int_load(codes + p * kLanes * 4);
        codes += kPanelRows * 4;
      }
#pragma GCC unroll 8
      for (int c = 0; c < kColumns; ++c)
#pragma GCC unroll 8
        for (int j = 0; j < kTileWords<Dot>; ++j) {
          const I broadcast = four_bytes(x[c] + 4 * (i + j));
#pragma GCC unroll 8
          for (int p = 0; p < kPanels; ++p)
            if constexpr (kIsFlipped<Codes>)
              dots[c][p].put(i + j, w[j][p], int_xor(broadcast, masks[p]),
                             [&] { return int_load(mins + p * kLanes); });
            else if constexpr (Codes::kHasSubscales)
              dots[c][p].put_scaled(
                  i + j, w[j][p], broadcast, [&] { return group_start<Codes>(columns[c], x_group, pair(p)); },
                  [&](int64_t half) { return int_load(panel.subscales + (2 * g + half) * kPanelRows + p * kLanes); });
            else
              dots[c][p].put(i + j, w[j][p], broadcast,
                             [&] { return group_start<Codes>(columns[c], x_group, int_set1(0)); });
        }
    }
#pragma GCC unroll 8
    for (int p = 0; p < kPanels; ++p) {
      const F scale = load(scales + p * kLanes);
      const F min = Codes::kHasMin ? load(mins + p * kLanes) : zero();
#pragma GCC unroll 8
      for (int c = 0; c < kColumns; ++c)
        sums[c][p] = add_group(sums[c][p], dots[c][p], scale, min, pair(p), columns[c], x_group);
    }
#pragma GCC unroll 8
    for (int c = 0; c < kColumns; ++c) x[c] += kQ8Group;
    scales += kPanelRows;
    mins += kPanelRows;
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

/// All columns times the panels of rows [row, row_end), for codes k to k + n. A panel stays in the first cache
/// while the columns pass.
template <typename Codes>
void multiply_panels(const MatmulArgs& args, int64_t row, int64_t row_end, int64_t k, int64_t n,
                     std::byte* scratch) {
  for (int64_t r = row; r < row_end; r += kPanelRows) {
    const QuantPanel panel = quant_panel<kIsFlipped<Codes>>(scratch, (r - row) / kPanelRows);
    in_even_parts<kQuantColumns>(args.n_cols, [&](int64_t c, int64_t n_columns) {
      Q8Row columns[kQuantColumns];
      for (int64_t i = 0; i < n_columns; ++i)
        columns[i] = Q8Row::at(args.activations + (c + i) * args.activation_row_bytes, args.n_inner);
      with_count<kQuantColumns>(n_columns, [&](auto count) {
        quant_tile<Codes, decltype(count)::value>(panel, k / kQ8Group, n / kQ8Group, columns, k == 0,
                                                  args.out + c * args.out_stride + r, args.out_stride,
                                                  smaller(kPanelRows, row_end - r));
      });
    });
  }
}

/// unpack(r, k, n, panel) unpacks codes k to k + n of the panel that begins with row r.
template <typename Codes, typename Unpack>
inline void multiply_column_block(const MatmulArgs& args, int64_t chunk, std::byte* scratch, Unpack unpack) {
  const int64_t block = kPanelRows * (args.n_cols <= kQuantColumns ? 1 : kMostPanels);
  for (int64_t row = args.row_begin; row < args.row_end; row += block) {
    const int64_t row_end = smaller(row + block, args.row_end);
    for (int64_t k = 0; k == 0 || k < args.n_inner; k += chunk) {
      const int64_t n = smaller(chunk, args.n_inner - k);
      for (int64_t r = row; r < row_end; r += kPanelRows)
        unpack(r, k, n, quant_panel<kIsFlipped<Codes>>(scratch, (r - row) / kPanelRows));
      multiply_panels<Codes>(args, row, row_end, k, n, scratch);
    }
  }
}

/// Many columns in blocks that stay in the second cache while all rows pass.
template <typename Codes, typename Unpack>
inline void matmul_unpacked(const MatmulArgs& args, int64_t chunk, std::byte* scratch, Unpack unpack) {
  const int64_t most = args.n_inner > 0 ? kColumnBlockCodes / args.n_inner : args.n_cols, fewest = 64;
  const int64_t n_blocks = (args.n_cols - 1) / (most > fewest ? most : fewest) + 1;
  for (int64_t i = 0, c = 0; i < n_blocks; ++i) {
    const int64_t even_end = (i + 1) * args.n_cols / n_blocks;
    const int64_t end = i + 1 == n_blocks ? even_end : even_end / kQuantColumns * kQuantColumns;
    MatmulArgs part = args;
    part.activations += c * args.activation_row_bytes;
    part.out += c * args.out_stride;
    part.n_cols = end - c;
    multiply_column_block<Codes>(part, chunk, scratch, unpack);
    c = end;
  }
}

/// Weights as a file has them.
template <typename Codes>
void matmul_quant(const MatmulArgs& args) {
  std::byte* scratch = thread_scratch(kQuantScratch);
  std::byte* spare = scratch + kPanelsBytes;
  // Prefetching goes a chunk ahead; of the largest blocks one at a time is the better distance (Q6_K: 23 instead
  // of 17 GB/s).
  const bool is_memory_bound = args.n_cols <= kQuantColumns;
  const int64_t chunk = is_memory_bound && sizeof(typename Codes::Block) > 128 ? 256 : kQuantChunk;
  matmul_unpacked<Codes>(args, chunk, scratch, [&](int64_t row, int64_t k, int64_t n, const QuantPanel& panel) {
    unpack_panel<Codes>(args, row, k, n, panel, spare);
  });
}

/// Takes one block of kLanes rows from unpack() and multiplies it with a few columns as it comes: the codes never
/// leave the registers. The same sums in the same order as quant_tile.
template <typename Codes, int kColumns>
struct FewColumns {
  static constexpr int kGroups = Codes::kElements / kQ8Group;
  const Q8Row* columns;
  int64_t first_group;  // of the block
  F (&sums)[kColumns];
  const int8_t* x[kColumns];  // the columns' codes of this block
  GroupDot<Codes> dots[kColumns][kGroups];
  F scales[kGroups], mins[kGroups];
  I subscales[kGroups][2], pairs[kGroups];

  SH_INLINE FewColumns(const Q8Row* all_columns, int64_t group, F (&all_sums)[kColumns])
      : columns(all_columns), first_group(group), sums(all_sums) {
#pragma GCC unroll 8
    for (int c = 0; c < kColumns; ++c) x[c] = columns[c].q + first_group * kQ8Group;
  }
  SH_INLINE void put_codes(int64_t word, I codes) {
    const int64_t group = word / kGroupWords;
#pragma GCC unroll 8
    for (int c = 0; c < kColumns; ++c)
      if constexpr (Codes::kHasSubscales)
        dots[c][group].put_scaled(
            word, codes, four_bytes(x[c] + 4 * word),
            [&] { return group_start<Codes>(columns[c], first_group + group, pairs[group]); },
            [&](int64_t half) { return subscales[group][half]; });
      else
        dots[c][group].put(word, codes, four_bytes(x[c] + 4 * word),
                           [&] { return group_start<Codes>(columns[c], first_group + group, int_set1(0)); });
  }
  SH_INLINE void put_scale(int64_t group, F scale) {
    scales[group] = scale;
  }
  SH_INLINE void put_min(int64_t group, F min) {
    mins[group] = min;
  }
  SH_INLINE void put_subscales(int64_t group, I first, I second) {
    subscales[group][0] = first;
    subscales[group][1] = second;
  }
  SH_INLINE void put_pair(int64_t group, I pair) {
    pairs[group] = pair;
  }
  /// So that few sums are held at a time: all of a block of 256 leave the registers.
  SH_INLINE void finish(int first, int n) {
#pragma GCC unroll 8
    for (int g = first; g < first + n; ++g)
#pragma GCC unroll 8
      for (int c = 0; c < kColumns; ++c)
        sums[c] = add_group(sums[c], dots[c][g], scales[g], Codes::kHasMin ? mins[g] : zero(),
                            Codes::kHasSubscales ? pairs[g] : int_set1(0), columns[c], first_group + g);
  }
};

/// One packed panel, rows from `row` on, times columns from `first` on.
template <typename Codes, int kColumns>
void multiply_packed_panel(const MatmulArgs& args, int64_t row, int64_t first) {
  using Block = typename Codes::Block;
  constexpr int64_t kVectors = kPackedRows / kLanes;
  constexpr int64_t kBlockBytes = kPackedRows * static_cast<int64_t>(sizeof(Block));
  constexpr bool kIsLong = Codes::kElements == 256, kIsCopied = kIsLong && kLongBlocksAreCopied;
  alignas(64) std::byte near[kIsCopied ? kBlockBytes : 1];
  Q8Row columns[kColumns];
  for (int c = 0; c < kColumns; ++c)
    columns[c] = Q8Row::at(args.activations + (first + c) * args.activation_row_bytes, args.n_inner);
  const int64_t n_blocks = args.n_inner / Codes::kElements;
  const std::byte* block = args.weights + row * args.weight_row_bytes;
  F sums[kVectors][kColumns];
#pragma GCC unroll 4
  for (int64_t v = 0; v < kVectors; ++v)
#pragma GCC unroll 8
    for (int c = 0; c < kColumns; ++c) sums[v][c] = zero();
  for (int64_t i = 0; i < n_blocks; ++i, block += kBlockBytes) {
    const std::byte* from = block;
    if constexpr (kIsCopied) {
      for (int64_t at = 0; at < kBlockBytes; at += kLanes * 4) int_store(near + at, int_load(block + at));
      from = near;
    } else if (!kIsLong && first == 0) {
      prefetch_bytes(block + kPackedAhead, kBlockBytes);
    }
    const int64_t first_group = i * (Codes::kElements / kQ8Group);
    const auto multiply = [&](int64_t v) {
      FewColumns<Codes, kColumns> part(columns, first_group, sums[v]);
      Codes::unpack(PackedBlock<Block>{from, v * kLanes}, part);
    };
    if constexpr (kIsLong && !kIsCopied) {
#pragma GCC unroll 1
      for (int64_t v = 0; v < kVectors; ++v) {
        constexpr int64_t kPart = kBlockBytes / kVectors;
        if (first == 0) prefetch_bytes(block + kBlockBytes + v * kPart, kPart);
        multiply(v);
      }
    } else {
#pragma GCC unroll 4
      for (int64_t v = 0; v < kVectors; ++v) multiply(v);
    }
  }
#pragma GCC unroll 4
  for (int64_t v = 0; v < kVectors; ++v) {
    const int64_t n = args.row_end - row - v * kLanes;
#pragma GCC unroll 8
    for (int c = 0; c < kColumns; ++c) {
      float* to = args.out + (first + c) * args.out_stride + row + v * kLanes;
      if (n >= kLanes)
        store(to, sums[v][c]);
      else if (n > 0)
        store_n(to, sums[v][c], n);
    }
  }
}

// So many columns take packed codes as they come, in tiles of so many. In formats with blocks of 32 a column has one sum
// at a time: 2 to 8 columns are 1.2 to 1.5 times as fast as with an unpacked panel (q8_0, 4 columns: 25 to 29 for 19 GB/s
// a thread), 1.4 to 2 times with AVX2. Of blocks of 256 two columns are 1.5 to 2.3 times, four 1.15 to 1.5 times as fast
// (q6_K, q4_K), eight 0.8 to 1.05; in one tile of four columns as slow as with a panel: their sums leave the registers.
// AVX2: two 1 to 1.1, four 0.85. There q8_0, of which unpacking is a copy that nothing else gains from, is 1.13 times as
// fast at 9 columns and level at 16; q4_0 is level at 9 and 10 and slower from then on.
template <typename Codes>
constexpr int64_t kMostDirectColumns = Codes::kElements != 32                                ? kPackedColumns
                                       : sizeof(typename Codes::Block) > 32 && !kWideDot ? 16
                                                                                             : 8;
template <typename Codes>
constexpr int kDirectTile = Codes::kElements == 32 ? kPackedColumns : 2;

/// Few columns times packed weights, which stream from memory once; a panel comes from the second cache for all
/// tiles of columns but the first.
template <typename Codes>
void multiply_packed_columns(const MatmulArgs& args) {
  constexpr int kTile = kDirectTile<Codes>;
  for (int64_t row = args.row_begin; row < args.row_end; row += kPackedRows)
    in_even_parts<kTile>(args.n_cols, [&](int64_t first, int64_t n) {
      with_count<kTile>(n, [&](auto count) {
        multiply_packed_panel<Codes, decltype(count)::value>(args, row, first);
      });
    });
}

template <typename Codes>
void matmul_packed(const MatmulArgs& args) {
  SH_CHECK(args.row_begin % kPackedRows == 0, "packed weights are multiplied by whole panels");
  if (args.n_cols <= kMostDirectColumns<Codes>) {
    multiply_packed_columns<Codes>(args);
    return;
  }
  // Few columns wait for memory: prefetching a shorter stretch ahead is up to 1.6 times as fast for them.
  const int64_t chunk = args.n_cols <= kQuantColumns ? kQuantChunk / 2 : kQuantChunk;
  matmul_unpacked<Codes>(args, chunk, thread_scratch(kQuantScratch),
                         [&](int64_t row, int64_t k, int64_t n, const QuantPanel& panel) {
                           unpack_packed_panel<Codes>(args, row, k, n, panel);
                         });
}
