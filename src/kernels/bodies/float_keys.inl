// SPDX-License-Identifier: MIT
// Scores of quantised keys: a group's codes of 16 rows are turned, so that lanes are rows, converted without their scale
// and multiplied by the query as floats; the sum of a group is multiplied by its scale. Few queries convert the codes as
// they multiply, many take them from a buffer, in the same order of sums. Against queries cut into bytes (coded_keys.inl),
// for which AVX2 needs five instructions where others need one, GFLOP/s of attention over rows of 128 (Zen 3), floats and
// bytes: q8_0 20.6 and 20.4 with one query, 66 and 46 with 64; q4_0 65 and 57 with 64. (Of the scores of one query over
// q4_0 alone bytes give 22 and floats 19.) Included inside a target region and namespace, after the rows of keys and
// before attention.

// Byte b of a word of codes is converted where it lies, as 256^b times its code, and the elements of a query have the
// inverse factor: both exact. The highest byte is signed, so codes that are signed get an offset in the others only.
constexpr float kUnits[4] = {1.0f, 0x1p-8f, 0x1p-16f, 0x1p-24f};
constexpr float kSignedOffsets[4] = {128.0f, 128.0f, 128.0f, 0.0f};
constexpr int32_t kSignedFlip = 0x00808080;

/// A query as the codes are multiplied with it.
struct CodedQuery {
  float* x;       // [width] times kUnits
  float* starts;  // [width / 32] what the sums of products begin with

  static int64_t n_floats(int64_t width) { return width + width / kKeyGroup; }
  static CodedQuery at(float* p, int64_t width) { return {p, p + width}; }
};

/// `offset_bits`: of the codes that it will be multiplied with, as in quant_formats.inl.
inline void code_query(const float* x, int64_t width, int offset_bits, const CodedQuery& to) {
  static_assert(kLanes % 4 == 0);
  float units[kLanes], offsets[kLanes];
  for (int64_t i = 0; i < kLanes; ++i) {
    units[i] = kUnits[i % 4];
    offsets[i] = offset_bits == kNoOffset ? kSignedOffsets[i % 4] : static_cast<float>(1 << offset_bits);
  }
  for (int64_t g = 0; g < width / kKeyGroup; ++g) {
    F sum = zero();
    for (int64_t i = g * kKeyGroup; i < (g + 1) * kKeyGroup; i += kLanes) {
      sum = nfma(load(x + i), load(offsets), sum);
      store(to.x + i, mul(load(x + i), load(units)));
    }
    to.starts[g] = sum_lanes(sum);
  }
}

/// A group of 16 keys, turned, as words of codes.
template <typename Codes>
struct KeyWords {
  alignas(64) uint32_t words[kKeyGroup / 4][kMaxBlockRows];
  alignas(64) float scales[kMaxBlockRows];

  struct Part {
    KeyWords& to;
    int64_t row;
    SH_INLINE void put_codes(int64_t word, I x) const {
      int_store(to.words[word] + row, Codes::kOffsetBits == kNoOffset ? int_xor(x, int_set1(kSignedFlip)) : x);
    }
    SH_INLINE void put_scale(int64_t, F x) const { store(to.scales + row, x); }
    SH_INLINE void finish(int, int) const {}
  };
  SH_INLINE void unpack(const KeyRows<Codes>& rows, int64_t group) {
#pragma GCC unroll 2
    for (int64_t r = 0; r < kMaxBlockRows; r += kLanes) {
      Part part{*this, r};
      rows.unpack(r, group, part);
    }
  }
  SH_INLINE F scale(int64_t row) const { return load(scales + row); }
  template <int kByte>
  SH_INLINE F code(int64_t word, int64_t row) const {
    return to_float(int_and(int_load(words[word] + row), int_set1(static_cast<int32_t>(0xFFu << 8 * kByte))));
  }
};

/// The same as floats, for more queries than one tile.
struct KeyFloats {
  float* codes;   // [32, 16]
  float* scales;  // [16]

  KeyFloats group(int64_t g) const { return {codes + g * kKeyGroup * kMaxBlockRows, scales + g * kMaxBlockRows}; }
  SH_INLINE F scale(int64_t row) const { return load(scales + row); }
  template <int kByte>
  SH_INLINE F code(int64_t word, int64_t row) const { return load(codes + (4 * word + kByte) * kMaxBlockRows + row); }
  template <int kByte, typename Codes>
  SH_INLINE void put_code(const KeyWords<Codes>& from, int64_t word, int64_t row) const {
    store(codes + (4 * word + kByte) * kMaxBlockRows + row, from.template code<kByte>(word, row));
  }
  template <typename Codes>
  SH_INLINE void put(const KeyWords<Codes>& from) const {
    for (int64_t word = 0; word < kKeyGroup / 4; ++word)
      for (int64_t r = 0; r < kMaxBlockRows; r += kLanes) {
        put_code<0>(from, word, r);
        put_code<1>(from, word, r);
        put_code<2>(from, word, r);
        put_code<3>(from, word, r);
      }
    for (int64_t r = 0; r < kMaxBlockRows; r += kLanes) store(scales + r, from.scale(r));
  }
};

/// Products of kQueries queries with 16 keys, a group at a time; `query_floats` from query to query. kScoreChains sums a
/// group, by k modulo kScoreChains, whatever kQueries is. Neither four chains for one query nor the next group's codes
/// unpacked between the products is faster (by -6 and -8 %), nor six queries with one chain.
template <int kQueries>
struct KeyDots {
  static constexpr int kVectors = kMaxBlockRows / kLanes;
  static_assert(4 % kScoreChains == 0);
  using Sums = F[kQueries][kVectors];
  int64_t query_floats;
  Sums sums;

  SH_INLINE explicit KeyDots(int64_t floats) : query_floats(floats) {
#pragma GCC unroll 8
    for (int q = 0; q < kQueries; ++q)
#pragma GCC unroll 2
      for (int v = 0; v < kVectors; ++v) sums[q][v] = zero();
  }
  template <int kByte, typename Keys>
  SH_INLINE void add_products(const Keys& keys, int64_t word, const float* x, Sums (&chains)[kScoreChains]) const {
    F codes[kVectors];
#pragma GCC unroll 2
    for (int v = 0; v < kVectors; ++v) codes[v] = keys.template code<kByte>(word, v * kLanes);
#pragma GCC unroll 8
    for (int q = 0; q < kQueries; ++q) {
      const F element = set1(x[q * query_floats + 4 * word + kByte]);
#pragma GCC unroll 2
      for (int v = 0; v < kVectors; ++v) {
        F& sum = chains[kByte % kScoreChains][q][v];
        sum = fma(codes[v], element, sum);
      }
    }
  }
  /// `query`: the first of the group.
  template <typename Keys>
  SH_INLINE void add_group(const Keys& keys, const CodedQuery& query) {
    Sums chains[kScoreChains];
#pragma GCC unroll 8
    for (int q = 0; q < kQueries; ++q)
#pragma GCC unroll 2
      for (int v = 0; v < kVectors; ++v) {
        chains[0][q][v] = set1(query.starts[q * query_floats]);
#pragma GCC unroll 4
        for (int chain = 1; chain < kScoreChains; ++chain) chains[chain][q][v] = zero();
      }
#pragma GCC unroll 1  // unrolled, addresses of several queries no longer fit the registers: a tenth slower
    for (int64_t word = 0; word < kKeyGroup / 4; ++word) {
      add_products<0>(keys, word, query.x, chains);
      add_products<1>(keys, word, query.x, chains);
      add_products<2>(keys, word, query.x, chains);
      add_products<3>(keys, word, query.x, chains);
    }
#pragma GCC unroll 8
    for (int q = 0; q < kQueries; ++q)
#pragma GCC unroll 2
      for (int v = 0; v < kVectors; ++v) {
        F sum = chains[0][q][v];
#pragma GCC unroll 4
        for (int chain = 1; chain < kScoreChains; ++chain) sum = add(sum, chains[chain][q][v]);
        sums[q][v] = fma(keys.scale(v * kLanes), sum, sums[q][v]);
      }
  }
  SH_INLINE void put_scores(float scale, float* scores, int64_t score_stride) const {
#pragma GCC unroll 8
    for (int q = 0; q < kQueries; ++q)
#pragma GCC unroll 2
      for (int v = 0; v < kVectors; ++v)
        store(scores + q * score_stride + v * kLanes, mul(sums[q][v], set1(scale)));
  }
};

/// Products of up to kScoreQueries queries with 16 keys, times scale. keys_of(g): group g of the keys.
template <typename Fn>
SH_INLINE void score_groups(int64_t n_queries, float* queries, int64_t width, Fn keys_of, float scale, float* scores,
                            int64_t score_stride) {
  const CodedQuery query = CodedQuery::at(queries, width);
  with_count<kScoreQueries>(n_queries, [&](auto count) {
    KeyDots<decltype(count)::value> dots(CodedQuery::n_floats(width));
    for (int64_t g = 0; g < width / kKeyGroup; ++g)
      dots.add_group(keys_of(g), CodedQuery{query.x + g * kKeyGroup, query.starts + g});
    dots.put_scores(scale, scores, score_stride);
  });
}

void score_key_floats(int64_t n_queries, float* queries, int64_t width, const KeyFloats& keys, float scale,
                      float* scores, int64_t score_stride) {
  in_even_parts<kScoreQueries>(n_queries, [&](int64_t q, int64_t n) {
    score_groups(
        n, queries + q * CodedQuery::n_floats(width), width, [&](int64_t g) { return keys.group(g); }, scale,
        scores + q * score_stride, score_stride);
  });
}

/// The same for any number of queries; `turned` and `scales` are room for the keys.
template <typename Codes>
void score_coded(int64_t n_queries, float* queries, int64_t width, const KeyRows<Codes>& rows, float* turned,
                 float* scales, float scale, float* scores, int64_t score_stride) {
  KeyWords<Codes> words;
  const auto unpacked = [&](int64_t g) -> const KeyWords<Codes>& {
    words.unpack(rows, g);
    return words;
  };
  if (n_queries <= kScoreQueries)
    return score_groups(n_queries, queries, width, unpacked, scale, scores, score_stride);
  const KeyFloats keys{turned, scales};
  for (int64_t g = 0; g < rows.n_groups; ++g) keys.group(g).put(unpacked(g));
  score_key_floats(n_queries, queries, width, keys, scale, scores, score_stride);
}
