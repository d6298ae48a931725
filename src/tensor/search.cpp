// SPDX-License-Identifier: MIT
#include "tensor/search.h"

namespace sh::search {

int TableCodes::code(float v) const {
  const auto above =
      std::lower_bound(table.begin(), table.end(), v, [](int8_t entry, float wanted) { return entry < wanted; });
  if (above == table.begin()) return 0;
  if (above == table.end()) return static_cast<int>(table.size()) - 1;
  const int upper = static_cast<int>(above - table.begin());
  return v - value(upper - 1) < value(upper) - v ? upper - 1 : upper;
}

namespace {
struct RangeFit {
  float scale = 0, min = 0;  // x ≈ q · scale - min, both at least zero
  double error = 0;
};

double range_error(std::span<const float> x, float scale, float min, int high) {
  double error = 0;
  for (const float v : x) {
    const double q = range_code(v, scale, min, high);
    const double difference = v - (q * scale - min);
    error += difference * difference;
  }
  return error;
}

/// Least-squares scale and min for the codes that x takes under `fit`; unchanged if the codes are all equal.
void refine(std::span<const float> x, int high, RangeFit& fit) {
  double n = 0, sum_q = 0, sum_qq = 0, sum_x = 0, sum_xq = 0;
  for (const float v : x) {
    const double q = range_code(v, fit.scale, fit.min, high);
    n += 1;
    sum_q += q;
    sum_qq += q * q;
    sum_x += v;
    sum_xq += v * q;
  }
  const double determinant = n * sum_qq - sum_q * sum_q;
  if (determinant <= 0) return;
  double scale = (n * sum_xq - sum_q * sum_x) / determinant;
  double min = (sum_q * sum_xq - sum_qq * sum_x) / determinant;
  if (min < 0) {  // the format cannot shift upwards: the best scale through zero
    min = 0;
    scale = sum_xq / sum_qq;
  }
  if (scale <= 0) return;
  fit.scale = static_cast<float>(scale);
  fit.min = static_cast<float>(min);
}

RangeFit best_range(std::span<const float> x, int high) {
  const codec::Range range = codec::value_range(x.data(), static_cast<int>(x.size()));
  const float low = std::min(range.low, 0.0f);
  RangeFit best;
  best.min = -low;
  best.error = range_error(x, best.scale, best.min, high);
  if (range.high <= low) return best;
  // Both ends of the range may be cut: each candidate covers a share of it, starting a little above the lowest
  // value.
  for (const float cut : {0.0f, 0.04f, 0.08f, 0.12f}) {
    for (int step = 0; step < 16; ++step) {
      const float share = 0.7f + 0.025f * static_cast<float>(step);
      RangeFit fit;
      fit.scale = (range.high - low) * share / static_cast<float>(high);
      fit.min = -low * (1 - cut);
      for (int round = 0; round < 3; ++round) {
        refine(x, high, fit);
        fit.error = range_error(x, fit.scale, fit.min, high);
        if (fit.error < best.error) best = fit;
      }
    }
  }
  return best;
}

struct RoundedFactors {
  uint16_t d;  // binary16
  std::array<int, kMaxGroups> nearest;
};
/// Non-negative factors as d · integer in [0, limit].
RoundedFactors round_factors(std::span<const float> factors, int limit) {
  const float largest = codec::largest_magnitude(factors.data(), static_cast<int>(factors.size()));
  RoundedFactors rounded{float_to_half(codec::finite_scale(largest / static_cast<float>(limit))), {}};
  const float inverse = codec::inverse_or_zero(half_to_float(rounded.d));
  for (size_t g = 0; g < factors.size(); ++g)
    rounded.nearest[g] = codec::round_code(factors[g] * inverse, 0, limit);
  return rounded;
}
}  // namespace

GroupRanges fit_group_ranges(std::span<const float> x, int group_size, int limit, int high) {
  const size_t n_groups = x.size() / static_cast<size_t>(group_size);
  std::array<float, kMaxGroups> scales{}, mins{};
  for (size_t g = 0; g < n_groups; ++g) {
    const RangeFit fit =
        best_range(x.subspan(g * static_cast<size_t>(group_size), static_cast<size_t>(group_size)), high);
    scales[g] = fit.scale;
    mins[g] = fit.min;
  }
  const RoundedFactors scale_factors = round_factors({scales.data(), n_groups}, limit);
  const RoundedFactors min_factors = round_factors({mins.data(), n_groups}, limit);
  GroupRanges result{scale_factors.d, min_factors.d, {}, {}};
  const float d = half_to_float(result.d), dmin = half_to_float(result.dmin);
  for (size_t g = 0; g < n_groups; ++g) {
    const auto group = x.subspan(g * static_cast<size_t>(group_size), static_cast<size_t>(group_size));
    const int scale = scale_factors.nearest[g], min = min_factors.nearest[g];
    double best_error = -1;
    for (int s = std::max(scale - 1, 0); s <= std::min(scale + 1, limit); ++s) {
      for (int m = std::max(min - 1, 0); m <= std::min(min + 1, limit); ++m) {
        const double error = range_error(group, d * static_cast<float>(s), dmin * static_cast<float>(m), high);
        if (best_error >= 0 && error >= best_error) continue;
        best_error = error;
        result.scales[g] = static_cast<uint8_t>(s);
        result.mins[g] = static_cast<uint8_t>(m);
      }
    }
  }
  return result;
}

}  // namespace sh::search
