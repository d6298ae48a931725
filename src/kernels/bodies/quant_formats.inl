// SPDX-License-Identifier: MIT
// Every quantised format as groups of 32 small integers: w = scale · (code - 2^kOffsetBits) + min. In formats with
// subscales a half of a group has an integer in front: w = scale · subscale · (code - 2^kOffsetBits) + min · submin;
// these are put times a power of two that scale and min make up for. unpack() takes one
// block from each of kLanes rows and puts codes, scales and mins where it is told: those of a group before its
// codes, and finish() after groups that are complete. The bytes of a file's blocks
// are turned first (lanes become rows; packed ones lie so), for a quarter to a whole of the work of turning the
// codes; all bit fields of these formats lie so that the same shifts and masks then give vectors of codes, 4
// neighbours of a row in each lane. Codes of kWide formats fill the byte: they are unsigned with offset 128 where
// the target's products take any byte, else signed; kLargest bounds them without that offset. Included inside a target
// region and namespace.

constexpr int kNoOffset = -1;
constexpr int kWideOffsetBits = kWideDot ? 7 : kNoOffset;
constexpr uint8_t kWideFlip = kWideDot ? 0x80 : 0;
constexpr int64_t kPanelRows = kQuantPanels * kLanes;
constexpr int kGroupWords = kQ8Group / 4;
static_assert(kPackedRows % kPanelRows == 0);

/// Where a block's codes go: [elements / 4, kPanelRows, 4] bytes, scales and mins [groups, kPanelRows].
struct PanelPart {
  uint8_t* codes;
  float* scales;
  float* mins;
  int32_t* subscales;  // [groups, 2, kPanelRows], as end_words_scaled() takes them
  int32_t* pairs;      // [groups, kPanelRows], submins, or subscales · 2^kOffsetBits
  void put_subscales(int64_t group, I first, I second) const {
    int_store(subscales + 2 * group * kPanelRows, first);
    int_store(subscales + (2 * group + 1) * kPanelRows, second);
  }
  void put_pair(int64_t group, I x) const { int_store(pairs + group * kPanelRows, x); }
  void put_codes(int64_t word, I x) const { int_store(codes + word * kPanelRows * 4, x); }
  void put_scale(int64_t group, F x) const { store(scales + group * kPanelRows, x); }
  void put_min(int64_t group, F x) const { store(mins + group * kPanelRows, x); }
  void finish(int, int) const {}
};

/// The same for signed codes that many columns multiply as magnitudes: code · x = |code| · (x ^ mask) + |code| where the
/// code is negative and mask all ones (-x = ~x + 1), else code · x. Codes [elements / 4, 2, kPanelRows, 4]: magnitudes, then
/// masks; `starts` [groups, kPanelRows], the sum of the magnitudes of a group's negative codes.
struct FlippedPanelPart {
  uint8_t* codes;
  float* scales;
  float* starts;
  template <typename Vector>
  SH_INLINE void put_codes(int64_t word, Vector x) const {
    const Vector size = magnitudes(x), mask = below_zero(x);
    int_store(codes + 2 * word * kPanelRows * 4, size);
    int_store(codes + (2 * word + 1) * kPanelRows * 4, mask);
    float* start = starts + word / kGroupWords * kPanelRows;
    const Vector negative = sum_bytes(int_and(size, mask));
    int_store(start, word % kGroupWords == 0 ? negative : int_add(int_load(start), negative));
  }
  void put_scale(int64_t group, F x) const { store(scales + group * kPanelRows, x); }
  void finish(int, int) const {}
};
/// Whether many columns take a format's codes so.
template <typename Codes>
constexpr bool kIsFlipped = kFlipsWide && Codes::kWide;

/// The same block of kLanes rows, as a file has them.
template <typename Block>
struct BlockRows {
  const std::byte* first;
  int64_t stride;  // bytes from row to row
  /// The words of every row from byte `at` on.
  template <int kWords>
  SH_INLINE void words(int64_t at, I (&out)[kWords]) const {
    static_assert(kWords % 4 == 0, "rows are turned 16 bytes at a time");
#pragma GCC unroll 2
    for (int i = 0; i < kWords; i += 4) {
      I four[4];
      load_strip(first + at + 4 * i, stride, four);
#pragma GCC unroll 4
      for (int j = 0; j < 4; ++j) out[i + j] = four[j];
    }
  }
  /// The odd bytes of every row: a binary16 number, or one byte.
  SH_INLINE F odd_half() const {
    constexpr int64_t kAt = kOddBytesAt<Block>;
    I four[4];  // the strip of 16 bytes that begins or ends with them
    load_strip(first + (kAt == 0 ? 0 : kAt - 14), stride, four);
    return low_halves(kAt == 0 ? four[0] : shift_right<16>(four[3]));
  }
  SH_INLINE I odd_byte() const {
    int32_t bytes[kLanes];
    for (int64_t r = 0; r < kLanes; ++r) bytes[r] = static_cast<int32_t>(first[r * stride + kOddBytesAt<Block>]);
    return int_load(bytes);
  }
};

/// The same from a packed panel, where they lie as the kernels want them.
template <typename Block>
struct PackedBlock {
  static constexpr int64_t kOdd = sizeof(Block) % 4;
  static constexpr int64_t kFirstWord = kOddBytesAt<Block> == 0 ? kOdd : 0;
  const std::byte* block;  // of the panel
  int64_t lane;            // the first of kLanes rows
  template <int kWords>
  SH_INLINE void words(int64_t at, I (&out)[kWords]) const {
#pragma GCC unroll 8
    for (int i = 0; i < kWords; ++i)
      out[i] = int_load(block + (((at - kFirstWord) / 4 + i) * kPackedRows + lane) * 4);
  }
  const std::byte* odd() const {
    return block + (static_cast<int64_t>(sizeof(Block)) - kOdd) * kPackedRows + lane * kOdd;
  }
  SH_INLINE F odd_half() const {
    return load_half(reinterpret_cast<const uint16_t*>(odd()));
  }
  SH_INLINE I odd_byte() const {
    return load_unsigned_bytes(odd());
  }
};

inline I all_bytes(uint8_t value) {
  return int_set1(static_cast<int32_t>(value * 0x01010101u));
}
/// The bytes of x shifted right; kMask must not reach the bits of the next byte.
template <int kShift, int kMask>
inline I bits(I x) {
  return int_and(shift_right<kShift>(x), all_bytes(kMask));
}
/// The bits of bits<kShift, kMask>(x), moved to kTo.
template <int kShift, int kMask, int kTo>
inline I bits_at(I x) {
  if constexpr (kTo > kShift)
    return int_and(shift_left<kTo - kShift>(x), all_bytes(kMask << kTo));
  else
    return int_and(shift_right<kShift - kTo>(x), all_bytes(kMask << kTo));
}
/// Byte kByte of every lane as a number.
template <int kByte>
inline F byte_of(I x) {
  const I shifted = shift_right<8 * kByte>(x);
  return to_float(kByte == 3 ? shifted : int_and(shifted, int_set1(255)));
}

/// The nibbles of 16 packed bytes as 32 codes, through kMap.
template <I (*kMap)(I), typename To>
SH_INLINE void put_nibbles(const I (&packed)[4], To& to, int64_t first_word) {
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
    to.put_codes(first_word + i, kMap(bits<0, 15>(packed[i])));
    to.put_codes(first_word + i + 4, kMap(bits<4, 15>(packed[i])));
  }
}
inline I as_is(I codes) {
  return codes;
}
inline I iq4_value(I codes) {
  return int_xor(look_up(kIq4Values.data(), codes), all_bytes(kWideFlip));
}
constexpr std::array<int8_t, 16> kShiftedMxfp4Values = [] {
  std::array<int8_t, 16> shifted = kMxfp4Values;
  for (int8_t& value : shifted) value = static_cast<int8_t>(value + 16);
  return shifted;
}();
inline I mxfp4_value(I codes) {
  return look_up(kShiftedMxfp4Values.data(), codes);
}

struct CodesQ4_0 {
  using Block = BlockQ4_0;
  static constexpr int kElements = 32, kLargest = 15, kOffsetBits = 3;
  static constexpr bool kHasMin = false, kWide = false, kHasSubscales = false;
  template <typename Rows, typename To>
  static SH_INLINE void unpack(const Rows& rows, To& to) {
    I packed[4];
    rows.words(offsetof(Block, qs), packed);
    to.put_scale(0, rows.odd_half());
    put_nibbles<as_is>(packed, to, 0);
    to.finish(0, 1);
  }
};

struct CodesQ4_1 {
  using Block = BlockQ4_1;
  static constexpr int kElements = 32, kLargest = 15, kOffsetBits = kNoOffset;
  static constexpr bool kHasMin = true, kWide = false, kHasSubscales = false;
  template <typename Rows, typename To>
  static SH_INLINE void unpack(const Rows& rows, To& to) {
    I head[4], packed[4];
    rows.words(0, head);
    rows.words(offsetof(Block, qs), packed);
    to.put_scale(0, low_halves(head[0]));
    to.put_min(0, low_halves(shift_right<16>(head[0])));
    put_nibbles<as_is>(packed, to, 0);
    to.finish(0, 1);
  }
};

/// Bits 0 to 3 of the lane to bit 4 of its bytes 0 to 3.
inline I spread_fifth(I x) {
  constexpr int32_t kFourCopies = 1 << 4 | 1 << 11 | 1 << 18 | 1 << 25;  // bit i of copy i lands at 8 i + 4
  return int_and(int_mul(int_and(x, int_set1(15)), int_set1(kFourCopies)), all_bytes(0x10));
}
/// Nibbles topped by the 32 fifth bits, bit j for element j.
template <typename To>
SH_INLINE void put_nibbles_and_fifth(const I (&packed)[4], I fifth, To& to) {
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i, fifth = shift_right<4>(fifth)) {
    const I high = shift_right<16>(fifth);
    to.put_codes(i, int_or(bits<0, 15>(packed[i]), spread_fifth(fifth)));
    to.put_codes(i + 4, int_or(bits<4, 15>(packed[i]), spread_fifth(high)));
  }
}

struct CodesQ5_0 {
  using Block = BlockQ5_0;
  static constexpr int kElements = 32, kLargest = 31, kOffsetBits = 4;
  static constexpr bool kHasMin = false, kWide = false, kHasSubscales = false;
  template <typename Rows, typename To>
  static SH_INLINE void unpack(const Rows& rows, To& to) {
    I fifth[4], packed[4];
    rows.words(offsetof(Block, qh), fifth);  // and qs behind it
    rows.words(offsetof(Block, qs), packed);
    to.put_scale(0, rows.odd_half());
    put_nibbles_and_fifth(packed, fifth[0], to);
    to.finish(0, 1);
  }
};

struct CodesQ5_1 {
  using Block = BlockQ5_1;
  static constexpr int kElements = 32, kLargest = 31, kOffsetBits = kNoOffset;
  static constexpr bool kHasMin = true, kWide = false, kHasSubscales = false;
  template <typename Rows, typename To>
  static SH_INLINE void unpack(const Rows& rows, To& to) {
    I head[4], packed[4];
    rows.words(0, head);
    rows.words(offsetof(Block, qs), packed);
    to.put_scale(0, low_halves(head[0]));
    to.put_min(0, low_halves(shift_right<16>(head[0])));
    put_nibbles_and_fifth(packed, head[1], to);
    to.finish(0, 1);
  }
};

struct CodesQ8_0 {
  using Block = BlockQ8_0;
  static constexpr int kElements = 32, kLargest = 128, kOffsetBits = kWideOffsetBits;
  static constexpr bool kHasMin = false, kWide = true, kHasSubscales = false;
  template <typename Rows, typename To>
  static SH_INLINE void unpack(const Rows& rows, To& to) {
    I codes[8];
    rows.words(offsetof(Block, qs), codes);
    to.put_scale(0, rows.odd_half());
#pragma GCC unroll 8
    for (int i = 0; i < 8; ++i) to.put_codes(i, int_xor(codes[i], all_bytes(kWideFlip)));
    to.finish(0, 1);
  }
};

struct CodesIQ4_NL {
  using Block = BlockIQ4_NL;
  static constexpr int kElements = 32, kLargest = 127, kOffsetBits = kWideOffsetBits;
  static constexpr bool kHasMin = false, kWide = true, kHasSubscales = false;
  template <typename Rows, typename To>
  static SH_INLINE void unpack(const Rows& rows, To& to) {
    I packed[4];
    rows.words(offsetof(Block, qs), packed);
    to.put_scale(0, rows.odd_half());
    put_nibbles<iq4_value>(packed, to, 0);
    to.finish(0, 1);
  }
};

struct CodesMXFP4 {
  using Block = BlockMXFP4;
  static constexpr int kElements = 32, kLargest = 28, kOffsetBits = 4;
  static constexpr bool kHasMin = false, kWide = false, kHasSubscales = false;
  template <typename Rows, typename To>
  static SH_INLINE void unpack(const Rows& rows, To& to) {
    I packed[4];
    rows.words(offsetof(Block, qs), packed);
    // Both forms of mxfp4_scale as integers: the larger one is the one that holds.
    const I e = rows.odd_byte();
    const I normal = shift_left<23>(int_add(e, int_set1(-1))), subnormal = shift_left<21>(int_add(e, int_set1(1)));
    to.put_scale(0, as_float(int_max(normal, subnormal)));
    put_nibbles<mxfp4_value>(packed, to, 0);
    to.finish(0, 1);
  }
};

struct CodesIQ4_XS {
  using Block = BlockIQ4_XS;
  static constexpr int kElements = 256, kLargest = 127, kOffsetBits = kWideOffsetBits;
  static constexpr bool kHasMin = false, kWide = true, kHasSubscales = false;
  template <typename Rows, typename To>
  static SH_INLINE void unpack(const Rows& rows, To& to) {
    I head[4];
    rows.words(0, head);
    const F d = low_halves(head[0]);
    I high_bits = shift_right<16>(head[0]);
    I low_bits = head[1];
#pragma GCC unroll 8
    for (int g = 0; g < 8; ++g, low_bits = shift_right<4>(low_bits), high_bits = shift_right<2>(high_bits)) {
      const I low = int_and(low_bits, int_set1(15));
      const I high = shift_left<4>(int_and(high_bits, int_set1(3)));
      to.put_scale(g, mul(d, sub(to_float(int_or(low, high)), set1(32.0f))));
      I packed[4];
      rows.words(static_cast<int64_t>(offsetof(Block, qs)) + 16 * g, packed);
      put_nibbles<iq4_value>(packed, to, 8 * g);
      to.finish(g, 1);
    }
  }
};

struct CodesQ2_K {
  using Block = BlockQ2_K;
  static constexpr int kElements = 256, kLargest = 3 * 4, kOffsetBits = kNoOffset;
  static constexpr bool kHasMin = true, kWide = false, kHasSubscales = true;
  static constexpr int kUp = 8;
  /// A group: the bits kMask of 32 bytes, and bytes kByte and kByte + 1 of scales and mins.
  template <int kMask, int kByte, typename To>
  static SH_INLINE void put_group(const I (&bytes)[8], I scales, I mins, F d, F dmin, int group, To& to) {
    to.put_scale(group, d);
    to.put_min(group, dmin);
    to.put_subscales(group, scale_byte<kByte, kUp>(scales), scale_byte<kByte + 1, kUp>(scales));
    to.put_pair(group, byte_pair<kByte, kByte + 1, kUp>(mins));
#pragma GCC unroll 8
    for (int i = 0; i < 8; ++i) to.put_codes(8 * group + i, bits<0, kMask>(bytes[i]));
    to.finish(group, 1);
  }
  template <typename Rows, typename To>
  static SH_INLINE void unpack(const Rows& rows, To& to) {
    I head[4], tail[4];
    rows.words(offsetof(Block, scales), head);
    rows.words(static_cast<int64_t>(sizeof(Block)) - 16, tail);  // ends with d, dmin
    const F unit = set1(1.0f / (1 << kUp));
    const F d = mul(low_halves(tail[3]), unit), dmin = mul(low_halves(shift_right<16>(tail[3])), unit);
    const F quarter = mul(d, set1(0.25f));  // of codes that are taken 4 times as large: without shifts
#pragma GCC unroll 2
    for (int half = 0; half < 2; ++half) {
      I packed[8];
      rows.words(static_cast<int64_t>(offsetof(Block, qs)) + 32 * half, packed);
#pragma GCC unroll 2
      for (int pair = 0; pair < 2; ++pair) {
        const I scales = bits<0, 15>(head[2 * half + pair]), mins = bits<4, 15>(head[2 * half + pair]);
        const int group = 4 * half + 2 * pair;
        put_group<3, 0>(packed, scales, mins, d, dmin, group, to);
        put_group<12, 2>(packed, scales, mins, quarter, dmin, group + 1, to);
#pragma GCC unroll 8
        for (int i = 0; i < 8; ++i) packed[i] = shift_right<4>(packed[i]);
      }
    }
  }
};

/// The four bytes of `numbers` as scales of groups `first` to `first` + 3: d · number.
template <typename To>
SH_INLINE void put_four_scales(I numbers, F d, int first, To& to) {
  to.put_scale(first, mul(byte_of<0>(numbers), d));
  to.put_scale(first + 1, mul(byte_of<1>(numbers), d));
  to.put_scale(first + 2, mul(byte_of<2>(numbers), d));
  to.put_scale(first + 3, mul(byte_of<3>(numbers), d));
}

/// The scales of a group whose codes have an offset and are taken 2^kMore times as large: signed bytes kByte and kByte + 1.
template <int kByte, int kUp, int kMore, int kOffsetBits, typename To>
SH_INLINE void put_subscales(I bytes, F d, int group, To& to) {
  to.put_scale(group, d);
  to.put_subscales(group, scale_byte<kByte, kUp - kMore>(bytes), scale_byte<kByte + 1, kUp - kMore>(bytes));
  to.put_pair(group, byte_pair<kByte, kByte + 1, kUp + kOffsetBits>(bytes));
}

struct CodesQ3_K {
  using Block = BlockQ3_K;
  static constexpr int kElements = 256, kLargest = 7 * 4, kOffsetBits = 2;
  static constexpr bool kHasMin = false, kWide = false, kHasSubscales = true;
  static constexpr int kUp = 6;
  /// Two bits of every byte, and bit kGroup of the bytes of `mask` on top; of odd groups 4 times as large, which saves shifts.
  template <int kGroup>
  static SH_INLINE I code(I low, I mask) {
    constexpr int kMore = kGroup % 2 * 2;
    return int_or(bits<0, 3 << kMore>(low), bits_at<kGroup, 1, 2 + kMore>(mask));
  }
  /// Four groups, which share bytes. One after another they are 0.95 times as fast (one column, AVX2).
  template <int kHalf, typename Rows, typename To>
  static SH_INLINE void put_half(const Rows& rows, const I (&mask)[8], const I (&scales)[4], F d, To& to) {
    constexpr int kGroup = 4 * kHalf;
    put_subscales<0, kUp, 0, kOffsetBits>(scales[2 * kHalf], d, kGroup, to);
    put_subscales<2, kUp, 2, kOffsetBits>(scales[2 * kHalf], d, kGroup + 1, to);
    put_subscales<0, kUp, 0, kOffsetBits>(scales[2 * kHalf + 1], d, kGroup + 2, to);
    put_subscales<2, kUp, 2, kOffsetBits>(scales[2 * kHalf + 1], d, kGroup + 3, to);
    I low[8];
    rows.words(static_cast<int64_t>(offsetof(Block, qs)) + 32 * kHalf, low);
#pragma GCC unroll 8
    for (int i = 0; i < 8; ++i) {
      const I high = shift_right<4>(low[i]);
      to.put_codes(8 * kGroup + i, code<kGroup>(low[i], mask[i]));
      to.put_codes(8 * kGroup + 8 + i, code<kGroup + 1>(low[i], mask[i]));
      to.put_codes(8 * kGroup + 16 + i, code<kGroup + 2>(high, mask[i]));
      to.put_codes(8 * kGroup + 24 + i, code<kGroup + 3>(high, mask[i]));
    }
    to.finish(kGroup, 4);
  }
  template <typename Rows, typename To>
  static SH_INLINE void unpack(const Rows& rows, To& to) {
    I packed[4], mask[8];
    rows.words(static_cast<int64_t>(offsetof(Block, scales)) - 4, packed);  // words 1 to 3 are the scales
    rows.words(offsetof(Block, hmask), mask);
    const F d = mul(rows.odd_half(), set1(1.0f / (1 << kUp)));
    const I offset = all_bytes(32);
    const I scales[4] = {bytes_sub(int_or(bits<0, 15>(packed[1]), bits_at<0, 3, 4>(packed[3])), offset),
                         bytes_sub(int_or(bits<0, 15>(packed[2]), bits_at<2, 3, 4>(packed[3])), offset),
                         bytes_sub(int_or(bits<4, 15>(packed[1]), bits_at<4, 3, 4>(packed[3])), offset),
                         bytes_sub(int_or(bits<4, 15>(packed[2]), bits_at<6, 3, 4>(packed[3])), offset)};
    put_half<0>(rows, mask, scales, d, to);
    put_half<1>(rows, mask, scales, d, to);
  }
};

/// The four bytes of `numbers` as mins of groups `first` to `first` + 3: dmin · number.
template <typename To>
SH_INLINE void put_four_mins(I numbers, F dmin, int first, To& to) {
  to.put_min(first, mul(dmin, byte_of<0>(numbers)));
  to.put_min(first + 1, mul(dmin, byte_of<1>(numbers)));
  to.put_min(first + 2, mul(dmin, byte_of<2>(numbers)));
  to.put_min(first + 3, mul(dmin, byte_of<3>(numbers)));
}

/// Scales and mins of Q4_K and Q5_K from the 16 bytes (d, dmin, 12 packed) at the head of a block.
template <typename To>
SH_INLINE void put_k4_scales(const I (&head)[4], To& to) {
  const F d = low_halves(head[0]);
  const F dmin = sub(zero(), low_halves(shift_right<16>(head[0])));
  put_four_scales(bits<0, 63>(head[1]), d, 0, to);
  put_four_scales(int_or(bits<0, 15>(head[3]), bits_at<6, 3, 4>(head[1])), d, 4, to);
  put_four_mins(bits<0, 63>(head[2]), dmin, 0, to);
  put_four_mins(int_or(bits<4, 15>(head[3]), bits_at<6, 3, 4>(head[2])), dmin, 4, to);
}

struct CodesQ4_K {
  using Block = BlockQ4_K;
  static constexpr int kElements = 256, kLargest = 15, kOffsetBits = kNoOffset;
  static constexpr bool kHasMin = true, kWide = false, kHasSubscales = false;
  template <typename Rows, typename To>
  static SH_INLINE void unpack(const Rows& rows, To& to) {
    I head[4];
    rows.words(0, head);
    put_k4_scales(head, to);
#pragma GCC unroll 4
    for (int quarter = 0; quarter < 4; ++quarter) {
      I packed[8];
      rows.words(static_cast<int64_t>(offsetof(Block, qs)) + 32 * quarter, packed);
#pragma GCC unroll 8
      for (int i = 0; i < 8; ++i) {
        to.put_codes(16 * quarter + i, bits<0, 15>(packed[i]));
        to.put_codes(16 * quarter + 8 + i, bits<4, 15>(packed[i]));
      }
      to.finish(2 * quarter, 2);
    }
  }
};

struct CodesQ5_K {
  using Block = BlockQ5_K;
  static constexpr int kElements = 256, kLargest = 31, kOffsetBits = kNoOffset;
  static constexpr bool kHasMin = true, kWide = false, kHasSubscales = false;
  template <typename Rows, typename To>
  static SH_INLINE void unpack(const Rows& rows, To& to) {
    I head[4], fifth[8];
    rows.words(0, head);
    put_k4_scales(head, to);
    rows.words(offsetof(Block, qh), fifth);
#pragma GCC unroll 4
    for (int quarter = 0; quarter < 4; ++quarter) {
      I packed[8];
      rows.words(static_cast<int64_t>(offsetof(Block, qs)) + 32 * quarter, packed);
#pragma GCC unroll 8
      for (int i = 0; i < 8; ++i) {
        to.put_codes(16 * quarter + i, int_or(bits<0, 15>(packed[i]), bits_at<0, 1, 4>(fifth[i])));
        to.put_codes(16 * quarter + 8 + i, int_or(bits<4, 15>(packed[i]), bits_at<1, 1, 4>(fifth[i])));
        fifth[i] = shift_right<2>(fifth[i]);
      }
      to.finish(2 * quarter, 2);
    }
  }
};

struct CodesQ6_K {
  using Block = BlockQ6_K;
  static constexpr int kElements = 256, kLargest = 63, kOffsetBits = 5;
  static constexpr bool kHasMin = false, kWide = false, kHasSubscales = true;
  template <typename Rows, typename To>
  static SH_INLINE void unpack(const Rows& rows, To& to) {
    I scales[4];
    rows.words(offsetof(Block, scales), scales);
    const F d = rows.odd_half();
#pragma GCC unroll 2
    for (int half = 0; half < 2; ++half) {
#pragma GCC unroll 2
      for (int pair = 0; pair < 2; ++pair) {
        put_subscales<0, 0, 0, kOffsetBits>(scales[2 * half + pair], d, 4 * half + 2 * pair, to);
        put_subscales<2, 0, 0, kOffsetBits>(scales[2 * half + pair], d, 4 * half + 2 * pair + 1, to);
      }
      I first[8], second[8], high[8];
      rows.words(static_cast<int64_t>(offsetof(Block, ql)) + 64 * half, first);
      rows.words(static_cast<int64_t>(offsetof(Block, ql)) + 64 * half + 32, second);
      rows.words(static_cast<int64_t>(offsetof(Block, qh)) + 32 * half, high);
#pragma GCC unroll 8
      for (int i = 0; i < 8; ++i) {
        to.put_codes(32 * half + i, int_or(bits<0, 15>(first[i]), bits_at<0, 3, 4>(high[i])));
        to.put_codes(32 * half + 8 + i, int_or(bits<0, 15>(second[i]), bits_at<2, 3, 4>(high[i])));
        to.put_codes(32 * half + 16 + i, int_or(bits<4, 15>(first[i]), bits_at<4, 3, 4>(high[i])));
        to.put_codes(32 * half + 24 + i, int_or(bits<4, 15>(second[i]), bits_at<6, 3, 4>(high[i])));
      }
      to.finish(4 * half, 4);
    }
  }
};
