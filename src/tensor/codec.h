// SPDX-License-Identifier: MIT
// Small pieces that the scalar codecs in formats/ share.
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>

#include "tensor/half.h"

namespace sh::codec {

/// v cut towards zero and held in [low, high]; NaN gives low. A plain cast is undefined for what a byte cannot
/// hold.
inline int truncate_code(float v, int low, int high) {
  if (!(v > static_cast<float>(low))) return low;
  if (v >= static_cast<float>(high)) return high;
  return static_cast<int>(v);
}

/// v rounded half away from zero, held in [low, high]; NaN gives low.
inline int round_code(float v, int low, int high) {
  return truncate_code(std::round(v), low, high);
}

/// A block scale held in the finite range of binary16, so that finite input decodes to finite output; NaN gives 0.
inline float finite_scale(float d) {
  constexpr float kLargestHalf = 65504.0f;
  if (std::isnan(d)) return 0.0f;
  return d > kLargestHalf ? kLargestHalf : d < -kLargestHalf ? -kLargestHalf : d;
}

inline float inverse_or_zero(float d) {
  return d != 0.0f ? 1.0f / d : 0.0f;
}

/// Largest |x|, zero if none is larger; NaN is passed over.
inline float largest_magnitude(const float* x, int n) {
  float largest = 0.0f;
  for (int i = 0; i < n; ++i)
    if (std::abs(x[i]) > largest) largest = std::abs(x[i]);
  return largest;
}

/// The element of largest magnitude with its sign, the first of equals.
inline float signed_largest(const float* x, int n) {
  float largest = 0.0f, value = 0.0f;
  for (int i = 0; i < n; ++i) {
    if (std::abs(x[i]) > largest) {
      largest = std::abs(x[i]);
      value = x[i];
    }
  }
  return value;
}

struct Range {
  float low, high;
};
inline Range value_range(const float* x, int n) {
  Range range{x[0], x[0]};
  for (int i = 1; i < n; ++i) {
    if (x[i] < range.low) range.low = x[i];
    if (x[i] > range.high) range.high = x[i];
  }
  return range;
}

/// Code of element i in Q5_0 and Q5_1: its nibble and, on top, bit i of qh.
inline int five_bit_code(const uint8_t (&qh)[4], const uint8_t (&qs)[16], int i) {
  const int low = (qs[i % 16] >> (4 * (i / 16))) & 15;
  return low | ((qh[i / 8] >> (i % 8)) & 1) << 4;
}
/// Sets the same in a block that is zero there.
inline void add_five_bit_code(uint8_t (&qh)[4], uint8_t (&qs)[16], int i, int code) {
  qs[i % 16] |= static_cast<uint8_t>((code & 15) << (4 * (i / 16)));
  qh[i / 8] |= static_cast<uint8_t>((code >> 4) << (i % 8));
}

/// Bit pair of element i in Q2_K and Q3_K.
inline int two_bit_code(const uint8_t (&qs)[64], int i) {
  return (qs[i / 128 * 32 + i % 32] >> (i % 128 / 32 * 2)) & 3;
}
inline void add_two_bit_code(uint8_t (&qs)[64], int i, int code) {
  qs[i / 128 * 32 + i % 32] |= static_cast<uint8_t>(code << (i % 128 / 32 * 2));
}

/// Nibble of element l of group g in Q4_K and Q5_K.
inline int k_nibble(const uint8_t (&qs)[128], int g, int l) {
  return (qs[g / 2 * 32 + l] >> (4 * (g % 2))) & 15;
}
inline void add_k_nibble(uint8_t (&qs)[128], int g, int l, int code) {
  qs[g / 2 * 32 + l] |= static_cast<uint8_t>(code << (4 * (g % 2)));
}

/// A plain codec's loop over its blocks: fn(block, first element of it).
template <int kElements, typename Block, typename Byte, typename Float, typename Fn>
inline void over_blocks(Byte* bytes, int64_t n, Float* x, Fn fn) {
  Block* block = reinterpret_cast<Block*>(bytes);
  for (int64_t i = 0; i < n / kElements; ++i) fn(block[i], x + i * kElements);
}

}  // namespace sh::codec
