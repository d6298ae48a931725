// SPDX-License-Identifier: MIT
// Properties that every format keeps, whatever its codes: found by name and id, bounded error, safe on any float.
#include <fmt/format.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <map>
#include <string>
#include <vector>

#include "base/rng.h"
#include "tensor/blocks.h"
#include "tensor/dtype.h"
#include "tensor/half.h"

namespace sh {
namespace {

constexpr int64_t kElements = 1024;  // a multiple of every block

std::vector<std::byte> encode(const TensorFormat& format, const std::vector<float>& x) {
  std::vector<std::byte> blocks(static_cast<size_t>(row_bytes(format.dtype, static_cast<int64_t>(x.size()))));
  format.quantize(x.data(), static_cast<int64_t>(x.size()), blocks.data());
  return blocks;
}
std::vector<float> round_trip(const TensorFormat& format, const std::vector<float>& x) {
  const auto blocks = encode(format, x);
  std::vector<float> out(x.size());
  format.dequantize(blocks.data(), static_cast<int64_t>(out.size()), out.data());
  return out;
}
std::vector<float> normals(uint64_t seed, float scale = 1.0f) {
  Rng rng(seed);
  std::vector<float> x(kElements);
  for (float& v : x) v = scale * static_cast<float>(rng.next_normal());
  return x;
}

TEST(Registry, EveryFormatIsFoundByIdAndByNameInAnyCase) {
  EXPECT_EQ(tensor_formats().size(), 16u);
  for (const TensorFormat* format : tensor_formats()) {
    std::string upper = format->name;
    std::transform(upper.begin(), upper.end(), upper.begin(), [](unsigned char c) { return std::toupper(c); });
    EXPECT_EQ(dtype_from_name(format->name).value(), format->dtype);
    EXPECT_EQ(dtype_from_name(upper).value(), format->dtype);
    EXPECT_EQ(dtype_from_gguf(static_cast<uint32_t>(format->dtype)).value(), format->dtype);
    EXPECT_EQ(&tensor_format(format->dtype), format);
    EXPECT_EQ(row_bytes(format->dtype, 3 * format->block_elements), 3 * format->block_bytes);
    EXPECT_EQ(row_bytes(format->dtype, 0), 0);
  }
}

TEST(Registry, UnknownFormatsAreNamedInTheError) {
  for (const char* name : {"", "q4", "q4_00", "float"}) {
    const auto dtype = dtype_from_name(name);
    ASSERT_FALSE(dtype.ok());
    EXPECT_EQ(dtype.error().kind, ErrorKind::invalid_argument);
    EXPECT_NE(dtype.error().message.find(fmt::format("'{}'", name)), std::string::npos);
    EXPECT_NE(dtype.error().message.find("iq4_xs"), std::string::npos);
  }
  for (const uint32_t id : {4u, 16u, 40u, 63u, 64u, 0xFFFFFFFFu}) {
    const auto dtype = dtype_from_gguf(id);
    ASSERT_FALSE(dtype.ok());
    EXPECT_EQ(dtype.error().kind, ErrorKind::unsupported);
    EXPECT_NE(dtype.error().message.find(fmt::format("id {}", id)), std::string::npos);
  }
}

TEST(RegistryDeathTest, APartOfABlockIsOurBug) {
  EXPECT_DEATH(row_bytes(DType::q4_k, 255), "whole number of blocks");
}

TEST(Half, EveryHalfSurvivesTheWayToFloatAndBack) {
  for (uint32_t h = 0; h < 0x10000; ++h) {
    const float f = half_to_float(static_cast<uint16_t>(h));
    const bool is_nan = (h & 0x7C00) == 0x7C00 && (h & 0x3FF) != 0;
    ASSERT_EQ(std::isnan(f), is_nan) << h;
    if (!is_nan) {
      ASSERT_EQ(float_to_half(f), h);
    }
    const float b = bf16_to_float(static_cast<uint16_t>(h));
    if (!std::isnan(b)) {
      ASSERT_EQ(float_to_bf16(b), h);
    }
  }
  EXPECT_TRUE(std::isnan(half_to_float(float_to_half(std::nanf("")))));
  EXPECT_TRUE(std::isnan(bf16_to_float(float_to_bf16(std::nanf("")))));
}

TEST(Half, RoundsToNearestWithTiesToEven) {
  // The middle between two neighbours goes to the even one, a hair beside it to the nearer one.
  for (uint32_t h = 0; h < 0x7BFF; ++h) {
    const float low = half_to_float(static_cast<uint16_t>(h)), high = half_to_float(static_cast<uint16_t>(h + 1));
    const float middle = 0.5f * (low + high);  // exact: one more bit than a half has
    ASSERT_EQ(float_to_half(middle), h % 2 == 0 ? h : h + 1);
    ASSERT_EQ(float_to_half(std::nextafter(middle, 0.0f)), h);
    ASSERT_EQ(float_to_half(std::nextafter(middle, 1e9f)), h + 1);
    ASSERT_EQ(float_to_half(-middle), 0x8000u | (h % 2 == 0 ? h : h + 1));
  }
  EXPECT_EQ(float_to_half(65519.996f), 0x7BFF);  // 65520 is the middle between the largest half and 2^16
  EXPECT_EQ(float_to_half(65520.0f), 0x7C00);
  EXPECT_EQ(float_to_half(0x1.8p-25f), 0x0001);
  EXPECT_EQ(float_to_half(0x1.0p-25f), 0x0000);
}

TEST(Blocks, PackedScalesComeBack) {
  Rng rng(11);
  for (int repeat = 0; repeat < 1000; ++repeat) {
    uint8_t scales[8], mins[8], scales_back[8], mins_back[8], packed[12];
    for (int g = 0; g < 8; ++g) {
      scales[g] = static_cast<uint8_t>(rng.next_below(64));
      mins[g] = static_cast<uint8_t>(rng.next_below(64));
    }
    pack_k4_scales(scales, mins, packed);
    unpack_k4_scales(packed, scales_back, mins_back);
    ASSERT_EQ(std::memcmp(scales, scales_back, 8), 0);
    ASSERT_EQ(std::memcmp(mins, mins_back, 8), 0);
  }
}

// Largest error as a share of the largest |x| of the block. Plain formats: half a step, a whole one at the end
// that reaches less far (Q4_0, Q5_0), the range of two magnitudes (Q4_1, Q5_1), plus 2^-11 for rounding the scale
// to binary16. Formats with a search may cut off an outlier by about one step of the group if all others gain; 1.5
// steps also covers the rounding of the scale.
const std::map<std::string, double> kErrorShare = {
    {"f32", 0},
    {"f16", 0x1p-11},
    {"bf16", 0x1p-8},
    {"q8_0", 0.5 / 127 + 0x1p-11},
    {"q4_0", 1.0 / 8 + 0x1p-11},
    {"q4_1", 1.0 / 15 + 0x1p-10},
    {"q5_0", 1.0 / 16 + 0x1p-11},
    {"q5_1", 1.0 / 31 + 0x1p-10},
    {"q2_K", 1.5 * 2 / 3},
    {"q3_K", 1.5 / 4},
    {"q4_K", 1.5 * 2 / 15},
    {"q5_K", 1.5 * 2 / 31},
    {"q6_K", 1.5 / 32},
    {"iq4_nl", 1.5 * 24 / 127},
    {"iq4_xs", 1.5 * 24 / 127},
    {"mxfp4", 1.5 * 2 / 6},
};

TEST(Formats, ErrorIsBoundedByTheStep) {
  for (const TensorFormat* format : tensor_formats()) {
    SCOPED_TRACE(format->name);
    for (const float scale : {1.0f, 1e-2f, 300.0f}) {
      const auto x = normals(static_cast<uint64_t>(format->dtype) + 1, scale);
      const auto y = round_trip(*format, x);
      const auto n_block = static_cast<size_t>(format->block_elements);
      for (size_t start = 0; start < x.size(); start += n_block) {
        double largest = 0, error = 0;
        for (size_t i = start; i < start + n_block; ++i) {
          largest = std::max(largest, std::abs(static_cast<double>(x[i])));
          error = std::max(error, std::abs(static_cast<double>(x[i]) - y[i]));
        }
        const double subnormal = format->dtype == DType::f16 ? 0x1p-25 : 0;  // half of the smallest half
        ASSERT_LE(error, kErrorShare.at(format->name) * largest * (1 + 1e-6) + subnormal) << "block at " << start;
      }
    }
  }
}

TEST(Formats, ZerosStayZero) {
  for (const TensorFormat* format : tensor_formats())
    for (const float y : round_trip(*format, std::vector<float>(kElements, 0.0f)))
      ASSERT_EQ(y, 0.0f) << format->name;
}

TEST(Formats, NothingIsTouchedForNoElements) {
  for (const TensorFormat* format : tensor_formats()) {
    std::byte block{0x5A};
    float value = 42.0f;
    format->quantize(&value, 0, &block);
    format->dequantize(&block, 0, &value);
    format->quantize(nullptr, 0, nullptr);
    format->dequantize(nullptr, 0, nullptr);
    EXPECT_EQ(block, std::byte{0x5A});
    EXPECT_EQ(value, 42.0f);
  }
}

TEST(Formats, BlocksDoNotDependOnTheirNeighbours) {
  const auto x = normals(3);
  for (const TensorFormat* format : tensor_formats()) {
    const auto whole = encode(*format, x);
    const auto n_block = format->block_elements;
    std::vector<std::byte> one(static_cast<size_t>(format->block_bytes));
    for (int64_t i = 0; i < kElements / n_block; ++i) {
      format->quantize(x.data() + i * n_block, n_block, one.data());
      ASSERT_TRUE(std::equal(one.begin(), one.end(), whole.begin() + i * format->block_bytes)) << format->name;
    }
  }
}

TEST(Formats, BlocksMayLieAtAnyAddress) {
  const auto x = normals(4);
  for (const TensorFormat* format : tensor_formats()) {
    const auto blocks = encode(*format, x);
    std::vector<std::byte> shifted(blocks.size() + 1);
    std::copy(blocks.begin(), blocks.end(), shifted.begin() + 1);
    std::vector<float> out(kElements);
    format->dequantize(shifted.data() + 1, kElements, out.data());
    EXPECT_EQ(out, round_trip(*format, x)) << format->name;
  }
}

TEST(Formats, FiniteInputGivesFiniteOutput) {
  constexpr float kMax = std::numeric_limits<float>::max(), kTiny = std::numeric_limits<float>::denorm_min();
  for (const TensorFormat* format : tensor_formats()) {
    if (format->block_elements == 1) continue;  // f16 and bf16 round to infinity as IEEE 754 has it
    SCOPED_TRACE(format->name);
    for (const float extreme : {kMax, -kMax, 1e30f, -7e5f, 1e-38f, kTiny, -kTiny}) {
      auto x = normals(5, 1e-3f);
      x[7] = extreme;
      x[300] = extreme;
      x[301] = -extreme;
      for (const float y : round_trip(*format, x)) ASSERT_TRUE(std::isfinite(y));
      for (const float y : round_trip(*format, std::vector<float>(kElements, extreme)))
        ASSERT_TRUE(std::isfinite(y));
    }
  }
}

TEST(Formats, InfinitiesAndNaNAreSurvived) {
  constexpr float kInf = std::numeric_limits<float>::infinity(), kNaN = std::numeric_limits<float>::quiet_NaN();
  for (const TensorFormat* format : tensor_formats()) {
    SCOPED_TRACE(format->name);
    for (const float odd : {kInf, -kInf, kNaN}) {
      const auto clean = normals(6);
      auto x = clean;
      x[5] = odd;
      const auto y = round_trip(*format, x);
      // The harm stays in the block that held the odd value.
      const auto expected = round_trip(*format, clean);
      const auto n_block = static_cast<size_t>(format->block_elements);
      for (size_t i = 0; i < x.size(); ++i) {
        if (i / n_block != 5 / n_block) {
          ASSERT_EQ(y[i], expected[i]);
        }
      }
      round_trip(*format, std::vector<float>(kElements, odd));
    }
  }
}

TEST(Formats, AnyBytesDecode) {
  Rng rng(9);
  for (const TensorFormat* format : tensor_formats()) {
    std::vector<std::byte> blocks(static_cast<size_t>(row_bytes(format->dtype, kElements)));
    for (int repeat = 0; repeat < 20; ++repeat) {
      for (std::byte& b : blocks) b = static_cast<std::byte>(rng.next_below(256));
      std::vector<float> out(kElements + 1, 123.0f);
      format->dequantize(blocks.data(), kElements, out.data());
      ASSERT_EQ(out[kElements], 123.0f);
    }
  }
}

}  // namespace
}  // namespace sh
