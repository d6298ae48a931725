// SPDX-License-Identifier: MIT
// Byte layouts of the quantised blocks, as they lie in a GGUF file and in a quantised cache. Little-endian, no
// padding, any alignment. A block of n elements holds integer codes and what turns them into floats; the formula
// stands at each struct. Source:  GGUF specification, version 3 (ggml-org/ggml, docs/gguf.md) and the block
// definitions of ggml; MXFP4: Open Compute Project, "OCP Microscaling Formats (MX) Specification", version 1.0.
#pragma once

#include <array>
#include <bit>
#include <cstddef>
#include <cstdint>

namespace sh {

static_assert(std::endian::native == std::endian::little,
              "blocks are read in place, so the machine must be little-endian");

inline constexpr int kSmallBlock = 32;   // elements of the plain formats, of IQ4_NL and MXFP4
inline constexpr int kSuperBlock = 256;  // elements of the K formats and IQ4_XS

#pragma pack(push, 1)

/// x = (q - 8) · d. Byte j holds elements j (low nibble) and j + 16 (high nibble); so do all formats of 32 below.
struct BlockQ4_0 {
  uint16_t d;  // binary16, as every d, m and dmin below
  uint8_t qs[16];
};
static_assert(sizeof(BlockQ4_0) == 18);

/// x = q · d + m.
struct BlockQ4_1 {
  uint16_t d;
  uint16_t m;
  uint8_t qs[16];
};
static_assert(sizeof(BlockQ4_1) == 20);

/// x = (q - 16) · d. Bit 4 of element j is bit j of qh read as one little-endian number.
struct BlockQ5_0 {
  uint16_t d;
  uint8_t qh[4];
  uint8_t qs[16];
};
static_assert(sizeof(BlockQ5_0) == 22);

/// x = q · d + m.
struct BlockQ5_1 {
  uint16_t d;
  uint16_t m;
  uint8_t qh[4];
  uint8_t qs[16];
};
static_assert(sizeof(BlockQ5_1) == 24);

/// x = q · d.
struct BlockQ8_0 {
  uint16_t d;
  int8_t qs[32];
};
static_assert(sizeof(BlockQ8_0) == 34);

/// 16 groups of 16: x = q · (d · scale) - dmin · min, scale in the low nibble of scales[group], min in the high
/// one. Each half of 128 elements has 32 bytes of qs; element 32·i + l of the half is in bits 2i, 2i+1 of byte l.
struct BlockQ2_K {
  uint8_t scales[16];
  uint8_t qs[64];
  uint16_t d;
  uint16_t dmin;
};
static_assert(sizeof(BlockQ2_K) == 84);

/// 16 groups of 16: x = (q - 4) · d · (scale - 32), q of 3 bits. The low two bits lie as in Q2_K; bit 2 of element
/// 32·i + l of the block is bit i of hmask[l]. Scales of 6 bits: see unpack_q3_k_scales.
struct BlockQ3_K {
  uint8_t hmask[32];
  uint8_t qs[64];
  uint8_t scales[12];
  uint16_t d;
};
static_assert(sizeof(BlockQ3_K) == 110);

/// 8 groups of 32: x = q · (d · scale) - dmin · min, scale and min of 6 bits: see unpack_k4_scales.
/// Each quarter of 64 elements has 32 bytes: the low nibbles are its first 32 elements, the high ones the
/// other 32.
struct BlockQ4_K {
  uint16_t d;
  uint16_t dmin;
  uint8_t scales[12];
  uint8_t qs[128];
};
static_assert(sizeof(BlockQ4_K) == 144);

/// As Q4_K with codes of 5 bits; bit 4 of element l of group g is bit g of qh[l].
struct BlockQ5_K {
  uint16_t d;
  uint16_t dmin;
  uint8_t scales[12];
  uint8_t qh[32];
  uint8_t qs[128];
};
static_assert(sizeof(BlockQ5_K) == 176);

/// 16 groups of 16: x = (q - 32) · d · scale, q of 6 bits. In each half of 128 elements, element 32·i + l has its
/// low four bits in ql[l + 32·(i mod 2)] (low nibble for i < 2, else high) and its high two in bits 2i, 2i+1 of
/// qh[l].
struct BlockQ6_K {
  uint8_t ql[128];
  uint8_t qh[64];
  int8_t scales[16];
  uint16_t d;
};
static_assert(sizeof(BlockQ6_K) == 210);

/// x = kIq4Values[q] · d.
struct BlockIQ4_NL {
  uint16_t d;
  uint8_t qs[16];
};
static_assert(sizeof(BlockIQ4_NL) == 18);

/// 8 groups of 32: x = kIq4Values[q] · d · (scale - 32). The low four bits of scale g are nibble g of scales_l,
/// the high two are bits 2g, 2g+1 of scales_h. Codes lie in each group as in IQ4_NL.
struct BlockIQ4_XS {
  uint16_t d;
  uint16_t scales_h;
  uint8_t scales_l[4];
  uint8_t qs[128];
};
static_assert(sizeof(BlockIQ4_XS) == 136);

/// x = kMxfp4Values[q] · 2^(e - 128): the codes are FP4 (E2M1) doubled to integers, e is E8M0.
struct BlockMXFP4 {
  uint8_t e;
  uint8_t qs[16];
};
static_assert(sizeof(BlockMXFP4) == 17);

#pragma pack(pop)

/// Where the sizeof(Block) % 4 bytes lie that are left when the rest of a block is taken as 4-byte words: its
/// scale, at one of its ends. See tensor/packed.h.
template <typename Block>
inline constexpr int kOddBytesAt = 0;
template <>
inline constexpr int kOddBytesAt<BlockQ3_K> = offsetof(BlockQ3_K, d);
template <>
inline constexpr int kOddBytesAt<BlockQ6_K> = offsetof(BlockQ6_K, d);

inline constexpr std::array<int8_t, 16> kIq4Values = {-127, -104, -83, -65, -49, -35, -22, -10,
                                                      1,    13,   25,  38,  53,  69,  89,  113};
inline constexpr std::array<int8_t, 16> kMxfp4Values = {0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12};

/// 2^(e - 128) for e in [0, 255]; the two smallest are subnormal.
inline float mxfp4_scale(uint8_t e) {
  return std::bit_cast<float>(e < 2 ? 0x00200000u << e : static_cast<uint32_t>(e - 1) << 23);
}

/// Group g's scale of a Q3_K block, -32 to 31: low nibbles fill bytes 0 to 7 (groups 8 to 15 above), high pairs
/// bytes 8 to 11.
inline void unpack_q3_k_scales(const uint8_t (&packed)[12], int8_t (&scales)[16]) {
  for (int g = 0; g < 16; ++g) {
    const int low = (packed[g % 8] >> (4 * (g / 8))) & 15;
    const int high = (packed[8 + g % 4] >> (2 * (g / 4))) & 3;
    scales[g] = static_cast<int8_t>((low | high << 4) - 32);
  }
}

/// Scales and mins of Q4_K and Q5_K, 0 to 63. Groups 0 to 3: six bits of bytes g and g + 4. Groups 4 to 7: the
/// nibbles of byte g + 4 (scale low, min high), topped by the two bits left over in bytes g - 4 and g.
inline void unpack_k4_scales(const uint8_t (&packed)[12], uint8_t (&scales)[8], uint8_t (&mins)[8]) {
  for (int g = 0; g < 4; ++g) {
    scales[g] = packed[g] & 63;
    mins[g] = packed[g + 4] & 63;
    scales[g + 4] = static_cast<uint8_t>((packed[g + 8] & 15) | (packed[g] >> 6) << 4);
    mins[g + 4] = static_cast<uint8_t>(packed[g + 8] >> 4 | (packed[g + 4] >> 6) << 4);
  }
}

/// The inverse of unpack_k4_scales, for values of at most 6 bits.
inline void pack_k4_scales(const uint8_t* scales, const uint8_t* mins, uint8_t (&packed)[12]) {
  for (int g = 0; g < 4; ++g) {
    packed[g] = static_cast<uint8_t>(scales[g] | (scales[g + 4] >> 4) << 6);
    packed[g + 4] = static_cast<uint8_t>(mins[g] | (mins[g + 4] >> 4) << 6);
    packed[g + 8] = static_cast<uint8_t>((scales[g + 4] & 15) | (mins[g + 4] & 15) << 4);
  }
}

}  // namespace sh
