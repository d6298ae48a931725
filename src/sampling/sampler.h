// SPDX-License-Identifier: MIT
#pragma once
#include <cstdint>
#include <utility>
#include <vector>
namespace sh::sampling {
struct SamplingParams {
  float temperature = 0.8f;
  int top_k = 40;
  float top_p = 0.95f, min_p = 0.05f, typical_p = 1.0f;
  int repeat_last_n = 64;
  float repeat_penalty = 1.0f, presence_penalty = 0, frequency_penalty = 0;
  uint32_t seed = 0xFFFFFFFF;
  std::vector<std::pair<int32_t, float>> logit_bias;
  int min_keep = 0;
  int n_probs = 0;
};
}  // namespace sh::sampling
