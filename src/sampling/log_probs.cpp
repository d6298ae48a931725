// SPDX-License-Identifier: MIT
#include "sampling/log_probs.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "base/check.h"
#include "sampling/candidates.h"

namespace sh::sampling {

namespace {

constexpr float kMinusInfinity = -std::numeric_limits<float>::infinity();

float clean_logit(float logit) {
  return std::isnan(logit) ? kMinusInfinity : std::min(logit, std::numeric_limits<float>::max());
}

/// log Σ exp(logit); −∞ when no logit is finite.
double log_sum_exp(std::span<const float> logits) {
  float largest = kMinusInfinity;
  for (const float logit : logits) largest = std::max(largest, clean_logit(logit));
  if (largest == kMinusInfinity) return kMinusInfinity;
  double sum = 0;
  for (const float logit : logits) sum += std::exp(clean_logit(logit) - largest);
  return largest + std::log(sum);
}

float relative(float logit, double log_sum) {
  return logit == kMinusInfinity ? kMinusInfinity : static_cast<float>(logit - log_sum);
}

}  // namespace

void clean_logits(std::span<const float> logits, std::vector<float>& clean) {
  clean.resize(logits.size());
  std::transform(logits.begin(), logits.end(), clean.begin(), clean_logit);
}

std::vector<TokenProb> top_log_probs(std::span<const float> logits, int32_t n) {
  std::vector<TokenProb> top;
  if (n <= 0) return top;
  std::vector<float> clean;
  clean_logits(logits, clean);
  const double log_sum = log_sum_exp(clean);
  Candidates candidates;
  candidates.assign_top_k(clean, static_cast<size_t>(n));
  for (const Candidate& c : candidates.all()) top.push_back({c.id, relative(c.logit, log_sum)});
  return top;
}

float log_prob(std::span<const float> logits, int32_t id) {
  SH_CHECK(id >= 0 && static_cast<size_t>(id) < logits.size(), "token id outside the logits");
  return relative(clean_logit(logits[static_cast<size_t>(id)]), log_sum_exp(logits));
}

}  // namespace sh::sampling
