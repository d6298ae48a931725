// SPDX-License-Identifier: MIT
// What the shared bodies are written in, for 16 lanes. Included inside a target region and namespace.

using F = __m512;
using I = __m512i;
constexpr int64_t kLanes = 16;
constexpr bool kWideDot = true;  // products take any unsigned byte, so wide codes are unsigned
constexpr bool kFlipsWide = false;
constexpr int words_together(int) {
  return kQ8Group / 4;  // of a whole group: sums have 32 bits
}
// Register tiles: 32 vector registers.
constexpr int kQuantPanels = 2, kQuantColumns = 6;  // 12 integer and 12 float sums
constexpr int64_t kColumnBlockCodes = int64_t{1} << 40;  // blocks were not measured
constexpr int kPackedColumns = 4;
constexpr int kFloatRows = 4, kFloatColumns = 6;
constexpr bool kLaysSideBySide = false;  // not measured
constexpr int kGemmRows = 8, kGemmVectors = 3;
constexpr int kScoreQueries = 6, kScoreChains = 2, kScoreBlocks = 2;
constexpr int kMixQueries = 4;
constexpr int kMixVectors[kMixQueries + 1] = {0, 4, 4, 4, 4};  // of the value, that so many queries mix at once

inline F zero() {
  return _mm512_setzero_ps();
}
inline F set1(float x) {
  return _mm512_set1_ps(x);
}
inline F load(const float* p) {
  return _mm512_loadu_ps(p);
}
inline void store(float* p, F x) {
  _mm512_storeu_ps(p, x);
}
inline __mmask16 first_lanes(int64_t n) {
  return static_cast<__mmask16>((1u << n) - 1u);
}
inline F load_n(const float* p, int64_t n) {
  return _mm512_maskz_loadu_ps(first_lanes(n), p);
}
inline void store_n(float* p, F x, int64_t n) {
  _mm512_mask_storeu_ps(p, first_lanes(n), x);
}
inline F add(F a, F b) {
  return _mm512_add_ps(a, b);
}
inline F sub(F a, F b) {
  return _mm512_sub_ps(a, b);
}
inline F mul(F a, F b) {
  return _mm512_mul_ps(a, b);
}
inline F div(F a, F b) {
  return _mm512_div_ps(a, b);
}
inline F fma(F a, F b, F c) {
  return _mm512_fmadd_ps(a, b, c);
}
inline F nfma(F a, F b, F c) {
  return _mm512_fnmadd_ps(a, b, c);
}  // c - a b
inline F fmaddsub(F a, F b, F c) {
  return _mm512_fmaddsub_ps(a, b, c);
}
inline F max(F a, F b) {
  return _mm512_max_ps(a, b);
}  // b where either is NaN
inline F min(F a, F b) {
  return _mm512_min_ps(a, b);
}
inline F round_to_int(F x) {
  return _mm512_roundscale_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}
inline F round_down_magnitude(F x) {
  return _mm512_roundscale_ps(x, _MM_FROUND_TO_ZERO | _MM_FROUND_NO_EXC);
}
/// magnitude with the sign of x. Needs: magnitude not negative.
inline F with_sign_of(F magnitude, F x) {
  return _mm512_or_ps(magnitude, _mm512_and_ps(x, _mm512_set1_ps(-0.0f)));
}
inline F absolute(F x) {
  return _mm512_abs_ps(x);
}
/// x, kept from being fused into an addition that follows: for results that must be the reference's to the bit.
inline F unfused(F x) {
  asm("" : "+v"(x));
  return x;
}
/// y where x >= bound, else 0.
inline F zero_below(F x, F bound, F y) {
  return _mm512_maskz_mov_ps(_mm512_cmp_ps_mask(x, bound, _CMP_NLT_UQ), y);
}
/// x · 2^n for whole n.
inline F scale_by_power(F x, F n) {
  return _mm512_scalef_ps(x, n);
}

/// The four 128-bit quarters added.
inline __m128 sum_quarters(F x) {
  const __m256 low = _mm512_castps512_ps256(x);
  const __m256 high = _mm512_extractf32x8_ps(x, 1);
  const __m256 half = _mm256_add_ps(low, high);
  return _mm_add_ps(_mm256_castps256_ps128(half), _mm256_extractf128_ps(half, 1));
}
inline float first_lane(F x) {
  return _mm512_cvtss_f32(x);
}
inline float max_lane(F x) {
  const __m256 half = _mm256_max_ps(_mm512_castps512_ps256(x), _mm512_extractf32x8_ps(x, 1));
  const __m128 quarter = _mm_max_ps(_mm256_castps256_ps128(half), _mm256_extractf128_ps(half, 1));
  const __m128 pair = _mm_max_ps(quarter, _mm_movehl_ps(quarter, quarter));
  return _mm_cvtss_f32(_mm_max_ss(pair, _mm_movehdup_ps(pair)));
}

inline I int_set1(int32_t x) {
  return _mm512_set1_epi32(x);
}
inline I int_load(const void* p) {
  return _mm512_loadu_si512(p);
}
inline I int_add(I a, I b) {
  return _mm512_add_epi32(a, b);
}
/// Compilers replace multiplying by a constant that they see with as many shifts and additions as it has bits.
inline I int_mul(I a, I b) {
  asm("" : "+v"(b));
  return _mm512_mullo_epi32(a, b);
}
inline I int_max(I a, I b) {
  return _mm512_max_epi32(a, b);
}
inline F as_float(I bits) {
  return _mm512_castsi512_ps(bits);
}
inline F to_float(I x) {
  return _mm512_cvtepi32_ps(x);
}
inline I to_int(F x) {
  return _mm512_cvtps_epi32(x);
}
template <int kBits>
inline I shift_left(I x) {
  return _mm512_slli_epi32(x, kBits);
}
template <int kBits>
inline I shift_right(I x) {
  return kBits == 0 ? x : _mm512_srli_epi32(x, kBits);
}
inline I int_and(I a, I b) {
  return _mm512_and_si512(a, b);
}
inline I int_or(I a, I b) {
  return _mm512_or_si512(a, b);
}
inline I int_xor(I a, I b) {
  return _mm512_xor_si512(a, b);
}
inline void int_store(void* p, I x) {
  _mm512_storeu_si512(p, x);
}
/// Bytes below 16 replaced by the values of a table of 16.
inline I look_up(const int8_t* table, I codes) {
  return _mm512_shuffle_epi8(_mm512_broadcast_i32x4(_mm_loadu_si128(reinterpret_cast<const __m128i*>(table))),
                             codes);
}
/// The low 16 bits of every lane as binary16.
inline F low_halves(I x) {
  return _mm512_cvtph_ps(_mm512_cvtepi32_epi16(x));
}
/// 16 bytes each of rows 0, 4, 8, 12.
inline I load_quarters(const std::byte* p, int64_t stride) {
  const auto* at = reinterpret_cast<const char*>(p);
  I x = _mm512_castsi128_si512(_mm_loadu_si128(reinterpret_cast<const __m128i*>(at)));
  x = _mm512_inserti32x4(x, _mm_loadu_si128(reinterpret_cast<const __m128i*>(at + 4 * stride)), 1);
  x = _mm512_inserti32x4(x, _mm_loadu_si128(reinterpret_cast<const __m128i*>(at + 8 * stride)), 2);
  return _mm512_inserti32x4(x, _mm_loadu_si128(reinterpret_cast<const __m128i*>(at + 12 * stride)), 3);
}
/// 16 rows of 16 bytes -> words 0 to 3 of all rows.
inline void load_strip(const std::byte* p, int64_t stride, I (&words)[4]) {
  const I a = load_quarters(p, stride), b = load_quarters(p + stride, stride);
  const I c = load_quarters(p + 2 * stride, stride), d = load_quarters(p + 3 * stride, stride);
  const I ab_low = _mm512_unpacklo_epi32(a, b), ab_high = _mm512_unpackhi_epi32(a, b);
  const I cd_low = _mm512_unpacklo_epi32(c, d), cd_high = _mm512_unpackhi_epi32(c, d);
  words[0] = _mm512_unpacklo_epi64(ab_low, cd_low);
  words[1] = _mm512_unpackhi_epi64(ab_low, cd_low);
  words[2] = _mm512_unpacklo_epi64(ab_high, cd_high);
  words[3] = _mm512_unpackhi_epi64(ab_high, cd_high);
}
/// Every lane: acc + Σ over 4 bytes of code · x, for any number of words: begin with the first, add the others.
template <bool kIsWide>
inline I begin_words(I acc, I codes, I x) {
  return _mm512_dpbusd_epi32(acc, codes, x);
}
template <bool kIsWide>
inline I add_word(I sum, I codes, I x) {
  return _mm512_dpbusd_epi32(sum, codes, x);
}
inline I end_words(I /*acc*/, I sum) {
  return sum;
}
/// acc + the sum times a number from scale_byte().
inline I end_words_scaled(I acc, I sum, I scale) {
  return _mm512_add_epi32(acc, _mm512_mullo_epi32(sum, scale));
}
/// Signed byte kByte of every lane times 2^kUp, as end_words_scaled() takes it.
template <int kByte, int kUp>
inline I scale_byte(I x) {
  constexpr int kLane = kByte << 24 | 0x00808080, kStep = 0x04000000;
  const __m128i order = _mm_setr_epi32(kLane, kLane + kStep, kLane + 2 * kStep, kLane + 3 * kStep);
  return _mm512_srai_epi32(_mm512_shuffle_epi8(x, _mm512_broadcast_i32x4(order)), 24 - kUp);
}
/// Signed bytes kFirst and kSecond of every lane times 2^kUp as its words of 16 bits.
template <int kFirst, int kSecond, int kUp>
inline I byte_pair(I x) {
  constexpr int kLane = kFirst << 8 | kSecond << 24 | 0x00800080, kStep = 0x04000400;
  const __m128i order = _mm_setr_epi32(kLane, kLane + kStep, kLane + 2 * kStep, kLane + 3 * kStep);
  return _mm512_srai_epi16(_mm512_shuffle_epi8(x, _mm512_broadcast_i32x4(order)), 8 - kUp);
}
/// Every lane: the sum of the products of its two words of 16 bits.
inline I pair_dots(I a, I b) {
  return _mm512_dpwssd_epi32(_mm512_setzero_si512(), a, b);
}
inline I bytes_sub(I a, I b) {
  return _mm512_sub_epi8(a, b);
}
/// The low bytes of 16 integers.
inline void store_bytes(int8_t* p, I x) {
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm512_cvtepi32_epi8(x));
}
inline F load_signed_bytes(const int8_t* p) {
  return to_float(_mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))));
}

inline I load_unsigned_bytes(const void* p) {
  return _mm512_cvtepu8_epi32(_mm_loadu_si128(static_cast<const __m128i*>(p)));
}

inline F load_half(const uint16_t* p) {
  return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
}
inline F load_half_n(const uint16_t* p, int64_t n) {
  return _mm512_cvtph_ps(_mm256_maskz_loadu_epi16(first_lanes(n), p));
}
inline void store_half(uint16_t* p, F x) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p),
                      _mm512_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
}
inline F widen_bf16(__m256i x) {
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(x), 16));
}
inline F load_bf16(const uint16_t* p) {
  return widen_bf16(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
}
inline F load_bf16_n(const uint16_t* p, int64_t n) {
  return widen_bf16(_mm256_maskz_loadu_epi16(first_lanes(n), p));
}
/// Rounded to nearest even with integers: the instruction for it flushes subnormals.
inline void store_bf16(uint16_t* p, F x) {
  const I bits = _mm512_castps_si512(x);
  const I odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), int_set1(1));
  const I rounded = _mm512_srli_epi32(_mm512_add_epi32(_mm512_add_epi32(bits, int_set1(0x7FFF)), odd), 16);
  const I quiet = _mm512_or_si512(_mm512_srli_epi32(bits, 16), int_set1(0x40));
  const I result = _mm512_mask_mov_epi32(rounded, _mm512_cmp_ps_mask(x, x, _CMP_UNORD_Q), quiet);
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtepi32_epi16(result));
}

/// (p0, p0, p1, p1, ...) from 8 floats.
inline F load_doubled(const float* p) {
  const __m512i twice = _mm512_setr_epi32(0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5, 6, 6, 7, 7);
  return _mm512_permutexvar_ps(twice, _mm512_castps256_ps512(_mm256_loadu_ps(p)));
}
inline F swap_pairs(F x) {
  return _mm512_permute_ps(x, 0xB1);
}

/// Rows whose position is in (after, until] keep their score, the others get -inf.
inline F mask_by_pos(F score, const int32_t* pos, int32_t after, int32_t until) {
  const I p = int_load(pos);
  const __mmask16 visible =
      _mm512_cmpgt_epi32_mask(p, int_set1(after)) & _mm512_cmple_epi32_mask(p, int_set1(until));
  return _mm512_mask_mov_ps(_mm512_set1_ps(-__builtin_inff()), visible, score);
}

inline void store_row(std::byte* p, F x) {
  store(reinterpret_cast<float*>(p), x);
}

/// 16 rows of 16 words -> the transposed 16 rows; strides in bytes.
inline void transpose_words(const std::byte* in, int64_t in_stride, std::byte* out, int64_t out_stride) {
  F r[16], t[16];
  for (int i = 0; i < 16; ++i) r[i] = load(reinterpret_cast<const float*>(in + i * in_stride));
  for (int i = 0; i < 16; i += 2) {
    t[i] = _mm512_unpacklo_ps(r[i], r[i + 1]);
    t[i + 1] = _mm512_unpackhi_ps(r[i], r[i + 1]);
  }
  for (int i = 0; i < 16; i += 4) {
    r[i] = _mm512_shuffle_ps(t[i], t[i + 2], 0x44);
    r[i + 1] = _mm512_shuffle_ps(t[i], t[i + 2], 0xEE);
    r[i + 2] = _mm512_shuffle_ps(t[i + 1], t[i + 3], 0x44);
    r[i + 3] = _mm512_shuffle_ps(t[i + 1], t[i + 3], 0xEE);
  }
  for (int i = 0; i < 4; ++i) {  // r[4 g + i]: words i, 4 + i, 8 + i, 12 + i of rows 4 g to 4 g + 3
    t[i] = _mm512_shuffle_f32x4(r[i], r[4 + i], 0x88);
    t[4 + i] = _mm512_shuffle_f32x4(r[i], r[4 + i], 0xDD);
    t[8 + i] = _mm512_shuffle_f32x4(r[8 + i], r[12 + i], 0x88);
    t[12 + i] = _mm512_shuffle_f32x4(r[8 + i], r[12 + i], 0xDD);
  }
  for (int i = 0; i < 4; ++i) {
    store_row(out + i * out_stride, _mm512_shuffle_f32x4(t[i], t[8 + i], 0x88));
    store_row(out + (8 + i) * out_stride, _mm512_shuffle_f32x4(t[i], t[8 + i], 0xDD));
    store_row(out + (4 + i) * out_stride, _mm512_shuffle_f32x4(t[4 + i], t[12 + i], 0x88));
    store_row(out + (12 + i) * out_stride, _mm512_shuffle_f32x4(t[4 + i], t[12 + i], 0xDD));
  }
}
