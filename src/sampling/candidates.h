// SPDX-License-Identifier: MIT
// The tokens that may still be drawn, and the small samplers that cut or reshape them.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

namespace sh::sampling {

struct Candidate {
  int32_t id;
  float logit;
  float p;  // of the last softmax
};

/// Candidates of which a prefix is sorted, largest logit first and the lower id among equals; the rest only where
/// asked. Logits are finite: assign() leaves out −∞.
class Candidates {
 public:
  /// All tokens of a vocabulary. Needs: no NaN and no +∞.
  void assign(std::span<const float> logits);
  /// The k largest, sorted. Cost: one pass with a heap of k.
  void assign_top_k(std::span<const float> logits, size_t k);

  size_t n() const { return items_.size(); }
  bool is_empty() const { return items_.empty(); }
  std::span<const Candidate> all() const { return items_; }

  /// Keeps the smallest set of largest candidates whose probabilities sum to at least `top_p`.
  void keep_top_p(float top_p, size_t min_keep);
  /// Keeps candidates at least `min_p` times as probable as the largest.
  void keep_min_p(float min_p, size_t min_keep);
  /// Keeps the candidates whose surprise is closest to the expected one, until their probabilities sum to
  /// `typical_p`. Source:  Meister et al., "Locally Typical Sampling", arXiv 2202.00666.
  void keep_typical(float typical_p, size_t min_keep);
  /// Divides the logits. Needs: temperature > 0.
  void apply_temperature(float temperature);
  /// Index of the candidate at the place `unit` in [0, 1) of the cumulative distribution. Needs: not empty.
  size_t draw(double unit);

 private:
  void softmax();
  float largest_logit() const;
  void sort_first(size_t n);
  void keep_first(size_t n);

  std::vector<Candidate> items_;
  size_t n_sorted_ = 0;
};

}  // namespace sh::sampling
