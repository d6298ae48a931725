// SPDX-License-Identifier: MIT
// How many prompt tokens a step takes that other conversations wait for with their answers.
#pragma once

#include <cstdint>
#include <optional>

namespace sh::engine {

/// Learns from the steps that were what a prompt token costs, and allows so many that a step lasts about a goal.
class PromptAllowance {
 public:
  /// A prompt goes on by so many in any case. Read 16 at a time a token takes 1.1 to 1.2 times the processor's
  /// seconds of 512 at a time (135M and 0.6B, Q8_0 and Q4_K_M, one thread of an EPYC with AVX2, 2026-11-30);
  /// with fewer a step would be mostly reading weights and decoding.
  static constexpr int64_t kMinTokens = 16;

  /// `n_max`: tokens of a step at most. A goal of 0: no other limit.
  PromptAllowance(double goal_seconds, int64_t n_max);

  /// From kMinTokens, or n_max where that is less, to n_max. The least before anything was noted: a step that is
  /// too short costs less than one that is too long.
  int64_t n_tokens() const;
  /// What a step with decodes and `n_prompt` prompt tokens took.
  void note(int64_t n_prompt, double seconds);

 private:
  double goal_seconds_;
  int64_t n_min_, n_max_;
  std::optional<double> seconds_per_token_;  // a whole step's over its prompt tokens, smoothed
};

}  // namespace sh::engine
