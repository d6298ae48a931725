// SPDX-License-Identifier: MIT
#pragma once

#include <cstdint>
#include <span>
#include <vector>

namespace sh::sampling {

/// Log-probability of a token over the whole vocabulary, before any sampler.
struct TokenProb {
  int32_t id;
  float logprob;  // natural log; −∞ where the logit is −∞ or NaN
};

/// The n largest, largest first, the lower id among equals. Cost: two passes over the logits, a heap of n.
std::vector<TokenProb> top_log_probs(std::span<const float> logits, int32_t n);
/// Needs: 0 <= id < logits.size().
float log_prob(std::span<const float> logits, int32_t id);

/// The logits with NaN as −∞ and +∞ as the largest finite number, in `clean`.
void clean_logits(std::span<const float> logits, std::vector<float>& clean);

}  // namespace sh::sampling
