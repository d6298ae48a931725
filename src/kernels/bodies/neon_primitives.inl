// SPDX-License-Identifier: MIT
// What the shared bodies are written in, for 4 lanes. Included inside a target region and namespace.
//
// Source:  Arm C Language Extensions, "Advanced SIMD (Neon) intrinsics"; what an instruction does with NaN, signed
// zeros and rounding: Arm Architecture Reference Manual for A-profile, C7.

using F = float32x4_t;
using I = int32x4_t;
constexpr int64_t kLanes = 4;
constexpr bool kWideDot = false;  // products take signed bytes, so wide codes are signed
constexpr bool kFlipsWide = false;
constexpr int words_together(int) {
  return kQ8Group / 4;  // of a whole group: sums have 32 bits
}
// Register tiles: 32 vector registers. Chosen so that no tile spills and its sums hide a latency of 4 on two
// units; not measured on an Arm CPU.
constexpr int kQuantPanels = 4, kQuantColumns = 3;  // 12 integer and 12 float sums
constexpr int64_t kColumnBlockCodes = int64_t{1} << 40;  // blocks were not measured
constexpr int kPackedColumns = 4;
constexpr int kFloatRows = 4, kFloatColumns = 4;
constexpr bool kLaysSideBySide = false;  // not measured
constexpr int kGemmRows = 8, kGemmVectors = 3;
constexpr int kScoreQueries = 3, kScoreChains = 2, kScoreBlocks = 1;
constexpr int kMixQueries = 4;
constexpr int kMixVectors[kMixQueries + 1] = {0, 4, 4, 4, 4};  // of the value, that so many queries mix at once

inline F zero() {
  return vdupq_n_f32(0.0f);
}
inline F set1(float x) {
  return vdupq_n_f32(x);
}
inline F load(const float* p) {
  return vld1q_f32(p);
}
inline void store(float* p, F x) {
  vst1q_f32(p, x);
}
/// The first n of 4 floats, the rest zero. Needs: n from 1 to 3.
inline F load_n(const float* p, int64_t n) {
  if (n == 1) return vld1q_lane_f32(p, zero(), 0);
  const F pair = vcombine_f32(vld1_f32(p), vdup_n_f32(0.0f));
  return n == 2 ? pair : vld1q_lane_f32(p + 2, pair, 2);
}
inline void store_n(float* p, F x, int64_t n) {
  if (n == 1) {
    vst1q_lane_f32(p, x, 0);
    return;
  }
  vst1_f32(p, vget_low_f32(x));
  if (n == 3) vst1q_lane_f32(p + 2, x, 2);
}
inline F add(F a, F b) {
  return vaddq_f32(a, b);
}
inline F sub(F a, F b) {
  return vsubq_f32(a, b);
}
inline F mul(F a, F b) {
  return vmulq_f32(a, b);
}
inline F div(F a, F b) {
  return vdivq_f32(a, b);
}
inline F fma(F a, F b, F c) {
  return vfmaq_f32(c, a, b);
}
inline F nfma(F a, F b, F c) {
  return vfmsq_f32(c, a, b);
}  // c - a b
/// a b - c in even lanes, a b + c in odd ones.
inline F fmaddsub(F a, F b, F c) {
  const uint32x4_t even_signs = vreinterpretq_u32_u64(vdupq_n_u64(0x80000000u));
  return fma(a, b, vreinterpretq_f32_u32(veorq_u32(vreinterpretq_u32_f32(c), even_signs)));
}
// Compared and selected, because the instructions FMAX and FMIN return NaN where either is NaN.
inline F max(F a, F b) {
  return vbslq_f32(vcgtq_f32(a, b), a, b);
}  // b where either is NaN
inline F min(F a, F b) {
  return vbslq_f32(vcltq_f32(a, b), a, b);
}
inline F round_to_int(F x) {
  return vrndnq_f32(x);
}
inline F round_down_magnitude(F x) {
  return vrndq_f32(x);
}
inline F with_sign_of(F magnitude, F x) {
  return vbslq_f32(vdupq_n_u32(0x80000000u), x, magnitude);
}
inline F absolute(F x) {
  return vabsq_f32(x);
}
/// x, kept from being fused into an addition that follows: for results that must be the reference's to the bit.
inline F unfused(F x) {
  asm("" : "+w"(x));
  return x;
}
/// y where x >= bound, else 0.
inline F zero_below(F x, F bound, F y) {
  return vreinterpretq_f32_u32(vbicq_u32(vreinterpretq_u32_f32(y), vcltq_f32(x, bound)));
}
inline F power_of_two(I e) {
  return vreinterpretq_f32_s32(vshlq_n_s32(vaddq_s32(e, vdupq_n_s32(127)), 23));
}
/// x · 2^n for whole n in [-150, 128]; in two steps because 2^128 is no float.
inline F scale_by_power(F x, F n) {
  const I whole = vcvtnq_s32_f32(n);
  const I half = vshrq_n_s32(whole, 1);
  return mul(mul(x, power_of_two(half)), power_of_two(vsubq_s32(whole, half)));
}

using Quad = F;  // four floats

inline Quad load_quad(const float* p) {
  return load(p);
}
inline void store_quad(float* p, Quad x) {
  store(p, x);
}
inline Quad add_quads(Quad a, Quad b) {
  return add(a, b);
}
/// Lanes added in a fixed order: (0 + 1) + (2 + 3). sum_lanes4 adds in the same order.
inline float sum_lanes(F x) {
  return vpadds_f32(vget_low_f32(vpaddq_f32(x, x)));
}
inline Quad sum_lanes4(F a, F b, F c, F d) {
  return vpaddq_f32(vpaddq_f32(a, b), vpaddq_f32(c, d));
}
inline float first_lane(F x) {
  return vgetq_lane_f32(x, 0);
}
inline float max_lane(F x) {
  return vmaxvq_f32(x);
}

inline I int_set1(int32_t x) {
  return vdupq_n_s32(x);
}
inline I int_load(const void* p) {
  return vreinterpretq_s32_u8(vld1q_u8(static_cast<const uint8_t*>(p)));
}
inline void int_store(void* p, I x) {
  vst1q_u8(static_cast<uint8_t*>(p), vreinterpretq_u8_s32(x));
}
inline I int_add(I a, I b) {
  return vaddq_s32(a, b);
}
inline I int_mul(I a, I b) {
  return vmulq_s32(a, b);
}
inline I int_max(I a, I b) {
  return vmaxq_s32(a, b);
}
inline I int_and(I a, I b) {
  return vandq_s32(a, b);
}
inline I int_or(I a, I b) {
  return vorrq_s32(a, b);
}
inline I int_xor(I a, I b) {
  return veorq_s32(a, b);
}
inline F as_float(I bits) {
  return vreinterpretq_f32_s32(bits);
}
inline F to_float(I x) {
  return vcvtq_f32_s32(x);
}
inline I to_int(F x) {
  return vcvtnq_s32_f32(x);
}
template <int kBits>
inline I shift_left(I x) {
  return vshlq_n_s32(x, kBits);
}
template <int kBits>
inline I shift_right(I x) {
  if constexpr (kBits == 0)
    return x;
  else
    return vreinterpretq_s32_u32(vshrq_n_u32(vreinterpretq_u32_s32(x), kBits));
}
/// Bytes below 16 replaced by the values of a table of 16.
inline I look_up(const int8_t* table, I codes) {
  return vreinterpretq_s32_s8(vqtbl1q_s8(vld1q_s8(table), vreinterpretq_u8_s32(codes)));
}
/// The low 16 bits of every lane.
inline uint16x4_t low_words(uint32x4_t x) {
  return vmovn_u32(x);
}
/// The low 16 bits of every lane as binary16.
inline F low_halves(I x) {
  return vcvt_f32_f16(vreinterpret_f16_u16(low_words(vreinterpretq_u32_s32(x))));
}
/// 4 rows of 4 words -> the words of all rows.
inline void transpose(const I (&rows)[4], I (&words)[4]) {
  const int64x2_t ab_even = vreinterpretq_s64_s32(vtrn1q_s32(rows[0], rows[1]));
  const int64x2_t ab_odd = vreinterpretq_s64_s32(vtrn2q_s32(rows[0], rows[1]));
  const int64x2_t cd_even = vreinterpretq_s64_s32(vtrn1q_s32(rows[2], rows[3]));
  const int64x2_t cd_odd = vreinterpretq_s64_s32(vtrn2q_s32(rows[2], rows[3]));
  words[0] = vreinterpretq_s32_s64(vtrn1q_s64(ab_even, cd_even));
  words[1] = vreinterpretq_s32_s64(vtrn1q_s64(ab_odd, cd_odd));
  words[2] = vreinterpretq_s32_s64(vtrn2q_s64(ab_even, cd_even));
  words[3] = vreinterpretq_s32_s64(vtrn2q_s64(ab_odd, cd_odd));
}
/// 4 rows of 16 bytes -> words 0 to 3 of all rows.
inline void load_strip(const std::byte* p, int64_t stride, I (&words)[4]) {
  const I rows[4] = {int_load(p), int_load(p + stride), int_load(p + 2 * stride), int_load(p + 3 * stride)};
  transpose(rows, words);
}
/// 4 rows of 4 words -> the transposed 4 rows; strides in bytes.
inline void transpose_words(const std::byte* in, int64_t in_stride, std::byte* out, int64_t out_stride) {
  I words[4];
  load_strip(in, in_stride, words);
  for (int i = 0; i < 4; ++i) int_store(out + i * out_stride, words[i]);
}
/// Every lane: acc + Σ over 4 bytes of code · x, for any number of words: begin with the first, add the others. Codes
/// that are no wide ones are below 128.
template <bool kIsWide>
inline I begin_words(I acc, I codes, I x) {
  return vdotq_s32(acc, vreinterpretq_s8_s32(codes), vreinterpretq_s8_s32(x));
}
template <bool kIsWide>
inline I add_word(I sum, I codes, I x) {
  return begin_words<kIsWide>(sum, codes, x);
}
inline I end_words(I /*acc*/, I sum) {
  return sum;
}
/// acc + the sum times a number from scale_byte().
inline I end_words_scaled(I acc, I sum, I scale) {
  return vmlaq_s32(acc, sum, scale);
}
/// Signed bytes of every lane, those at kAt... of it, the others (kZero) 0.
constexpr uint8_t kZero = 0xF0;
template <uint8_t... kAt>
inline int8x16_t lane_bytes(I x) {
  static_assert(sizeof...(kAt) == 4);
  constexpr uint8_t kOrder[16] = {kAt..., (kAt + 4)..., (kAt + 8)..., (kAt + 12)...};
  return vqtbl1q_s8(vreinterpretq_s8_s32(x), vld1q_u8(kOrder));
}
/// Signed byte kByte of every lane times 2^kUp, as end_words_scaled() takes it.
template <int kByte, int kUp>
inline I scale_byte(I x) {
  return vshrq_n_s32(vreinterpretq_s32_s8(lane_bytes<kZero, kZero, kZero, kByte>(x)), 24 - kUp);
}
/// Signed bytes kFirst and kSecond of every lane times 2^kUp as its words of 16 bits.
template <int kFirst, int kSecond, int kUp>
inline I byte_pair(I x) {
  const int16x8_t high = vreinterpretq_s16_s8(lane_bytes<kZero, kFirst, kZero, kSecond>(x));
  if constexpr (kUp == 8)
    return vreinterpretq_s32_s16(high);
  else
    return vreinterpretq_s32_s16(vshrq_n_s16(high, 8 - kUp));
}
/// Every lane: the sum of the products of its two words of 16 bits.
inline I pair_dots(I a, I b) {
  const int16x8_t x = vreinterpretq_s16_s32(a), y = vreinterpretq_s16_s32(b);
  return vpaddq_s32(vmull_s16(vget_low_s16(x), vget_low_s16(y)), vmull_high_s16(x, y));
}
inline I bytes_sub(I a, I b) {
  return vreinterpretq_s32_s8(vsubq_s8(vreinterpretq_s8_s32(a), vreinterpretq_s8_s32(b)));
}
/// The low bytes of 4 integers.
inline void store_bytes(int8_t* p, I x) {
  const int16x4_t words = vmovn_s32(x);
  const int32_t bytes = vget_lane_s32(vreinterpret_s32_s8(vmovn_s16(vcombine_s16(words, words))), 0);
  __builtin_memcpy(p, &bytes, 4);
}
/// 4 bytes and 4 of anything.
inline uint8x8_t load_bytes(const void* p) {
  uint32_t bytes;
  __builtin_memcpy(&bytes, p, 4);
  return vreinterpret_u8_u32(vdup_n_u32(bytes));
}
inline F load_signed_bytes(const int8_t* p) {
  return to_float(vmovl_s16(vget_low_s16(vmovl_s8(vreinterpret_s8_u8(load_bytes(p))))));
}
inline I load_unsigned_bytes(const void* p) {
  return vreinterpretq_s32_u32(vmovl_u16(vget_low_u16(vmovl_u8(load_bytes(p)))));
}
/// The values that a table of 16 has for the low nibbles of 16 bytes, then those for the high ones.
inline void store_nibbles(int8_t (&codes)[32], const uint8_t* bytes, const int8_t* table) {
  const uint8x16_t packed = vld1q_u8(bytes);
  const int8x16_t values = vld1q_s8(table);
  vst1q_s8(codes, vqtbl1q_s8(values, vandq_u8(packed, vdupq_n_u8(15))));
  vst1q_s8(codes + 16, vqtbl1q_s8(values, vshrq_n_u8(packed, 4)));
}

/// Up to 4 words of 16 bits, the rest zero.
inline uint16x4_t load_words_n(const uint16_t* p, int64_t n) {
  uint16_t words[4] = {};
  for (int64_t i = 0; i < n; ++i) words[i] = p[i];
  return vld1_u16(words);
}
inline F widen_half(uint16x4_t x) {
  return vcvt_f32_f16(vreinterpret_f16_u16(x));
}
inline F load_half(const uint16_t* p) {
  return widen_half(vld1_u16(p));
}
inline F load_half_n(const uint16_t* p, int64_t n) {
  return widen_half(load_words_n(p, n));
}
inline void store_half(uint16_t* p, F x) {
  vst1_u16(p, vreinterpret_u16_f16(vcvt_f16_f32(x)));
}
inline float half_scale(uint16_t h) {
  return first_lane(widen_half(vdup_n_u16(h)));
}
inline uint16_t half_of(float x) {
  return vget_lane_u16(vreinterpret_u16_f16(vcvt_f16_f32(set1(x))), 0);
}
inline F widen_bf16(uint16x4_t x) {
  return vreinterpretq_f32_u32(vshll_n_u16(x, 16));
}
inline F load_bf16(const uint16_t* p) {
  return widen_bf16(vld1_u16(p));
}
inline F load_bf16_n(const uint16_t* p, int64_t n) {
  return widen_bf16(load_words_n(p, n));
}
/// Rounded to nearest even; NaN stays NaN.
inline void store_bf16(uint16_t* p, F x) {
  const uint32x4_t bits = vreinterpretq_u32_f32(x);
  const uint32x4_t high = vshrq_n_u32(bits, 16);
  const uint32x4_t odd = vandq_u32(high, vdupq_n_u32(1));
  const uint32x4_t rounded = vshrq_n_u32(vaddq_u32(vaddq_u32(bits, vdupq_n_u32(0x7FFF)), odd), 16);
  const uint32x4_t quiet = vorrq_u32(high, vdupq_n_u32(0x40));
  vst1_u16(p, low_words(vbslq_u32(vceqq_f32(x, x), rounded, quiet)));
}

/// (p0, p0, p1, p1) from 2 floats.
inline F load_doubled(const float* p) {
  const float32x2_t pair = vld1_f32(p);
  return vcombine_f32(vdup_lane_f32(pair, 0), vdup_lane_f32(pair, 1));
}
inline F swap_pairs(F x) {
  return vrev64q_f32(x);
}

/// Rows whose position is in (after, until] keep their score, the others get -inf.
inline F mask_by_pos(F score, const int32_t* pos, int32_t after, int32_t until) {
  const I p = int_load(pos);
  const uint32x4_t visible = vandq_u32(vcgtq_s32(p, int_set1(after)), vcleq_s32(p, int_set1(until)));
  return vbslq_f32(visible, score, set1(-__builtin_inff()));
}
