// SPDX-License-Identifier: MIT
// What two caches predict for the same token, compared. Pure numbers.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

namespace sh::engine {

/// One predicted token under both caches, given the same tokens before it.
struct TokenComparison {
  double kl = 0;        // Σ p_full (ln p_full - ln p_compact), nats, over the whole vocabulary
  double nll_full = 0;  // of the token that was fed
  double nll_compact = 0;
  double nll_none = 0;  // without the context; NaN when not measured
  bool is_same_top1 = false;
  bool is_confident = false;  // the full cache's top two differ by more than 0.2 in probability
};
/// Compares two rows of logits; `fed` is the token that really comes next. Sums in double.
TokenComparison compare_logits(std::span<const float> full, std::span<const float> compact, int32_t fed);
/// -ln p(token).
double negative_log_likelihood(std::span<const float> logits, int32_t token);

/// The q-quantile (0 to 1) with linear interpolation. NaN when empty.
double quantile(std::vector<double> values, double q);
double mean(std::span<const double> values);

}  // namespace sh::engine
