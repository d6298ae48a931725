// SPDX-License-Identifier: MIT
// Measures of a compacted cache against the full one, and their intervals. Pure numbers.
#pragma once

#include <cstdint>
#include <span>
#include <utility>
#include <vector>

namespace sh::tools {

/// One predicted token under both caches, given the same tokens before it.
struct TokenComparison {
  double kl = 0;         // Σ p_full (ln p_full - ln p_compact), nats, over the whole vocabulary
  double nll_full = 0;   // of the token that was fed
  double nll_compact = 0;
  double nll_none = 0;   // without the context; NaN when not measured
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

/// Share of the context's help that survives: Σ (none - compact) / Σ (none - full), over all tokens or over those whose gain none - full
/// is in the top decile. NaN when the context does not help.
double context_recovery(std::span<const TokenComparison> tokens, bool top_decile_only);

/// A document's sum and count of something: what is resampled.
struct Cluster {
  double sum = 0, n = 0;
};
/// 95 % interval of Σ sum / Σ n by resampling documents (10 000 times, seeded). {NaN, NaN} when there is nothing.
std::pair<double, double> cluster_bootstrap(std::span<const Cluster> clusters, uint64_t seed);

}  // namespace sh::tools
