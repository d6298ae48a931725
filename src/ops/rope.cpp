// SPDX-License-Identifier: MIT
#include <cmath>
#include <numbers>

#include "ops/ops.h"
#include "ops/rows.h"

namespace sh::ops {

namespace {

/// The (fractional) pair whose angle turns `n_turns` times over the original context.
/// Source:  YaRN, arXiv 2309.00071, §3.2: wavelength λ = 2π b^(2i/|D|), turns r = L / λ.
double pair_of_turns(const RopeConfig& c, double n_turns) {
  const double original = c.yarn_original_context;
  return c.n_dims * std::log(original / (n_turns * 2.0 * std::numbers::pi)) / (2.0 * std::log(double{c.base}));
}

/// Share of interpolation of a pair: 0 keeps its angle, 1 divides it by the factor; a linear ramp between the
/// pairs that turn beta_fast and beta_slow times.
class InterpolationRamp {
 public:
  explicit InterpolationRamp(const RopeConfig& c)
      : low_(std::max(0.0, std::floor(pair_of_turns(c, c.yarn_beta_fast)))),
        high_(std::min(c.n_dims - 1.0, std::ceil(pair_of_turns(c, c.yarn_beta_slow)))),
        ext_factor_(c.yarn_ext_factor) {}
  double share(size_t pair) const {
    // The ramp of no width (high == low) becomes a step; the bound is the one GGUF files are made for.
    const double ramp = std::clamp((static_cast<double>(pair) - low_) / std::max(0.001, high_ - low_), 0.0, 1.0);
    return 1.0 - (1.0 - ramp) * ext_factor_;
  }

 private:
  double low_, high_, ext_factor_;
};

/// Radians per position of every pair. Replaces frequencies.
void pair_frequencies(const RopeConfig& c, std::vector<double>& frequencies) {
  SH_CHECK(c.n_dims > 0 && c.n_dims % 2 == 0, "rope: an even number of elements is rotated");
  const size_t n_pairs = static_cast<size_t>(c.n_dims / 2);
  SH_CHECK(c.divisors.empty() || c.divisors.size() == n_pairs, "rope: one divisor a pair");
  frequencies.resize(n_pairs);
  for (size_t i = 0; i < n_pairs; ++i) {
    frequencies[i] = std::pow(double{c.base}, -2.0 * static_cast<double>(i) / c.n_dims);
    if (!c.divisors.empty()) frequencies[i] /= c.divisors[i];
  }
  if (c.yarn_factor == 0.0f) {
    for (double& f : frequencies) f *= c.position_scale;
    return;
  }
  const InterpolationRamp ramp(c);
  for (size_t i = 0; i < n_pairs; ++i)
    frequencies[i] = frequencies[i] / c.yarn_factor * ramp.share(i) + frequencies[i] * (1.0 - ramp.share(i));
}

}  // namespace

void rope_table(const RopeConfig& config, std::span<const kv::Pos> pos, RopeTable& table) {
  pair_frequencies(config, table.frequencies);
  const std::vector<double>& frequencies = table.frequencies;
  table.cos.resize(std::ssize(pos), std::ssize(frequencies));
  table.sin.resize(std::ssize(pos), std::ssize(frequencies));
  for (size_t t = 0; t < pos.size(); ++t) {
    float* cos = table.cos.row(static_cast<int64_t>(t));
    float* sin = table.sin.row(static_cast<int64_t>(t));
    for (size_t i = 0; i < frequencies.size(); ++i) {
      const double angle = pos[t].value * frequencies[i];
      cos[i] = static_cast<float>(std::cos(angle) * config.attention_factor);
      sin[i] = static_cast<float>(std::sin(angle) * config.attention_factor);
    }
  }
}

void rope(OpContext& ctx, const RopeConfig& config, const RopeTable& table, int64_t width, MatView<float> x) {
  SH_CHECK(width >= config.n_dims && x.cols % width == 0, "rope: rows are not whole heads");
  SH_CHECK(table.cos.rows == x.rows && table.cos.cols == config.n_dims / 2, "rope: the table is of another batch");
  const bool is_adjacent = config.pairs == RopeConfig::Pairs::adjacent;
  const auto rotate = is_adjacent ? ctx.kernels->rope_adjacent : ctx.kernels->rope_halves;
  for_rows(ctx, x.rows, x.cols, [&](int64_t t, int) {
    for (float *head = x.row(t), *end = head + x.cols; head != end; head += width)
      rotate(head, table.cos.row(t), table.sin.row(t), table.cos.cols);
  });
}

void shift_rope(const RopeConfig& config, std::span<const int32_t> deltas, MatView<float> keys) {
  SH_CHECK(keys.rows == static_cast<int64_t>(deltas.size()), "rope: every key needs a delta");
  SH_CHECK(keys.cols >= config.n_dims, "rope: keys are narrower than what is rotated");
  std::vector<double> frequencies;
  pair_frequencies(config, frequencies);
  const size_t n_pairs = frequencies.size();
  const bool is_adjacent = config.pairs == RopeConfig::Pairs::adjacent;
  const size_t step = is_adjacent ? 2 : 1, to_second = is_adjacent ? 1 : n_pairs;
  std::vector<double> cos(n_pairs), sin(n_pairs);
  int32_t angles_of = 0;
  for (size_t r = 0; r < deltas.size(); ++r) {
    const int32_t delta = deltas[r];
    if (delta == 0) continue;
    if (delta != angles_of) {
      for (size_t i = 0; i < n_pairs; ++i) {
        cos[i] = std::cos(delta * frequencies[i]);
        sin[i] = std::sin(delta * frequencies[i]);
      }
      angles_of = delta;
    }
    float* first = keys.row(static_cast<int64_t>(r));
    for (size_t i = 0; i < n_pairs; ++i, first += step) {
      const double a = first[0], b = first[to_second];
      first[0] = static_cast<float>(a * cos[i] - b * sin[i]);
      first[to_second] = static_cast<float>(a * sin[i] + b * cos[i]);
    }
  }
}

}  // namespace sh::ops
