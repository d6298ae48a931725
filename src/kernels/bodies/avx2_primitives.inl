// SPDX-License-Identifier: MIT
// What the shared bodies are written in, for 8 lanes. Included inside a target region and namespace.

using F = __m256;
using I = __m256i;
constexpr int64_t kLanes = 8;
constexpr bool kWideDot = false;  // products take unsigned bytes up to 128: larger ones would saturate 16-bit sums
constexpr bool kFlipsWide = true;
/// How many words of codes up to `largest` have products with bytes within ±127 that can be added in 16 bits.
constexpr int words_together(int largest) {
  return 32767 / (2 * 127 * largest);
}
// Register tiles: 16 vector registers.
constexpr int kQuantPanels = 2, kQuantColumns = 4;
// Codes of a block of columns. 512 columns, Gop/s a thread, of 1024, 2048, 4096 and 8192 codes: q4_0 189, 180, 180, 134
// without blocks and 197, 195, 196, 191 with them, q8_0 128, 125, 129, 110 and 132, 128, 128, 124 (Zen 3, 512 KiB).
constexpr int64_t kColumnBlockCodes = 128 * 1024;
constexpr int kPackedColumns = 2;
constexpr int kFloatRows = 4, kFloatColumns = 3;
constexpr bool kLaysSideBySide = true;  // many columns: bf16 1.2 times as fast, f32 1.05 to 1.1
constexpr int kGemmRows = 6, kGemmVectors = 2;
constexpr int kScoreQueries = 3, kScoreChains = 2, kScoreBlocks = 1;
// Vectors of the value that so many queries mix at once: 8 sums hide the latency, and four queries decode a value once.
constexpr int kMixQueries = 4;
constexpr int kMixVectors[kMixQueries + 1] = {0, 8, 4, 2, 2};

inline F zero() {
  return _mm256_setzero_ps();
}
inline F set1(float x) {
  return _mm256_set1_ps(x);
}
inline F load(const float* p) {
  return _mm256_loadu_ps(p);
}
inline void store(float* p, F x) {
  _mm256_storeu_ps(p, x);
}
inline I first_lanes(int64_t n) {
  return _mm256_cmpgt_epi32(_mm256_set1_epi32(static_cast<int>(n)), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}
inline F load_n(const float* p, int64_t n) {
  return _mm256_maskload_ps(p, first_lanes(n));
}
inline void store_n(float* p, F x, int64_t n) {
  _mm256_maskstore_ps(p, first_lanes(n), x);
}
inline F add(F a, F b) {
  return _mm256_add_ps(a, b);
}
inline F sub(F a, F b) {
  return _mm256_sub_ps(a, b);
}
inline F mul(F a, F b) {
  return _mm256_mul_ps(a, b);
}
inline F div(F a, F b) {
  return _mm256_div_ps(a, b);
}
inline F fma(F a, F b, F c) {
  return _mm256_fmadd_ps(a, b, c);
}
inline F nfma(F a, F b, F c) {
  return _mm256_fnmadd_ps(a, b, c);
}  // c - a b
inline F fmaddsub(F a, F b, F c) {
  return _mm256_fmaddsub_ps(a, b, c);
}
inline F max(F a, F b) {
  return _mm256_max_ps(a, b);
}  // b where either is NaN
inline F min(F a, F b) {
  return _mm256_min_ps(a, b);
}
inline F round_to_int(F x) {
  return _mm256_round_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}
inline F round_down_magnitude(F x) {
  return _mm256_round_ps(x, _MM_FROUND_TO_ZERO | _MM_FROUND_NO_EXC);
}
/// magnitude with the sign of x. Needs: magnitude not negative.
inline F with_sign_of(F magnitude, F x) {
  return _mm256_or_ps(magnitude, _mm256_and_ps(x, _mm256_set1_ps(-0.0f)));
}
inline F absolute(F x) {
  return _mm256_andnot_ps(_mm256_set1_ps(-0.0f), x);
}
/// x, kept from being fused into an addition that follows: for results that must be the reference's to the bit.
inline F unfused(F x) {
  asm("" : "+x"(x));
  return x;
}
/// y where x >= bound, else 0.
inline F zero_below(F x, F bound, F y) {
  return _mm256_and_ps(_mm256_cmp_ps(x, bound, _CMP_NLT_UQ), y);
}
inline F power_of_two(I e) {
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(e, _mm256_set1_epi32(127)), 23));
}
/// x · 2^n for whole n in [-150, 128]; in two steps because 2^128 is no float.
inline F scale_by_power(F x, F n) {
  const I whole = _mm256_cvtps_epi32(n);
  const I half = _mm256_srai_epi32(whole, 1);
  return mul(mul(x, power_of_two(half)), power_of_two(_mm256_sub_epi32(whole, half)));
}

/// The two 128-bit halves added.
inline __m128 sum_quarters(F x) {
  return _mm_add_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
}
inline float first_lane(F x) {
  return _mm256_cvtss_f32(x);
}
inline float max_lane(F x) {
  const __m128 quarter = _mm_max_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
  const __m128 pair = _mm_max_ps(quarter, _mm_movehl_ps(quarter, quarter));
  return _mm_cvtss_f32(_mm_max_ss(pair, _mm_movehdup_ps(pair)));
}

inline I int_set1(int32_t x) {
  return _mm256_set1_epi32(x);
}
inline I int_load(const void* p) {
  return _mm256_loadu_si256(static_cast<const __m256i*>(p));
}
inline I int_add(I a, I b) {
  return _mm256_add_epi32(a, b);
}
/// Compilers replace multiplying by a constant that they see with as many shifts and additions as it has bits.
inline I int_mul(I a, I b) {
  asm("" : "+x"(b));
  return _mm256_mullo_epi32(a, b);
}
inline I int_max(I a, I b) {
  return _mm256_max_epi32(a, b);
}
inline F as_float(I bits) {
  return _mm256_castsi256_ps(bits);
}
inline F to_float(I x) {
  return _mm256_cvtepi32_ps(x);
}
inline I to_int(F x) {
  return _mm256_cvtps_epi32(x);
}
template <int kBits>
inline I shift_left(I x) {
  return _mm256_slli_epi32(x, kBits);
}
template <int kBits>
inline I shift_right(I x) {
  return kBits == 0 ? x : _mm256_srli_epi32(x, kBits);
}
inline I int_and(I a, I b) {
  return _mm256_and_si256(a, b);
}
inline I int_or(I a, I b) {
  return _mm256_or_si256(a, b);
}
inline I int_xor(I a, I b) {
  return _mm256_xor_si256(a, b);
}
inline void int_store(void* p, I x) {
  _mm256_storeu_si256(static_cast<__m256i*>(p), x);
}
/// Bytes below 16 replaced by the values of a table of 16.
inline I look_up(const int8_t* table, I codes) {
  return _mm256_shuffle_epi8(_mm256_broadcastsi128_si256(_mm_loadu_si128(reinterpret_cast<const __m128i*>(table))),
                             codes);
}
/// The low 16 bits of every lane as binary16.
inline F low_halves(I x) {
  const I words = int_and(x, int_set1(0xFFFF));
  return _mm256_cvtph_ps(_mm_packus_epi32(_mm256_castsi256_si128(words), _mm256_extracti128_si256(words, 1)));
}
/// 16 bytes each of rows 0 and 4.
inline I load_halves(const std::byte* p, int64_t stride) {
  const auto* low = reinterpret_cast<const __m128i*>(p);
  const auto* high = reinterpret_cast<const __m128i*>(p + 4 * stride);
  return _mm256_inserti128_si256(_mm256_castsi128_si256(_mm_loadu_si128(low)), _mm_loadu_si128(high), 1);
}
/// 8 rows of 16 bytes -> words 0 to 3 of all rows.
inline void load_strip(const std::byte* p, int64_t stride, I (&words)[4]) {
  const I a = load_halves(p, stride), b = load_halves(p + stride, stride);
  const I c = load_halves(p + 2 * stride, stride), d = load_halves(p + 3 * stride, stride);
  const I ab_low = _mm256_unpacklo_epi32(a, b), ab_high = _mm256_unpackhi_epi32(a, b);
  const I cd_low = _mm256_unpacklo_epi32(c, d), cd_high = _mm256_unpackhi_epi32(c, d);
  words[0] = _mm256_unpacklo_epi64(ab_low, cd_low);
  words[1] = _mm256_unpackhi_epi64(ab_low, cd_low);
  words[2] = _mm256_unpacklo_epi64(ab_high, cd_high);
  words[3] = _mm256_unpackhi_epi64(ab_high, cd_high);
}
/// x, computed here: compilers put off additions of integers until all their terms are there, which then leave the
/// registers.
inline I in_order(I x) {
  asm("" : "+x"(x));
  return x;
}
/// Every lane: Σ over 4 bytes of code · x, over words_together() words: begin with the first, add the others, end with
/// acc + the sum. `acc` is only taken at the end here. Wide codes need five instructions of which three or four go to
/// the two units that multiply; multipliers cut into pieces within ±8, which need no signs and add up in 16 bits, gave
/// 124 instead of 129 Gop/s of q8_0 (Zen 3).
template <bool kIsSigned>
inline I word_pairs(I codes, I x) {
  return kIsSigned ? _mm256_maddubs_epi16(_mm256_abs_epi8(codes), _mm256_sign_epi8(x, codes))
                   : _mm256_maddubs_epi16(codes, x);
}
template <bool kIsWide>
inline I begin_words(I /*acc*/, I codes, I x) {
  return word_pairs<kIsWide>(codes, x);
}
template <bool kIsWide>
inline I add_word(I sum, I codes, I x) {
  return in_order(_mm256_add_epi16(sum, word_pairs<kIsWide>(codes, x)));
}
/// acc + the sum times a number from scale_byte().
inline I end_words_scaled(I acc, I sum, I scale) {
  return in_order(_mm256_add_epi32(acc, _mm256_madd_epi16(sum, scale)));
}
inline I end_words(I acc, I sum) {
  return end_words_scaled(acc, sum, _mm256_set1_epi16(1));
}
/// Signed bytes kFirst and kSecond of every lane times 2^kUp as its words of 16 bits.
template <int kFirst, int kSecond, int kUp>
inline I byte_pair(I x) {
  constexpr int kLane = kFirst << 8 | kSecond << 24 | 0x00800080, kStep = 0x04000400;
  const I high = _mm256_shuffle_epi8(
      x, _mm256_setr_epi32(kLane, kLane + kStep, kLane + 2 * kStep, kLane + 3 * kStep, kLane, kLane + kStep,
                           kLane + 2 * kStep, kLane + 3 * kStep));
  return kUp == 8 ? high : _mm256_srai_epi16(high, 8 - kUp);
}
/// Signed byte kByte of every lane times 2^kUp, as end_words_scaled() takes it.
template <int kByte, int kUp>
inline I scale_byte(I x) {
  return byte_pair<kByte, kByte, kUp>(x);
}
/// Every lane: the sum of the products of its two words of 16 bits.
inline I pair_dots(I a, I b) {
  return _mm256_madd_epi16(a, b);
}
inline I bytes_sub(I a, I b) {
  return _mm256_sub_epi8(a, b);
}
inline I magnitudes(I codes) {
  return _mm256_abs_epi8(codes);
}
/// All bits of the bytes below 0.
inline I below_zero(I codes) {
  return _mm256_cmpgt_epi8(_mm256_setzero_si256(), codes);
}
/// Bytes, taken as unsigned, added in every lane. Needs: at most 128 each.
inline I sum_bytes(I x) {
  return end_words(int_set1(0), word_pairs<false>(x, _mm256_set1_epi8(1)));
}
/// The low bytes of 8 integers. Needs: values that fit.
inline void store_bytes(int8_t* p, I x) {
  const __m128i words = _mm_packs_epi32(_mm256_castsi256_si128(x), _mm256_extracti128_si256(x, 1));
  _mm_storel_epi64(reinterpret_cast<__m128i*>(p), _mm_packs_epi16(words, words));
}
inline F load_signed_bytes(const int8_t* p) {
  return to_float(_mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p))));
}

/// Up to 8 words of 16 bits, the rest zero.
inline __m128i load_words_n(const uint16_t* p, int64_t n) {
  alignas(16) uint16_t words[8] = {};
  for (int64_t i = 0; i < n; ++i) words[i] = p[i];
  return _mm_load_si128(reinterpret_cast<const __m128i*>(words));
}
inline I load_unsigned_bytes(const void* p) {
  return _mm256_cvtepu8_epi32(_mm_loadl_epi64(static_cast<const __m128i*>(p)));
}

inline F load_half(const uint16_t* p) {
  return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
}
inline F load_half_n(const uint16_t* p, int64_t n) {
  return _mm256_cvtph_ps(load_words_n(p, n));
}
inline void store_half(uint16_t* p, F x) {
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p),
                   _mm256_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
}
inline F widen_bf16(__m128i x) {
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(x), 16));
}
inline F load_bf16(const uint16_t* p) {
  return widen_bf16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
}
inline F load_bf16_n(const uint16_t* p, int64_t n) {
  return widen_bf16(load_words_n(p, n));
}
inline void store_bf16(uint16_t* p, F x) {
  const I bits = _mm256_castps_si256(x);
  const I high = _mm256_srli_epi32(bits, 16);
  const I odd = _mm256_and_si256(high, int_set1(1));
  const I rounded = _mm256_srli_epi32(_mm256_add_epi32(_mm256_add_epi32(bits, int_set1(0x7FFF)), odd), 16);
  const I quiet = _mm256_or_si256(high, int_set1(0x40));
  const I is_nan = _mm256_castps_si256(_mm256_cmp_ps(x, x, _CMP_UNORD_Q));
  const I result = _mm256_blendv_epi8(rounded, quiet, is_nan);
  const __m128i words = _mm_packus_epi32(_mm256_castsi256_si128(result), _mm256_extracti128_si256(result, 1));
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), words);
}

/// (p0, p0, p1, p1, ...) from 4 floats.
inline F load_doubled(const float* p) {
  const __m256i twice = _mm256_setr_epi32(0, 0, 1, 1, 2, 2, 3, 3);
  return _mm256_permutevar8x32_ps(_mm256_castps128_ps256(_mm_loadu_ps(p)), twice);
}
inline F swap_pairs(F x) {
  return _mm256_permute_ps(x, 0xB1);
}

/// Rows whose position is in (after, until] keep their score, the others get -inf.
inline F mask_by_pos(F score, const int32_t* pos, int32_t after, int32_t until) {
  const I p = int_load(pos);
  const I hidden = _mm256_or_si256(_mm256_cmpgt_epi32(p, int_set1(until)),
                                   _mm256_xor_si256(_mm256_cmpgt_epi32(p, int_set1(after)), int_set1(-1)));
  return _mm256_blendv_ps(score, _mm256_set1_ps(-__builtin_inff()), _mm256_castsi256_ps(hidden));
}

/// 8 rows of 16 halves, `stride` bytes apart -> 16 columns of 8 floats, `out_stride` floats apart.
inline void turn_half_rows(const std::byte* in, int64_t stride, float* out, int64_t out_stride) {
  I r[8], t[8];
  for (int i = 0; i < 8; ++i) r[i] = int_load(in + i * stride);
  for (int i = 0; i < 8; i += 2) {  // t[i]: columns 0 to 3 of rows i and i + 1, and 8 to 11; t[i + 1]: 4 to 7, and 12 to 15
    t[i] = _mm256_unpacklo_epi16(r[i], r[i + 1]);
    t[i + 1] = _mm256_unpackhi_epi16(r[i], r[i + 1]);
  }
  for (int i = 0; i < 8; i += 4)
    for (int j = 0; j < 2; ++j) {  // r[i + 2 j]: columns 4 j and 4 j + 1 of rows i to i + 3; r[i + 2 j + 1]: the next two
      r[i + 2 * j] = _mm256_unpacklo_epi32(t[i + j], t[i + 2 + j]);
      r[i + 2 * j + 1] = _mm256_unpackhi_epi32(t[i + j], t[i + 2 + j]);
    }
  for (int j = 0; j < 4; ++j) {
    const I even = _mm256_unpacklo_epi64(r[j], r[4 + j]), odd = _mm256_unpackhi_epi64(r[j], r[4 + j]);
    float* to = out + 2 * j * out_stride;
    store(to, _mm256_cvtph_ps(_mm256_castsi256_si128(even)));
    store(to + out_stride, _mm256_cvtph_ps(_mm256_castsi256_si128(odd)));
    store(to + 8 * out_stride, _mm256_cvtph_ps(_mm256_extracti128_si256(even, 1)));
    store(to + 9 * out_stride, _mm256_cvtph_ps(_mm256_extracti128_si256(odd, 1)));
  }
}

inline void store_row(std::byte* p, F x) {
  store(reinterpret_cast<float*>(p), x);
}

/// 8 rows of 8 words -> the transposed 8 rows; strides in bytes.
inline void transpose_words(const std::byte* in, int64_t in_stride, std::byte* out, int64_t out_stride) {
  F r[8], t[8];
  for (int i = 0; i < 8; ++i) r[i] = load(reinterpret_cast<const float*>(in + i * in_stride));
  for (int i = 0; i < 8; i += 2) {
    t[i] = _mm256_unpacklo_ps(r[i], r[i + 1]);
    t[i + 1] = _mm256_unpackhi_ps(r[i], r[i + 1]);
  }
  for (int i = 0; i < 8; i += 4) {
    r[i] = _mm256_shuffle_ps(t[i], t[i + 2], 0x44);
    r[i + 1] = _mm256_shuffle_ps(t[i], t[i + 2], 0xEE);
    r[i + 2] = _mm256_shuffle_ps(t[i + 1], t[i + 3], 0x44);
    r[i + 3] = _mm256_shuffle_ps(t[i + 1], t[i + 3], 0xEE);
  }
  for (int i = 0; i < 4; ++i) {
    store_row(out + i * out_stride, _mm256_permute2f128_ps(r[i], r[4 + i], 0x20));
    store_row(out + (4 + i) * out_stride, _mm256_permute2f128_ps(r[i], r[4 + i], 0x31));
  }
}
