// SPDX-License-Identifier: MIT
// What the primitives of both x86 targets share: vectors of four floats, single halves, nibbles. Included inside a
// target region and namespace, after the target's primitives.

using Quad = __m128;  // four floats

inline Quad load_quad(const float* p) {
  return _mm_loadu_ps(p);
}
inline void store_quad(float* p, Quad x) {
  _mm_storeu_ps(p, x);
}
inline Quad add_quads(Quad a, Quad b) {
  return _mm_add_ps(a, b);
}
/// Lanes added in a fixed order: quarters, then words (0 + 2) + (1 + 3). sum_lanes4 adds in the same order.
inline float sum_lanes(F x) {
  const Quad s = sum_quarters(x);
  const Quad pairs = _mm_add_ps(s, _mm_movehl_ps(s, s));
  return _mm_cvtss_f32(_mm_add_ss(pairs, _mm_movehdup_ps(pairs)));
}
inline Quad sum_lanes4(F a, F b, F c, F d) {
  const Quad qa = sum_quarters(a), qb = sum_quarters(b), qc = sum_quarters(c), qd = sum_quarters(d);
  const Quad ab = _mm_add_ps(_mm_unpacklo_ps(qa, qb), _mm_unpackhi_ps(qa, qb));
  const Quad cd = _mm_add_ps(_mm_unpacklo_ps(qc, qd), _mm_unpackhi_ps(qc, qd));
  return _mm_add_ps(_mm_movelh_ps(ab, cd), _mm_movehl_ps(cd, ab));
}

inline float half_scale(uint16_t h) {
  return _cvtsh_ss(h);
}
inline uint16_t half_of(float x) {
  return static_cast<uint16_t>(_cvtss_sh(x, _MM_FROUND_TO_NEAREST_INT));
}
/// The values that a table of 16 has for the low nibbles of 16 bytes, then those for the high ones.
inline void store_nibbles(int8_t (&codes)[32], const uint8_t* bytes, const int8_t* table) {
  const __m128i packed = _mm_loadu_si128(reinterpret_cast<const __m128i*>(bytes));
  const __m256i both = _mm256_inserti128_si256(_mm256_castsi128_si256(packed), _mm_srli_epi16(packed, 4), 1);
  const __m256i nibbles = _mm256_and_si256(both, _mm256_set1_epi8(15));
  const __m256i values = _mm256_broadcastsi128_si256(_mm_loadu_si128(reinterpret_cast<const __m128i*>(table)));
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(codes), _mm256_shuffle_epi8(values, nibbles));
}
