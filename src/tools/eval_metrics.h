// SPDX-License-Identifier: MIT
// Measures of a compacted cache against the full one, and their intervals. Pure numbers.
#pragma once

#include <cstdint>
#include <span>
#include <utility>
#include <vector>

#include "engine/logit_compare.h"

namespace sh::tools {

using engine::TokenComparison;
using engine::compare_logits;
using engine::mean;
using engine::negative_log_likelihood;
using engine::quantile;

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
