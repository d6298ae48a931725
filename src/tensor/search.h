// SPDX-License-Identifier: MIT
// Search for the scales of formats whose scales are themselves rounded (K formats, IQ4). Every candidate is a
// rounding of the codes followed by the least-squares scale for those codes; the candidate of least squared error
// wins. Deterministic.
#pragma once

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <span>

#include "tensor/codec.h"
#include "tensor/half.h"

namespace sh::search {

inline constexpr int kMaxBlock = 256;
inline constexpr int kMaxGroups = 16;

/// A block made safe to search: NaN becomes 0, and infinities a bound far above what any of these formats can
/// hold, whose squares still sum in double.
template <int kElements>
std::array<float, kElements> finite_block(const float* x) {
  constexpr float kBound = 1e30f;
  std::array<float, kElements> block;
  for (int i = 0; i < kElements; ++i) block[i] = std::isnan(x[i]) ? 0.0f : std::clamp(x[i], -kBound, kBound);
  return block;
}

/// Rounding to the nearest integer code in [low, high].
struct IntegerCodes {
  int low, high;
  int code(float v) const { return codec::round_code(v, low, high); }
  float value(int code) const { return static_cast<float>(code); }
};

/// Rounding to the nearest entry of a rising table.
struct TableCodes {
  std::span<const int8_t, 16> table;
  int code(float v) const;
  float value(int code) const { return table[static_cast<size_t>(code)]; }
};

/// Σ (x - scale · value(code(x / scale)))².
template <typename Codes>
double scaled_error(std::span<const float> x, float scale, const Codes& codes) {
  const float inverse = codec::inverse_or_zero(scale);
  double error = 0;
  for (const float v : x) {
    const double difference = v - static_cast<double>(scale) * codes.value(codes.code(v * inverse));
    error += difference * difference;
  }
  return error;
}

/// The scale of either sign under which x is closest to its codes. `reach` is the magnitude of the outermost code;
/// scales are tried that put the largest |x| between 0.8 and 1.3 times it.
template <typename Codes>
float best_scale(std::span<const float> x, float reach, const Codes& codes) {
  constexpr int kSteps = 26;
  const float extreme = codec::signed_largest(x.data(), static_cast<int>(x.size()));
  if (extreme == 0.0f) return 0.0f;
  float best = 0.0f;
  double best_gain = 0;  // Σx² minus the error under the least-squares scale: (Σ x·q)² / Σ q²
  for (int step = 0; step < 2 * kSteps; ++step) {
    const float share = 0.8f + 0.02f * static_cast<float>(step / 2);
    const float inverse = (step % 2 == 0 ? share : -share) * reach / extreme;
    double xq = 0, qq = 0;
    for (const float v : x) {
      const double q = codes.value(codes.code(v * inverse));
      xq += v * q;
      qq += q * q;
    }
    if (qq > 0 && xq * xq > best_gain * qq) {
      best_gain = xq * xq / qq;
      best = static_cast<float>(xq / qq);
    }
  }
  return best;
}

struct GroupScales {
  uint16_t d;  // binary16
  std::array<int, kMaxGroups> scales;

  float of(int group) const { return half_to_float(d) * static_cast<float>(scales[static_cast<size_t>(group)]); }
};

/// Scales d · scales[g], integers in [-limit, limit - 1], for the groups of `group_size` elements of x.
template <typename Codes>
GroupScales fit_group_scales(std::span<const float> x, int group_size, int limit, float reach,
                             const Codes& codes) {
  const int n_groups = static_cast<int>(x.size()) / group_size;
  std::array<float, kMaxGroups> wanted{};
  for (int g = 0; g < n_groups; ++g)
    wanted[static_cast<size_t>(g)] =
        best_scale(x.subspan(static_cast<size_t>(g * group_size), static_cast<size_t>(group_size)), reach, codes);
  // The largest scale takes the negative end, which reaches one further.
  const float d = codec::finite_scale(codec::signed_largest(wanted.data(), n_groups) / static_cast<float>(-limit));
  GroupScales result{float_to_half(d), {}};
  const float rounded_d = half_to_float(result.d);
  const float inverse = codec::inverse_or_zero(rounded_d);
  for (int g = 0; g < n_groups; ++g) {
    const auto group = x.subspan(static_cast<size_t>(g * group_size), static_cast<size_t>(group_size));
    const int nearest = codec::round_code(wanted[static_cast<size_t>(g)] * inverse, -limit, limit - 1);
    double best_error = -1;
    for (int scale = std::max(nearest - 1, -limit); scale <= std::min(nearest + 1, limit - 1); ++scale) {
      const double error = scaled_error(group, rounded_d * static_cast<float>(scale), codes);
      if (best_error >= 0 && error >= best_error) continue;
      best_error = error;
      result.scales[static_cast<size_t>(g)] = scale;
    }
  }
  return result;
}

/// Scales and mins of x = q · d · scales[g] - dmin · mins[g], q in [0, high]; scales and mins in [0, limit].
struct GroupRanges {
  uint16_t d, dmin;  // binary16
  std::array<uint8_t, kMaxGroups> scales, mins;

  float scale(int group) const { return half_to_float(d) * scales[static_cast<size_t>(group)]; }
  float min(int group) const { return half_to_float(dmin) * mins[static_cast<size_t>(group)]; }
};
GroupRanges fit_group_ranges(std::span<const float> x, int group_size, int limit, int high);

/// The code of v under x = q · scale - min.
inline int range_code(float v, float scale, float min, int high) {
  return codec::round_code((v + min) * codec::inverse_or_zero(scale), 0, high);
}

}  // namespace sh::search
