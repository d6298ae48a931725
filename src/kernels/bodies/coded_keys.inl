// SPDX-License-Identifier: MIT
// Scores of quantised keys without decoding them: the codes of 16 rows are turned so that lanes are rows, and
// multiplied as bytes, exactly, with queries that are cut into bytes: half of the shuffles and a fraction of the
// arithmetic of turned floats. For targets whose instructions add four products of bytes; float_keys.inl is the same for
// others. Included inside a target region and namespace, after the rows of keys and before attention.

// An element of a query is scale · (254² · a + 254 · b + c), all three within ±127: of the highest of a group of 32 24
// bits are left, as a float has. (With two bytes log-sums of attention were wrong by up to 4e-3 in a trained model.)
constexpr int kQueryBytes = 3;
constexpr float kByteUnit = 254.0f, kHighestCoded = 127.0f * kByteUnit * kByteUnit + 126.0f * kByteUnit;

/// A query in bytes.
struct CodedQuery {
  int8_t* bytes;    // [width / 32, kQueryBytes, 32], the coarsest first
  float* scales;    // [width / 32]
  int32_t* starts;  // [width / 32, kQueryBytes] what the sums of products begin with

  static int64_t n_floats(int64_t width) { return width * kQueryBytes / 4 + (1 + kQueryBytes) * width / kKeyGroup; }
  static CodedQuery at(float* p, int64_t width) {
    float* scales = p + width * kQueryBytes / 4;
    return {reinterpret_cast<int8_t*>(p), scales, reinterpret_cast<int32_t*>(scales + width / kKeyGroup)};
  }
};

/// `offset_bits`: of the codes that it will be multiplied with, as in quant_formats.inl.
inline void code_query(const float* x, int64_t width, int offset_bits, const CodedQuery& to) {
  const int32_t offset = offset_bits == kNoOffset ? 0 : 1 << offset_bits;
  for (int64_t g = 0; g < width / kKeyGroup; ++g, x += kKeyGroup) {
    F largest = zero(), not_finite = zero();
    for (int64_t i = 0; i < kKeyGroup; i += kLanes) {
      largest = max(largest, absolute(load(x + i)));
      not_finite = fma(load(x + i), zero(), not_finite);  // NaN if an element is not finite
    }
    const float highest = max_lane(largest);
    const F inverse = set1(highest < kQ8MinAmax ? 0.0f : kHighestCoded / highest);
    F sums[kQueryBytes] = {zero(), zero(), zero()};
    int8_t* bytes = to.bytes + g * kQueryBytes * kKeyGroup;
    for (int64_t i = 0; i < kKeyGroup; i += kLanes) {
      const F whole = round_to_int(mul(load(x + i), inverse));
      const F coarse = round_to_int(mul(whole, set1(1.0f / (kByteUnit * kByteUnit))));
      const F rest = nfma(coarse, set1(kByteUnit * kByteUnit), whole);
      const F middle = round_to_int(mul(rest, set1(1.0f / kByteUnit)));
      const F parts[kQueryBytes] = {coarse, middle, nfma(middle, set1(kByteUnit), rest)};
      for (int part = 0; part < kQueryBytes; ++part) {
        store_bytes(bytes + part * kKeyGroup + i, to_int(parts[part]));
        sums[part] = add(sums[part], parts[part]);
      }
    }
    to.scales[g] = highest * (1.0f / kHighestCoded) + sum_lanes(not_finite);
    for (int part = 0; part < kQueryBytes; ++part)
      to.starts[g * kQueryBytes + part] = -offset * static_cast<int32_t>(sum_lanes(sums[part]));
  }
}

/// Products of kQueries queries with a group of codes of kLanes rows, taken as the codes are unpacked.
template <typename Codes, int kQueries>
struct CodedDots {
  const CodedQuery* query;
  int64_t group;
  GroupDot<Codes> dots[kQueries][kQueryBytes];
  F key_scale;
  F (&sums)[kQueries];

  SH_INLINE CodedDots(const CodedQuery* queries, int64_t g, F (&all_sums)[kQueries])
      : query(queries), group(g), key_scale(zero()), sums(all_sums) {}
  SH_INLINE void put_codes(int64_t word, I codes) {
#pragma GCC unroll 8
    for (int q = 0; q < kQueries; ++q)
#pragma GCC unroll 3
      for (int part = 0; part < kQueryBytes; ++part)
        dots[q][part].put(word, codes,
                          four_bytes(query[q].bytes + (group * kQueryBytes + part) * kKeyGroup + 4 * word),
                          [&] { return int_set1(query[q].starts[group * kQueryBytes + part]); });
  }
  SH_INLINE void put_scale(int64_t, F x) {
    key_scale = x;
  }
  SH_INLINE void finish(int, int) {
    const F unit = set1(kByteUnit);
#pragma GCC unroll 8
    for (int q = 0; q < kQueries; ++q) {
      const F total = fma(fma(to_float(dots[q][0].dot), unit, to_float(dots[q][1].dot)), unit, to_float(dots[q][2].dot));
      sums[q] = fma(mul(key_scale, set1(query[q].scales[group])), total, sums[q]);
    }
  }
};

/// The same, turned, for more queries than one tile.
struct TurnedKeys {
  uint8_t* codes;  // [width / 4, 16, 4]
  float* scales;   // [width / 32, 16]

  uint8_t* word(int64_t row, int64_t group, int64_t i) const {
    return codes + ((group * (kKeyGroup / 4) + i) * kMaxBlockRows + row) * 4;
  }
  template <typename To>
  SH_INLINE void unpack(int64_t row, int64_t group, To& to) const {
    to.put_scale(0, load(scales + group * kMaxBlockRows + row));
#pragma GCC unroll 8
    for (int64_t i = 0; i < kKeyGroup / 4; ++i) to.put_codes(i, int_load(word(row, group, i)));
    to.finish(0, 1);
  }
};
struct TurnedKeysPart {
  const TurnedKeys& keys;
  int64_t row, group;
  void put_codes(int64_t i, I x) const { int_store(keys.word(row, group, i), x); }
  void put_scale(int64_t, F x) const { store(keys.scales + group * kMaxBlockRows + row, x); }
  void finish(int, int) const {}
};
template <typename Codes>
void turn_keys_of(const KeyRows<Codes>& rows, const TurnedKeys& keys) {
  for (int64_t r = 0; r < kMaxBlockRows; r += kLanes)
    for (int64_t g = 0; g < rows.n_groups; ++g) {
      TurnedKeysPart part{keys, r, g};
      rows.unpack(r, g, part);
    }
}

/// Products of kQueries queries with 16 keys, times scale; `query_floats` from query to query.
template <typename Codes, int kQueries, typename Keys>
void score_coded_tile(float* queries, int64_t query_floats, int64_t width, const Keys& keys, float scale,
                      float* scores, int64_t score_stride) {
  CodedQuery query[kQueries];
#pragma GCC unroll 8
  for (int q = 0; q < kQueries; ++q) query[q] = CodedQuery::at(queries + q * query_floats, width);
  for (int64_t r = 0; r < kMaxBlockRows; r += kLanes) {
    F sums[kQueries];
#pragma GCC unroll 8
    for (int q = 0; q < kQueries; ++q) sums[q] = zero();
    for (int64_t g = 0; g < width / kKeyGroup; ++g) {
      CodedDots<Codes, kQueries> part(query, g, sums);
      keys.unpack(r, g, part);
    }
#pragma GCC unroll 8
    for (int q = 0; q < kQueries; ++q) store(scores + q * score_stride + r, mul(sums[q], set1(scale)));
  }
}

/// The same for any number of queries; `turned` and `scales` are room for the keys.
template <typename Codes>
void score_coded(int64_t n_queries, float* queries, int64_t width, const KeyRows<Codes>& rows, float* turned,
                 float* scales, float scale, float* scores, int64_t score_stride) {
  const int64_t query_floats = CodedQuery::n_floats(width);
  const auto score = [&](int64_t n, float* first, const auto& keys, float* to) {
    with_count<kScoreQueries>(n, [&](auto count) {
      score_coded_tile<Codes, decltype(count)::value>(first, query_floats, width, keys, scale, to, score_stride);
    });
  };
  if (n_queries <= kScoreQueries) return score(n_queries, queries, rows, scores);
  const TurnedKeys keys{reinterpret_cast<uint8_t*>(turned), scales};
  turn_keys_of(rows, keys);
  in_even_parts<kScoreQueries>(n_queries, [&](int64_t q, int64_t n) {
    score(n, queries + q * query_floats, keys, scores + q * score_stride);
  });
}
