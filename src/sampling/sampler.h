// SPDX-License-Identifier: MIT
#pragma once

#include <cstdint>
#include <deque>
#include <span>
#include <unordered_map>
#include <utility>
#include <vector>

#include "base/result.h"
#include "base/rng.h"
#include "sampling/candidates.h"
#include "sampling/log_probs.h"

namespace sh::sampling {

inline constexpr uint32_t kRandomSeed = 0xFFFFFFFF;

/// Names and defaults of llama.cpp. The chain runs in the order of the fields from repeat_last_n to temperature.
struct SamplingParams {
  float temperature = 0.8f;        // 0 or less: the most probable token, and nothing is drawn
  int32_t top_k = 40;              // 0 or less: all
  float top_p = 0.95f;             // 1: all
  float min_p = 0.05f;             // 0: all
  float typical_p = 1.0f;          // 1: all
  int32_t repeat_last_n = 64;      // tokens that the penalties see; 0: none, -1: all
  float repeat_penalty = 1.0f;     // 1: none
  float presence_penalty = 0.0f;   // 0: none
  float frequency_penalty = 0.0f;  // 0: none
  uint32_t seed = kRandomSeed;
  int32_t min_keep = 0;                                 // no sampler leaves fewer candidates
  std::vector<std::pair<int32_t, float>> logit_bias{};  // id, added to its logit; −∞ bans
  std::vector<int32_t> banned{};                        // never drawn while another token can be: ignore_eos
};

/// Errors: invalid_argument, naming the field, its value and what is accepted.
Result<void> validate(const SamplingParams& params);

/// Draws tokens for one sequence: bias and bans; penalties; top-k; typical; top-p; min-p; temperature; draw.
/// What is drawn depends on (seed, stream) and the logits only, not on what else runs in the batch.
/// Threads: one at a time; copies are independent.
class Sampler {
 public:
  /// `stream` tells apart sequences with the same seed. Errors: those of validate().
  static Result<Sampler> create(SamplingParams params, uint64_t stream);

  /// The id of the next token. Logits that are NaN count as −∞; when none is left, the lowest id that is not
  /// banned. Shapes:  logits [n_vocab]. Needs: not empty.
  int32_t sample(std::span<const float> logits);
  /// Tells the penalties about a token of the text: of the prompt too, in order.
  void accept(int32_t id);
  /// Forgets the accepted tokens and starts the random numbers again.
  void reset();

  /// The candidates that the last sample() drew from, with their probabilities at the end of the chain.
  std::span<const Candidate> last_candidates() const { return candidates_.all(); }
  /// The seed in use: a drawn one when kRandomSeed was asked for.
  uint32_t seed() const { return seed_; }
  const SamplingParams& params() const { return params_; }

 private:
  Sampler(SamplingParams params, uint32_t seed, uint64_t stream);
  void apply_bias();
  void apply_penalties();
  int32_t pick_largest();

  SamplingParams params_;
  uint32_t seed_;
  uint64_t stream_;
  Rng rng_;
  bool has_penalties_;
  std::deque<int32_t> recent_;               // the last repeat_last_n accepted tokens
  std::unordered_map<int32_t, int> counts_;  // of the tokens in recent_
  std::vector<float> logits_;                // [n_vocab]
  Candidates candidates_;
};

}  // namespace sh::sampling
