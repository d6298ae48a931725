// SPDX-License-Identifier: MIT
#include "engine/spread_sampler.h"

#include <algorithm>
#include <cmath>
#include <limits>

namespace sh::engine {

namespace {

constexpr double kGoldenFraction = 0.6180339887498949;
// A point has 53 bits; once the tokens have used about 33 of them no other text has a neighbour's point any more,
// and the rest is drawn at random before it runs out.
constexpr double kSmallestWidth = 0x1p-33;

}  // namespace

SpreadSampler::SpreadSampler(uint64_t seed, uint64_t number) : rng_(seed, number) {
  const double moved =
      Rng(seed, std::numeric_limits<uint64_t>::max()).next_unit() + static_cast<double>(number) * kGoldenFraction;
  point_ = moved - std::floor(moved);
}

int32_t SpreadSampler::sample(const kernels::KernelSet& kernels, std::span<float> logits, float temperature) {
  for (float& logit : logits)
    logit = std::isnan(logit) ? -std::numeric_limits<float>::infinity() : logit / temperature;
  const auto n = static_cast<int64_t>(logits.size());
  const float highest = kernels.max(logits.data(), n);
  if (!std::isfinite(highest)) return 0;
  const double sum = kernels.exp_sum(logits.data(), highest, n);  // logits are weights from here on
  double below = 0, share = 0;
  int32_t drawn = 0;
  for (size_t id = 0; id < logits.size(); ++id) {
    const double next = logits[id] / sum;
    if (next <= 0) continue;
    drawn = static_cast<int32_t>(id);
    share = next;
    if (point_ < below + next) break;
    below += next;
  }
  width_ *= share;
  point_ = std::clamp((point_ - below) / share, 0.0, 1.0 - 0x1p-53);
  if (width_ < kSmallestWidth) {
    width_ = 1;
    point_ = rng_.next_unit();
  }
  return drawn;
}

}  // namespace sh::engine
