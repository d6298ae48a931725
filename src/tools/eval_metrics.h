// SPDX-License-Identifier: MIT
// Measures of a compacted cache against the full one, and their intervals. Pure numbers.
#pragma once

#include <array>
#include <cstdint>
#include <limits>
#include <span>
#include <utility>
#include <vector>

#include "engine/logit_compare.h"

namespace sh::tools {

/// Stands for a figure that nobody measured; written as null.
inline constexpr double kUnmeasured = std::numeric_limits<double>::quiet_NaN();

using engine::compare_logits;
using engine::mean;
using engine::negative_log_likelihood;
using engine::quantile;
using engine::TokenComparison;

/// Two caches' rows of logits for one token, beside what TokenComparison holds.
struct LogitOverlap {
  double top5 = 0, top10 = 0;  // share of the full cache's likeliest tokens that are among the other's as many
  double cosine = 0;           // of the logits less their means; NaN where a row is constant
};
/// Sums in double. Of fewer than ten tokens all are the likeliest.
LogitOverlap overlap_of(std::span<const float> full, std::span<const float> compact);
/// Place of a token by likelihood, 1 for the likeliest; equal ones share the better place, NaN has the last.
int64_t rank_of(std::span<const float> logits, int32_t token);

/// Share of the context's help that survives: Σ (none - compact) / Σ (none - full), over all tokens or over those
/// whose gain none - full is in the top decile. NaN when the context does not help.
double context_recovery(std::span<const TokenComparison> tokens, bool top_decile_only);

/// A document's sum and count of something: what is resampled.
struct Cluster {
  double sum = 0, n = 0;
};
/// 95 % interval of Σ sum / Σ n by resampling documents (10 000 times, seeded). {NaN, NaN} when there is nothing.
std::pair<double, double> cluster_bootstrap(std::span<const Cluster> clusters, uint64_t seed);

/// Of two methods asked the same questions: two-sided probability of `only_a` against `only_b` under equal odds.
/// 1 when they never differ.
/// Source:  McNemar's test, exact binomial form.
double mcnemar_p(int64_t only_a, int64_t only_b);

/// Ranges of distances from the end of the context, in tokens.
struct DistanceRange {
  int64_t first = 1, last = 0;  // last 0: no end
};
inline constexpr std::array<DistanceRange, 5> kDistanceRanges = {
    {{1, 16}, {17, 64}, {65, 256}, {257, 1024}, {1025, 0}}};
/// Index of the range that a distance of at least 1 falls into.
size_t distance_range(int64_t distance);

}  // namespace sh::tools
