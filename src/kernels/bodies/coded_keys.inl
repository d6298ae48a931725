// SPDX-License-Identifier: MIT
// Scores of quantised keys without decoding them: the codes of 16 rows are turned so that lanes are rows, and
// multiplied as bytes with queries of 16 bits, exactly. Half of the shuffles and a tenth of the arithmetic of turned
// floats; with one query over q8_0 rows beyond the caches 2 to 3 times as fast. Included inside a target region and
// namespace, after the products of quantised weights and before attention.

constexpr int64_t kKeyGroup = 32;
// An element of a query is scale · (254 · high + low), both within ±127: the highest of a group of 32 keeps 16 bits,
// so that a score is wrong by 2^-17 of |query| |key| where the key's own rounding (q8_0) moves it by 2^-9.
constexpr float kHighUnit = 254.0f, kHighestCoded = 127.0f * kHighUnit + 126.0f;

/// Formats whose codes have a scale and no minimum for each 32.
inline bool has_coded_keys(DType dtype) {
  return dtype == DType::q8_0 || dtype == DType::q4_0 || dtype == DType::q5_0 || dtype == DType::iq4_nl;
}

/// A query in two parts.
struct CodedQuery {
  int8_t *high, *low;  // [width]
  float* scales;       // [width / 32]
  int32_t* starts;     // [width / 32, 2] what the sums of high and of low products begin with

  static int64_t n_floats(int64_t width) { return width / 2 + 3 * width / kKeyGroup; }
  static CodedQuery at(float* p, int64_t width) {
    int8_t* bytes = reinterpret_cast<int8_t*>(p);
    float* scales = p + width / 2;
    return {bytes, bytes + width, scales, reinterpret_cast<int32_t*>(scales + width / kKeyGroup)};
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
    F high_sum = zero(), low_sum = zero();
    for (int64_t i = 0; i < kKeyGroup; i += kLanes) {
      const F whole = round_to_int(mul(load(x + i), inverse));
      const F high = round_to_int(mul(whole, set1(1.0f / kHighUnit)));
      const F low = nfma(high, set1(kHighUnit), whole);
      store_bytes(to.high + g * kKeyGroup + i, to_int(high));
      store_bytes(to.low + g * kKeyGroup + i, to_int(low));
      high_sum = add(high_sum, high);
      low_sum = add(low_sum, low);
    }
    to.scales[g] = highest * (1.0f / kHighestCoded) + sum_lanes(not_finite);
    to.starts[2 * g] = -offset * static_cast<int32_t>(sum_lanes(high_sum));
    to.starts[2 * g + 1] = -offset * static_cast<int32_t>(sum_lanes(low_sum));
  }
}

inline int offset_bits_of(DType dtype) {
  switch (dtype) {
    case DType::q4_0:
      return CodesQ4_0::kOffsetBits;
    case DType::q5_0:
      return CodesQ5_0::kOffsetBits;
    case DType::iq4_nl:
      return CodesIQ4_NL::kOffsetBits;
    default:
      return CodesQ8_0::kOffsetBits;
  }
}

/// 16 rows, turned.
struct CodedKeys {
  uint8_t* codes;  // [width / 4, 16, 4]
  float* scales;   // [width / 32, 16]

  static CodedKeys at(float* p, int64_t width) { return {reinterpret_cast<uint8_t*>(p), p + 4 * width}; }
};

/// Where the codes of a group of kLanes rows go.
struct CodedKeysPart {
  uint8_t* codes;
  float* scales;
  void put_codes(int64_t word, I x) const { int_store(codes + word * kMaxBlockRows * 4, x); }
  void put_scale(int64_t, F x) const { store(scales, x); }
};

/// Needs: memory of 16 rows, whatever those past the end hold.
template <typename Codes>
void turn_coded_keys(const std::byte* rows, const std::byte* ahead, int64_t width, const CodedKeys& keys) {
  using Block = typename Codes::Block;
  const int64_t n_groups = width / kKeyGroup, stride = n_groups * static_cast<int64_t>(sizeof(Block));
  const int64_t part_bytes = kLanes * static_cast<int64_t>(sizeof(Block));
  for (int64_t r = 0; r < kMaxBlockRows; r += kLanes)
    for (int64_t g = 0; g < n_groups; ++g) {
      if (ahead != nullptr) {
        prefetch_bytes(ahead, part_bytes);
        ahead += part_bytes;
      }
      CodedKeysPart part{keys.codes + (g * (kKeyGroup / 4) * kMaxBlockRows + r) * 4,
                         keys.scales + g * kMaxBlockRows + r};
      Codes::unpack(BlockRows<Block>{rows + r * stride + g * static_cast<int64_t>(sizeof(Block)), stride}, part);
    }
}

inline I four_bytes(const int8_t* p) {
  int32_t bytes;
  __builtin_memcpy(&bytes, p, 4);
  return int_set1(bytes);
}

/// Products of kQueries queries with 16 turned rows, times scale; `query_floats` from query to query.
template <typename Codes, int kQueries>
void score_coded_tile(float* queries, int64_t query_floats, int64_t width, const CodedKeys& keys, float scale,
                      float* scores, int64_t score_stride) {
  CodedQuery query[kQueries];
#pragma GCC unroll 8
  for (int q = 0; q < kQueries; ++q) query[q] = CodedQuery::at(queries + q * query_floats, width);
  for (int64_t r = 0; r < kMaxBlockRows; r += kLanes) {
    F sums[kQueries];
#pragma GCC unroll 8
    for (int q = 0; q < kQueries; ++q) sums[q] = zero();
    for (int64_t g = 0; g < width / kKeyGroup; ++g) {
      I high[kQueries], low[kQueries];
#pragma GCC unroll 8
      for (int q = 0; q < kQueries; ++q) {
        high[q] = int_set1(query[q].starts[2 * g]);
        low[q] = int_set1(query[q].starts[2 * g + 1]);
      }
#pragma GCC unroll 8
      for (int64_t w = 0; w < kKeyGroup / 4; ++w) {
        const I codes = int_load(keys.codes + ((g * (kKeyGroup / 4) + w) * kMaxBlockRows + r) * 4);
#pragma GCC unroll 8
        for (int q = 0; q < kQueries; ++q) {
          high[q] = dot_codes<Codes>(high[q], codes, four_bytes(query[q].high + g * kKeyGroup + 4 * w));
          low[q] = dot_codes<Codes>(low[q], codes, four_bytes(query[q].low + g * kKeyGroup + 4 * w));
        }
      }
      const F key_scales = load(keys.scales + g * kMaxBlockRows + r);
#pragma GCC unroll 8
      for (int q = 0; q < kQueries; ++q)
        sums[q] = fma(mul(key_scales, set1(query[q].scales[g])),
                      fma(to_float(high[q]), set1(kHighUnit), to_float(low[q])), sums[q]);
    }
#pragma GCC unroll 8
    for (int q = 0; q < kQueries; ++q) store(scores + q * score_stride + r, mul(sums[q], set1(scale)));
  }
}

/// The same for any number of queries.
template <typename Codes>
void score_coded(int64_t n_queries, float* queries, int64_t query_floats, int64_t width, const CodedKeys& keys,
                 float scale, float* scores, int64_t score_stride) {
  for (int64_t q = 0; q < n_queries; q += kScoreQueries)
    with_count<kScoreQueries>(smaller(kScoreQueries, n_queries - q), [&](auto count) {
      score_coded_tile<Codes, decltype(count)::value>(queries + q * query_floats, query_floats, width, keys, scale,
                                                      scores + q * score_stride, score_stride);
    });
}
