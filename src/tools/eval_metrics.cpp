// SPDX-License-Identifier: MIT
#include "tools/eval_metrics.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "base/rng.h"

namespace sh::tools {

namespace {
constexpr double kNaN = std::numeric_limits<double>::quiet_NaN();
}  // namespace

double context_recovery(std::span<const TokenComparison> tokens, bool top_decile_only) {
  std::vector<double> gains;
  for (const TokenComparison& t : tokens)
    if (!std::isnan(t.nll_none)) gains.push_back(t.nll_none - t.nll_full);
  if (gains.empty()) return kNaN;
  const double least = top_decile_only ? quantile(gains, 0.9) : -std::numeric_limits<double>::infinity();
  double kept = 0, whole = 0;
  for (const TokenComparison& t : tokens) {
    if (std::isnan(t.nll_none) || t.nll_none - t.nll_full < least) continue;
    kept += t.nll_none - t.nll_compact;
    whole += t.nll_none - t.nll_full;
  }
  return whole > 0 ? kept / whole : kNaN;
}

std::pair<double, double> cluster_bootstrap(std::span<const Cluster> clusters, uint64_t seed) {
  constexpr int kResamples = 10000;
  double n = 0;
  for (const Cluster& c : clusters) n += c.n;
  if (n == 0) return {kNaN, kNaN};
  Rng rng(seed, 0xB007);
  std::vector<double> ratios;
  for (int i = 0; i < kResamples; ++i) {
    double sum = 0, count = 0;
    for (size_t k = 0; k < clusters.size(); ++k) {
      const Cluster& c = clusters[rng.next_below(clusters.size())];
      sum += c.sum;
      count += c.n;
    }
    if (count > 0) ratios.push_back(sum / count);
  }
  return {quantile(ratios, 0.025), quantile(ratios, 0.975)};
}

}  // namespace sh::tools
