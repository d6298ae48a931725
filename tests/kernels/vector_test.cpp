// SPDX-License-Identifier: MIT
#include <cstring>
#include <limits>

#include "kernels/kernel_testing.h"
#include "kernels/q8_row.h"
#include "tensor/dtype.h"

namespace sh::kernels {
namespace {

constexpr float kInf = std::numeric_limits<float>::infinity();
constexpr float kGuard = 12345.0f;  // behind every output: must stay

class VectorKernels : public EverySet {};
SH_FOR_EVERY_SET(VectorKernels);

/// x with a guard behind it.
std::vector<float> guarded(std::vector<float> x) {
  x.push_back(kGuard);
  return x;
}

TEST_P(VectorKernels, DotWithinTheRoundingBound) {
  for (int64_t n : edge_sizes()) {
    const auto a = random_floats(n, 1), b = random_floats(n, 2);
    double exact = 0, magnitude = 0;
    for (size_t i = 0; i < a.size(); ++i) {
      exact += static_cast<double>(a[i]) * b[i];
      magnitude += std::fabs(static_cast<double>(a[i]) * b[i]);
    }
    // n roundings, each at most eps of a partial sum that is at most the sum of magnitudes.
    EXPECT_NEAR(set().dot(a.data(), b.data(), n), exact, static_cast<double>(n + 1) * kEps * magnitude) << n;
  }
}

TEST_P(VectorKernels, AddAndAxpy) {
  for (int64_t n : edge_sizes()) {
    const auto a = random_floats(n, 1), b = random_floats(n, 2);
    std::vector<float> sum(static_cast<size_t>(n) + 1, kGuard);
    set().add(a.data(), b.data(), sum.data(), n);
    std::vector<float> y = guarded(b);
    set().axpy(0.7f, a.data(), y.data(), n);
    for (size_t i = 0; i < a.size(); ++i) {
      EXPECT_EQ(sum[i], a[i] + b[i]);
      EXPECT_NEAR(y[i], b[i] + 0.7 * a[i], 3 * kEps * (std::fabs(b[i]) + std::fabs(a[i])));
    }
    EXPECT_EQ(sum.back(), kGuard);
    EXPECT_EQ(y.back(), kGuard);
  }
}

TEST_P(VectorKernels, RmsNormWithAndWithoutWeightAndInPlace) {
  for (int64_t n : edge_sizes()) {
    if (n == 0) continue;
    const auto x = random_floats(n, 3, 5.0f), weight = random_floats(n, 4);
    double squares = 0;
    for (float v : x) squares += static_cast<double>(v) * v;
    const double factor = 1.0 / std::sqrt(squares / static_cast<double>(n) + 1e-5);
    std::vector<float> y = guarded(x), plain = guarded(x);
    set().rms_norm(y.data(), weight.data(), 1e-5f, y.data(), n);
    set().rms_norm(x.data(), nullptr, 1e-5f, plain.data(), n);
    // The squares are all positive, so their sum has a relative error of n eps at most; half of it reaches the
    // root.
    const double tolerance = (0.5 * static_cast<double>(n) + 6) * kEps;
    for (size_t i = 0; i < x.size(); ++i) {
      EXPECT_NEAR(y[i], x[i] * factor * weight[i], tolerance * std::fabs(x[i] * factor * weight[i]));
      EXPECT_NEAR(plain[i], x[i] * factor, tolerance * std::fabs(x[i] * factor));
    }
    EXPECT_EQ(y.back(), kGuard);
    EXPECT_EQ(plain.back(), kGuard);
  }
}

TEST_P(VectorKernels, SwigluAlsoForLargeGates) {
  for (int64_t n : edge_sizes()) {
    auto gate = random_floats(n, 5, 4.0f);
    if (n > 2) {
      gate[0] = 200.0f;
      gate[1] = -200.0f;
    }
    const auto up = random_floats(n, 6);
    std::vector<float> y = guarded(gate);
    set().swiglu(y.data(), up.data(), y.data(), n);
    for (size_t i = 0; i < gate.size(); ++i) {
      const double exact = gate[i] / (1.0 + std::exp(-static_cast<double>(gate[i]))) * up[i];
      EXPECT_NEAR(y[i], exact, 12 * kEps * std::fabs(exact) + 1e-37) << gate[i];
    }
    EXPECT_EQ(y.back(), kGuard);
  }
}

TEST_P(VectorKernels, ExpHasSmallRelativeErrorEverywhere) {
  // 2 units in the last place; below the smallest normal number the result may be 0.
  std::vector<float> x;
  for (int i = 0; i <= 40000; ++i) x.push_back(-104.0f + 0.0048f * static_cast<float>(i));
  std::vector<float> y = x;
  set().exp_sum(y.data(), 0.0f, static_cast<int64_t>(y.size()));
  for (size_t i = 0; i < x.size(); ++i) {
    const double exact = std::exp(static_cast<double>(x[i]));
    if (exact > std::numeric_limits<float>::max()) {
      EXPECT_EQ(y[i], kInf) << x[i];
    } else {
      EXPECT_NEAR(y[i], exact, 4 * kEps * exact + 1.2e-38) << x[i];
    }
  }
}

TEST_P(VectorKernels, ExpSumSubtractsTheShiftAndTakesMinusInfinity) {
  for (int64_t n : edge_sizes()) {
    auto x = random_floats(n, 7, 3.0f);
    for (size_t i = 0; i < x.size(); i += 3) x[i] = -kInf;
    std::vector<float> y = guarded(x);
    const float sum = set().exp_sum(y.data(), 4.0f, n);
    double exact = 0;
    for (size_t i = 0; i < x.size(); ++i) {
      exact += std::exp(static_cast<double>(x[i]) - 4.0);
      if (x[i] == -kInf) {
        EXPECT_EQ(y[i], 0.0f);
      }
    }
    // The shift rounds the argument (|x - 4| < 32: error below 32 eps), exp and the sums add a few more.
    EXPECT_NEAR(sum, exact, (40.0 + static_cast<double>(n)) * kEps * exact);
    EXPECT_EQ(y.back(), kGuard);
  }
}

TEST_P(VectorKernels, MaxFindsEveryPlaceAndIsMinusInfinityOfNothing) {
  EXPECT_EQ(set().max(nullptr, 0), -kInf);
  for (int64_t n : edge_sizes())
    for (int64_t place = 0; place < n; place += 1 + n / 13) {
      auto x = random_floats(n, 8);
      x[static_cast<size_t>(place)] = 1000.0f;
      EXPECT_EQ(set().max(x.data(), n), 1000.0f);
      std::vector<float> hidden(static_cast<size_t>(n), -kInf);
      EXPECT_EQ(set().max(hidden.data(), n), -kInf);
    }
}

TEST_P(VectorKernels, RopeRotatesPairs) {
  for (int64_t n : edge_sizes()) {
    const auto x = random_floats(2 * n, 9);
    std::vector<float> cos(static_cast<size_t>(n)), sin(static_cast<size_t>(n));
    for (size_t i = 0; i < cos.size(); ++i) {
      cos[i] = std::cos(0.1f * static_cast<float>(i));
      sin[i] = std::sin(0.1f * static_cast<float>(i));
    }
    std::vector<float> adjacent = guarded(x), halves = guarded(x);
    set().rope_adjacent(adjacent.data(), cos.data(), sin.data(), n);
    set().rope_halves(halves.data(), cos.data(), sin.data(), n);
    const auto expect_pair = [&](double a, double b, size_t i, float rotated_a, float rotated_b) {
      const double bound = 3 * kEps * (std::fabs(a) + std::fabs(b));
      EXPECT_NEAR(rotated_a, a * cos[i] - b * sin[i], bound);
      EXPECT_NEAR(rotated_b, a * sin[i] + b * cos[i], bound);
    };
    for (size_t i = 0; i < cos.size(); ++i) {
      expect_pair(x[2 * i], x[2 * i + 1], i, adjacent[2 * i], adjacent[2 * i + 1]);
      expect_pair(x[i], x[i + cos.size()], i, halves[i], halves[i + cos.size()]);
    }
    EXPECT_EQ(adjacent.back(), kGuard);
    EXPECT_EQ(halves.back(), kGuard);
  }
}

TEST_P(VectorKernels, QuantizeQ8HasTheBitsOfTheGenericSet) {
  for (int64_t n : {0, 32, 64, 96, 1024, 1056}) {
    auto x = random_floats(n, 10, 3.0f);
    if (n >= 96) {
      std::fill_n(x.begin(), 32, 0.0f);
      for (size_t i = 32; i < 64; ++i) x[i] *= 1e-38f;  // too small for a scale
      x[70] = 1e30f;
    }
    const int64_t n_bytes = set().q8_row_bytes(n);
    EXPECT_EQ(n_bytes % 64, 0);
    EXPECT_EQ(n_bytes, generic_set().q8_row_bytes(n));
    std::vector<std::byte> ours(static_cast<size_t>(n_bytes) + 64), theirs(static_cast<size_t>(n_bytes) + 64);
    set().quantize_q8(x.data(), n, ours.data());
    generic_set().quantize_q8(x.data(), n, theirs.data());
    EXPECT_EQ(ours, theirs) << n;
    std::vector<std::byte> parts(ours.size());
    const int64_t middle = n / 2 / kQ8Group * kQ8Group;
    set().quantize_q8_part(x.data() + middle, middle, n, n, parts.data());
    set().quantize_q8_part(x.data(), 0, middle, n, parts.data());
    EXPECT_EQ(ours, parts) << n;
    const Q8Row row = Q8Row::at(ours.data(), n);
    for (int64_t i = 0; i < n; ++i) {
      const double step = row.scale[i / kQ8Group];
      // Half a step; the group that counts as zeros is below 1e-35.
      EXPECT_NEAR(step * row.q[i], x[static_cast<size_t>(i)], 0.5001 * step + 1e-35);
    }
  }
}

class Codecs : public EverySet {};
SH_FOR_EVERY_SET(Codecs);

std::vector<float> codec_input(const TensorFormat& format, int64_t n) {
  auto x = random_floats(n, 11 + static_cast<uint64_t>(format.dtype), 2.0f);
  if (n >= 8 * format.block_elements && n >= 8) {
    std::fill_n(x.begin(), format.block_elements, 0.0f);
    for (int64_t i = format.block_elements; i < 2 * format.block_elements; ++i)
      x[static_cast<size_t>(i)] *= 1e-39f;
    for (int64_t i = 2 * format.block_elements; i < 3 * format.block_elements; ++i)
      x[static_cast<size_t>(i)] *= 1e6f;
    // Exact halves of the step and a tie for the largest magnitude.
    for (int64_t i = 3 * format.block_elements; i < 4 * format.block_elements; ++i)
      x[static_cast<size_t>(i)] =
          (i % 2 == 0 ? 1.0f : -1.0f) * (static_cast<float>(i % 8) + 0.5f) * 127.0f / 127.0f;
    x[static_cast<size_t>(3 * format.block_elements)] = 127.0f;
    x[static_cast<size_t>(4 * format.block_elements - 1)] = -127.0f;
  }
  return x;
}

TEST_P(Codecs, EveryCacheFormatHasTheBitsOfItsReferenceBothWays) {
  for (const TensorFormat* format : tensor_formats()) {
    if (!is_kv_dtype(format->dtype)) continue;
    for (int64_t n_blocks : {0, 1, 2, 3, 7, 9, 17, 67}) {
      const int64_t n = n_blocks * format->block_elements;
      const auto x = codec_input(*format, n);
      std::vector<std::byte> ours(static_cast<size_t>(row_bytes(format->dtype, n)) + 1, std::byte{0x5A});
      std::vector<std::byte> reference = ours;
      set().encode_row(format->dtype, x.data(), n, ours.data());
      format->quantize(x.data(), n, reference.data());
      EXPECT_EQ(ours, reference) << format->name << " n " << n;
      std::vector<float> decoded(static_cast<size_t>(n) + 1, kGuard), expected = decoded;
      set().decode_row(format->dtype, reference.data(), n, decoded.data());
      format->dequantize(reference.data(), n, expected.data());
      EXPECT_EQ(0, std::memcmp(decoded.data(), expected.data(), decoded.size() * sizeof(float)))
          << format->name << " n " << n;
    }
  }
}

TEST_P(Codecs, InfinitiesAndNanEncodeAsTheReferenceDoes) {
  for (const TensorFormat* format : tensor_formats()) {
    if (!is_kv_dtype(format->dtype)) continue;
    for (float special : {kInf, -kInf, std::numeric_limits<float>::quiet_NaN(), 1e38f}) {
      auto x = random_floats(64, 13);
      x[5] = x[40] = special;
      std::vector<std::byte> ours(static_cast<size_t>(row_bytes(format->dtype, 64))), reference = ours;
      set().encode_row(format->dtype, x.data(), 64, ours.data());
      format->quantize(x.data(), 64, reference.data());
      EXPECT_EQ(ours, reference) << format->name << " with " << special;
    }
  }
}

TEST_P(Codecs, EveryHalfAndEveryBfloatDecodesExactly) {
  for (DType dtype : {DType::f16, DType::bf16}) {
    std::vector<uint16_t> words(65536);
    for (size_t i = 0; i < words.size(); ++i) words[i] = static_cast<uint16_t>(i);
    std::vector<float> ours(words.size()), reference(words.size());
    const std::byte* row = reinterpret_cast<const std::byte*>(words.data());
    set().decode_row(dtype, row, 65536, ours.data());
    tensor_format(dtype).dequantize(row, 65536, reference.data());
    for (size_t i = 0; i < words.size(); ++i) {
      if (std::isnan(reference[i])) {
        EXPECT_TRUE(std::isnan(ours[i]));  // the CPU makes signalling NaN quiet
      } else {
        EXPECT_EQ(0, std::memcmp(&ours[i], &reference[i], sizeof(float))) << i;
      }
    }
  }
}

}  // namespace
}  // namespace sh::kernels
