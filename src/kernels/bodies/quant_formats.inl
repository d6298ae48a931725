// SPDX-License-Identifier: MIT
// Every quantised format as groups of small integers: w = scale · (code - 2^kOffsetBits) + min, in the order of the row. unpack()
// writes the codes of one block and, `stride` floats apart, a scale (and a min) a group. Codes of kWide formats fill the byte: they
// are written unsigned with offset 128 where the target's dot4 takes any byte, else signed with no offset.
// Included inside a target region and namespace.

constexpr int kNoOffset = -1;
constexpr int kWideOffsetBits = kWideDot ? 7 : kNoOffset;
constexpr uint8_t kWideFlip = kWideDot ? 0x80 : 0;

inline float half_scale(uint16_t h) { return _cvtsh_ss(h); }

/// 16 bytes -> 32 codes: the low nibbles, then the high ones.
inline __m256i nibbles(const uint8_t* qs) {
  const __m128i packed = _mm_loadu_si128(reinterpret_cast<const __m128i*>(qs));
  const __m256i both = _mm256_inserti128_si256(_mm256_castsi128_si256(packed), _mm_srli_epi16(packed, 4), 1);
  return _mm256_and_si256(both, _mm256_set1_epi8(15));
}
/// 32 bits -> 32 bytes of 16 where the bit is set.
inline __m256i fifth_bits(const uint8_t* qh) {
  int32_t bits;
  __builtin_memcpy(&bits, qh, 4);
  const __m256i spread = _mm256_shuffle_epi8(_mm256_set1_epi32(bits),
                                             _mm256_setr_epi8(0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1,  //
                                                              2, 2, 2, 2, 2, 2, 2, 2, 3, 3, 3, 3, 3, 3, 3, 3));
  const __m256i one_each = _mm256_set1_epi64x(static_cast<int64_t>(0x8040201008040201ull));
  const __m256i is_set = _mm256_cmpeq_epi8(_mm256_and_si256(spread, one_each), one_each);
  return _mm256_and_si256(is_set, _mm256_set1_epi8(16));
}
inline void put32(uint8_t* codes, __m256i x) { _mm256_storeu_si256(reinterpret_cast<__m256i*>(codes), x); }
inline __m256i get32(const void* p) { return _mm256_loadu_si256(static_cast<const __m256i*>(p)); }
/// Nibbles 32 to 63 of 32 bytes, shifted down by kShift bits and masked.
template <int kShift>
inline __m256i bits_of(__m256i x, int mask) {
  return _mm256_and_si256(_mm256_srli_epi16(x, kShift), _mm256_set1_epi8(static_cast<char>(mask)));
}
/// Codes replaced by the values of a table.
inline __m256i looked_up(const std::array<int8_t, 16>& table, __m256i codes, uint8_t flip) {
  const __m256i values = _mm256_broadcastsi128_si256(_mm_loadu_si128(reinterpret_cast<const __m128i*>(table.data())));
  return _mm256_xor_si256(_mm256_shuffle_epi8(values, codes), _mm256_set1_epi8(static_cast<char>(flip)));
}

struct CodesQ4_0 {
  using Block = BlockQ4_0;
  static constexpr int kElements = 32, kGroup = 32, kOffsetBits = 3;
  static constexpr bool kHasMin = false, kWide = false;
  static void unpack(const Block& b, uint8_t* codes, float* scale, float*, int64_t) {
    put32(codes, nibbles(b.qs));
    scale[0] = half_scale(b.d);
  }
};

struct CodesQ4_1 {
  using Block = BlockQ4_1;
  static constexpr int kElements = 32, kGroup = 32, kOffsetBits = kNoOffset;
  static constexpr bool kHasMin = true, kWide = false;
  static void unpack(const Block& b, uint8_t* codes, float* scale, float* min, int64_t) {
    put32(codes, nibbles(b.qs));
    scale[0] = half_scale(b.d);
    min[0] = half_scale(b.m);
  }
};

struct CodesQ5_0 {
  using Block = BlockQ5_0;
  static constexpr int kElements = 32, kGroup = 32, kOffsetBits = 4;
  static constexpr bool kHasMin = false, kWide = false;
  static void unpack(const Block& b, uint8_t* codes, float* scale, float*, int64_t) {
    put32(codes, _mm256_or_si256(nibbles(b.qs), fifth_bits(b.qh)));
    scale[0] = half_scale(b.d);
  }
};

struct CodesQ5_1 {
  using Block = BlockQ5_1;
  static constexpr int kElements = 32, kGroup = 32, kOffsetBits = kNoOffset;
  static constexpr bool kHasMin = true, kWide = false;
  static void unpack(const Block& b, uint8_t* codes, float* scale, float* min, int64_t) {
    put32(codes, _mm256_or_si256(nibbles(b.qs), fifth_bits(b.qh)));
    scale[0] = half_scale(b.d);
    min[0] = half_scale(b.m);
  }
};

struct CodesQ8_0 {
  using Block = BlockQ8_0;
  static constexpr int kElements = 32, kGroup = 32, kOffsetBits = kWideOffsetBits;
  static constexpr bool kHasMin = false, kWide = true;
  static void unpack(const Block& b, uint8_t* codes, float* scale, float*, int64_t) {
    put32(codes, _mm256_xor_si256(get32(b.qs), _mm256_set1_epi8(static_cast<char>(kWideFlip))));
    scale[0] = half_scale(b.d);
  }
};

struct CodesIQ4_NL {
  using Block = BlockIQ4_NL;
  static constexpr int kElements = 32, kGroup = 32, kOffsetBits = kWideOffsetBits;
  static constexpr bool kHasMin = false, kWide = true;
  static void unpack(const Block& b, uint8_t* codes, float* scale, float*, int64_t) {
    put32(codes, looked_up(kIq4Values, nibbles(b.qs), kWideFlip));
    scale[0] = half_scale(b.d);
  }
};

struct CodesMXFP4 {
  using Block = BlockMXFP4;
  static constexpr int kElements = 32, kGroup = 32, kOffsetBits = kWideOffsetBits;
  static constexpr bool kHasMin = false, kWide = true;
  static void unpack(const Block& b, uint8_t* codes, float* scale, float*, int64_t) {
    put32(codes, looked_up(kMxfp4Values, nibbles(b.qs), kWideFlip));
    scale[0] = mxfp4_scale(b.e);
  }
};

struct CodesIQ4_XS {
  using Block = BlockIQ4_XS;
  static constexpr int kElements = 256, kGroup = 32, kOffsetBits = kWideOffsetBits;
  static constexpr bool kHasMin = false, kWide = true;
  static void unpack(const Block& b, uint8_t* codes, float* scale, float*, int64_t stride) {
    const float d = half_scale(b.d);
    for (int g = 0; g < 8; ++g) {
      put32(codes + 32 * g, looked_up(kIq4Values, nibbles(b.qs + 16 * g), kWideFlip));
      const int low = (b.scales_l[g / 2] >> (4 * (g % 2))) & 15;
      const int high = (b.scales_h >> (2 * g)) & 3;
      scale[g * stride] = d * static_cast<float>((low | high << 4) - 32);
    }
  }
};

struct CodesQ2_K {
  using Block = BlockQ2_K;
  static constexpr int kElements = 256, kGroup = 16, kOffsetBits = kNoOffset;
  static constexpr bool kHasMin = true, kWide = false;
  static void unpack(const Block& b, uint8_t* codes, float* scale, float* min, int64_t stride) {
    for (int half = 0; half < 2; ++half) {
      const __m256i packed = get32(b.qs + 32 * half);
      put32(codes + 128 * half, bits_of<0>(packed, 3));
      put32(codes + 128 * half + 32, bits_of<2>(packed, 3));
      put32(codes + 128 * half + 64, bits_of<4>(packed, 3));
      put32(codes + 128 * half + 96, bits_of<6>(packed, 3));
    }
    const float d = half_scale(b.d);
    const float dmin = -half_scale(b.dmin);
    for (int g = 0; g < 16; ++g) {
      scale[g * stride] = d * static_cast<float>(b.scales[g] & 15);
      min[g * stride] = dmin * static_cast<float>(b.scales[g] >> 4);
    }
  }
};

struct CodesQ3_K {
  using Block = BlockQ3_K;
  static constexpr int kElements = 256, kGroup = 16, kOffsetBits = 2;
  static constexpr bool kHasMin = false, kWide = false;
  /// Elements 32 i to 32 i + 31 of a half: two low bits, and bit i (of half 0, else i + 4) of the mask as the third.
  template <int kI>
  static void put_part(uint8_t* codes, __m256i low, __m256i mask) {
    const __m256i high = _mm256_slli_epi16(bits_of<kI>(mask, 1), 2);
    put32(codes + 32 * kI, _mm256_or_si256(bits_of<2 * kI>(low, 3), high));
  }
  static void unpack(const Block& b, uint8_t* codes, float* scale, float*, int64_t stride) {
    __m256i mask = get32(b.hmask);
    for (int half = 0; half < 2; ++half, mask = _mm256_srli_epi16(mask, 4)) {
      const __m256i low = get32(b.qs + 32 * half);
      put_part<0>(codes + 128 * half, low, mask);
      put_part<1>(codes + 128 * half, low, mask);
      put_part<2>(codes + 128 * half, low, mask);
      put_part<3>(codes + 128 * half, low, mask);
    }
    int8_t scales[16];
    unpack_q3_k_scales(b.scales, scales);
    const float d = half_scale(b.d);
    for (int g = 0; g < 16; ++g) scale[g * stride] = d * static_cast<float>(scales[g]);
  }
};

/// Scales and mins of Q4_K and Q5_K.
inline void put_k4_scales(const uint8_t (&packed)[12], uint16_t d, uint16_t dmin, float* scale, float* min, int64_t stride) {
  uint8_t scales[8], mins[8];
  unpack_k4_scales(packed, scales, mins);
  const float factor = half_scale(d);
  const float min_factor = -half_scale(dmin);
  for (int g = 0; g < 8; ++g) {
    scale[g * stride] = factor * static_cast<float>(scales[g]);
    min[g * stride] = min_factor * static_cast<float>(mins[g]);
  }
}

struct CodesQ4_K {
  using Block = BlockQ4_K;
  static constexpr int kElements = 256, kGroup = 32, kOffsetBits = kNoOffset;
  static constexpr bool kHasMin = true, kWide = false;
  static void unpack(const Block& b, uint8_t* codes, float* scale, float* min, int64_t stride) {
    for (int quarter = 0; quarter < 4; ++quarter) {
      const __m256i packed = get32(b.qs + 32 * quarter);
      put32(codes + 64 * quarter, bits_of<0>(packed, 15));
      put32(codes + 64 * quarter + 32, bits_of<4>(packed, 15));
    }
    put_k4_scales(b.scales, b.d, b.dmin, scale, min, stride);
  }
};

struct CodesQ5_K {
  using Block = BlockQ5_K;
  static constexpr int kElements = 256, kGroup = 32, kOffsetBits = kNoOffset;
  static constexpr bool kHasMin = true, kWide = false;
  static void unpack(const Block& b, uint8_t* codes, float* scale, float* min, int64_t stride) {
    __m256i fifth = get32(b.qh);
    for (int quarter = 0; quarter < 4; ++quarter, fifth = _mm256_srli_epi16(fifth, 2)) {
      const __m256i packed = get32(b.qs + 32 * quarter);
      const __m256i low = _mm256_slli_epi16(bits_of<0>(fifth, 1), 4);
      const __m256i high = _mm256_slli_epi16(bits_of<1>(fifth, 1), 4);
      put32(codes + 64 * quarter, _mm256_or_si256(bits_of<0>(packed, 15), low));
      put32(codes + 64 * quarter + 32, _mm256_or_si256(bits_of<4>(packed, 15), high));
    }
    put_k4_scales(b.scales, b.d, b.dmin, scale, min, stride);
  }
};

struct CodesQ6_K {
  using Block = BlockQ6_K;
  static constexpr int kElements = 256, kGroup = 16, kOffsetBits = 5;
  static constexpr bool kHasMin = false, kWide = false;
  static void unpack(const Block& b, uint8_t* codes, float* scale, float*, int64_t stride) {
    for (int half = 0; half < 2; ++half) {
      uint8_t* to = codes + 128 * half;
      const __m256i high = get32(b.qh + 32 * half);
      const __m256i first = get32(b.ql + 64 * half);
      const __m256i second = get32(b.ql + 64 * half + 32);
      put32(to, _mm256_or_si256(bits_of<0>(first, 15), _mm256_slli_epi16(bits_of<0>(high, 3), 4)));
      put32(to + 32, _mm256_or_si256(bits_of<0>(second, 15), _mm256_slli_epi16(bits_of<2>(high, 3), 4)));
      put32(to + 64, _mm256_or_si256(bits_of<4>(first, 15), _mm256_slli_epi16(bits_of<4>(high, 3), 4)));
      put32(to + 96, _mm256_or_si256(bits_of<4>(second, 15), _mm256_slli_epi16(bits_of<6>(high, 3), 4)));
    }
    const float d = half_scale(b.d);
    for (int g = 0; g < 16; ++g) scale[g * stride] = d * static_cast<float>(b.scales[g]);
  }
};
