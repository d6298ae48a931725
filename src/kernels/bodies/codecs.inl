// SPDX-License-Identifier: MIT
// Rows of the KV cache to floats and back, to the bit as the reference codecs in tensor/formats do; formats
// without a fast path here go through those. Included inside a target region and namespace.

void decode_f16(const std::byte* row, int64_t n, float* out) {
  const uint16_t* in = reinterpret_cast<const uint16_t*>(row);
  over_lanes(
      n, [&](int64_t i) { store(out + i, load_half(in + i)); },
      [&](int64_t i, int64_t rest) { store_n(out + i, load_half_n(in + i, rest), rest); });
}

void decode_bf16(const std::byte* row, int64_t n, float* out) {
  const uint16_t* in = reinterpret_cast<const uint16_t*>(row);
  over_lanes(
      n, [&](int64_t i) { store(out + i, load_bf16(in + i)); },
      [&](int64_t i, int64_t rest) { store_n(out + i, load_bf16_n(in + i, rest), rest); });
}

void decode_q8_0(const std::byte* row, int64_t n, float* out) {
  const BlockQ8_0* blocks = reinterpret_cast<const BlockQ8_0*>(row);
  for (int64_t b = 0; b < n / 32; ++b) {
    const F d = set1(half_scale(blocks[b].d));
    for (int64_t i = 0; i < 32; i += kLanes) store(out + 32 * b + i, mul(load_signed_bytes(blocks[b].qs + i), d));
  }
}

constexpr std::array<int8_t, 16> numbers_from(int8_t first) {
  std::array<int8_t, 16> numbers{};
  for (int8_t& number : numbers) number = first++;
  return numbers;
}
constexpr std::array<int8_t, 16> kQ4Values = numbers_from(-8), kLowQ5Values = numbers_from(-16);

inline void store_codes(int8_t (&codes)[32], const BlockQ4_0& block) {
  store_nibbles(codes, block.qs, kQ4Values.data());
}
inline void store_codes(int8_t (&codes)[32], const BlockIQ4_NL& block) {
  store_nibbles(codes, block.qs, kIq4Values.data());
}
inline void store_codes(int8_t (&codes)[32], const BlockQ5_0& block) {
  store_nibbles(codes, block.qs, kLowQ5Values.data());
  // A fifth bit adds 16 to -16 + nibble: it clears the high bits of the byte.
  for (int i = 0; i < 4; ++i) {
    const uint64_t bits = block.qh[i];
    const uint64_t spread = ((bits & 127) * 0x2040810204081 & 0x101010101010101) | (bits >> 7) << 56;
    uint64_t eight;
    __builtin_memcpy(&eight, codes + 8 * i, 8);
    eight &= ~(spread * 0xF0);
    __builtin_memcpy(codes + 8 * i, &eight, 8);
  }
}

/// Not inlined into decode_row, whose other formats would be slower for it: f16 keys of 64 queries by 4 %.
template <typename Block>
__attribute__((noinline)) void decode_codes(const std::byte* row, int64_t n, float* out) {
  const Block* blocks = reinterpret_cast<const Block*>(row);
  for (int64_t b = 0; b < n / 32; ++b) {
    int8_t codes[32];
    store_codes(codes, blocks[b]);
    const F d = set1(half_scale(blocks[b].d));
    for (int64_t i = 0; i < 32; i += kLanes) store(out + 32 * b + i, mul(load_signed_bytes(codes + i), d));
  }
}

void decode_row(DType dtype, const std::byte* row, int64_t n, float* out) {
  switch (dtype) {
    case DType::f32:
      __builtin_memcpy(out, row, static_cast<size_t>(n) * sizeof(float));
      return;
    case DType::f16:
      decode_f16(row, n, out);
      return;
    case DType::bf16:
      decode_bf16(row, n, out);
      return;
    case DType::q8_0:
      decode_q8_0(row, n, out);
      return;
    case DType::q4_0:
      decode_codes<BlockQ4_0>(row, n, out);
      return;
    case DType::q5_0:
      decode_codes<BlockQ5_0>(row, n, out);
      return;
    case DType::iq4_nl:
      decode_codes<BlockIQ4_NL>(row, n, out);
      return;
    default:
      tensor_format(dtype).dequantize(row, n, out);
      return;
  }
}

/// Stores whole vectors with kPut and what remains through a vector of its own.
template <void (*kPut)(uint16_t*, F)>
inline void encode_words(const float* x, int64_t n, std::byte* out) {
  uint16_t* to = reinterpret_cast<uint16_t*>(out);
  over_lanes(
      n, [&](int64_t i) { kPut(to + i, load(x + i)); },
      [&](int64_t i, int64_t rest) {
        uint16_t words[kLanes];
        kPut(words, load_n(x + i, rest));
        __builtin_memcpy(to + i, words, static_cast<size_t>(rest) * sizeof(uint16_t));
      });
}

constexpr float kLargestHalf = 65504.0f;

/// A block scale as the reference codecs hold it: finite in binary16, 0 for NaN.
inline float held_scale(float d) {
  if (d != d) return 0.0f;
  return d > kLargestHalf ? kLargestHalf : d < -kLargestHalf ? -kLargestHalf : d;
}
inline float inverse_or_zero(float d) {
  return d != 0.0f ? 1.0f / d : 0.0f;
}
/// x held in [low, high] and cut towards zero; NaN gives low.
inline I truncated(F x, float low, float high) {
  const F held = min(max(x, set1(low)), set1(high));
  return to_int(round_down_magnitude(held));
}

void encode_q8_0(const float* x, int64_t n, std::byte* out) {
  BlockQ8_0* blocks = reinterpret_cast<BlockQ8_0*>(out);
  for (int64_t b = 0; b < n / 32; ++b, x += 32) {
    F largest = zero();
    for (int64_t i = 0; i < 32; i += kLanes) largest = max(absolute(load(x + i)), largest);
    const float d = held_scale(max_lane(largest) / 127.0f);
    const F inverse = set1(inverse_or_zero(d));
    blocks[b].d = half_of(d);
    for (int64_t i = 0; i < 32; i += kLanes) {
      // Half away from zero: adding the largest float below 0.5 with the sign of v and cutting rounds so for all
      // |v| < 2^22.
      const F v = unfused(mul(load(x + i), inverse));
      store_bytes(blocks[b].qs + i, truncated(add(v, with_sign_of(set1(0.49999997f), v)), -127.0f, 127.0f));
    }
  }
}

void encode_q4_0(const float* x, int64_t n, std::byte* out) {
  BlockQ4_0* blocks = reinterpret_cast<BlockQ4_0*>(out);
  for (int64_t b = 0; b < n / 32; ++b, x += 32) {
    F largest = zero();
    for (int64_t i = 0; i < 32; i += kLanes) largest = max(absolute(load(x + i)), largest);
    const float amax = max_lane(largest);
    float value = 0.0f;  // the first of largest magnitude, with its sign
    for (int64_t i = 31; i >= 0; --i)
      if (__builtin_fabsf(x[i]) == amax) value = x[i];
    const float d = held_scale(value / -8.0f);
    const F inverse = set1(inverse_or_zero(d));
    blocks[b].d = half_of(d);
    int8_t codes[32];
    for (int64_t i = 0; i < 32; i += kLanes)
      store_bytes(codes + i, truncated(add(unfused(mul(load(x + i), inverse)), set1(8.5f)), 0.0f, 15.0f));
    for (int i = 0; i < 16; ++i) blocks[b].qs[i] = static_cast<uint8_t>(codes[i] | codes[i + 16] << 4);
  }
}

void encode_row(DType dtype, const float* x, int64_t n, std::byte* out) {
  switch (dtype) {
    case DType::f32:
      if (n > 0) __builtin_memcpy(out, x, static_cast<size_t>(n) * sizeof(float));  // no row, no pointer
      return;
    case DType::f16:
      encode_words<store_half>(x, n, out);
      return;
    case DType::bf16:
      encode_words<store_bf16>(x, n, out);
      return;
    case DType::q8_0:
      encode_q8_0(x, n, out);
      return;
    case DType::q4_0:
      encode_q4_0(x, n, out);
      return;
    default:
      tensor_format(dtype).quantize(x, n, out);
      return;
  }
}
