// SPDX-License-Identifier: MIT
#include "tools/eval_metrics.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "base/rng.h"

namespace sh::tools {

namespace {
constexpr double kNaN = std::numeric_limits<double>::quiet_NaN();

constexpr size_t kTop = 10;
/// The likeliest tokens, the first first; of equal ones the lower id.
std::vector<size_t> top_tokens(std::span<const float> logits) {
  std::vector<size_t> top;
  for (size_t i = 0; i < logits.size(); ++i) {
    if (top.size() == kTop && !(logits[i] > logits[top.back()])) continue;  // nearly always
    if (top.size() == kTop) top.pop_back();
    const auto place = std::find_if(top.begin(), top.end(), [&](size_t t) { return logits[i] > logits[t]; });
    top.insert(place, i);
  }
  return top;
}

double shared(std::span<const size_t> a, std::span<const size_t> b, size_t n) {
  n = std::min(n, a.size());
  const auto n_shared = std::count_if(a.begin(), a.begin() + static_cast<std::ptrdiff_t>(n), [&](size_t token) {
    return std::find(b.begin(), b.begin() + static_cast<std::ptrdiff_t>(n), token) !=
           b.begin() + static_cast<std::ptrdiff_t>(n);
  });
  return static_cast<double>(n_shared) / static_cast<double>(n);
}
}  // namespace

LogitOverlap overlap_of(std::span<const float> full, std::span<const float> compact) {
  const std::vector<size_t> full_top = top_tokens(full), compact_top = top_tokens(compact);
  LogitOverlap out{shared(full_top, compact_top, 5), shared(full_top, compact_top, kTop)};
  double full_sum = 0, compact_sum = 0;
  for (size_t i = 0; i < full.size(); ++i) {
    full_sum += full[i];
    compact_sum += compact[i];
  }
  const auto n = static_cast<double>(full.size());
  double product = 0, full_square = 0, compact_square = 0;
  for (size_t i = 0; i < full.size(); ++i) {
    const double a = full[i] - full_sum / n, b = compact[i] - compact_sum / n;
    product += a * b;
    full_square += a * a;
    compact_square += b * b;
  }
  out.cosine = product / std::sqrt(full_square * compact_square);
  if (std::isnan(compact_sum)) out.top5 = out.top10 = 0;  // NaN has no place among the likeliest
  return out;
}

int64_t rank_of(std::span<const float> logits, int32_t token) {
  const float own = logits[static_cast<size_t>(token)];
  return 1 + std::count_if(logits.begin(), logits.end(), [&](float other) { return !(own >= other); });
}

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

double mcnemar_p(int64_t only_a, int64_t only_b) {
  const int64_t n = only_a + only_b, fewer = std::min(only_a, only_b);
  const auto log_factorial = [](int64_t k) { return std::lgamma(static_cast<double>(k) + 1); };
  double tail = 0;
  for (int64_t k = 0; k <= fewer; ++k)
    tail += std::exp(log_factorial(n) - log_factorial(k) - log_factorial(n - k) -
                     static_cast<double>(n) * std::log(2.0));
  return std::min(1.0, 2 * tail);
}

size_t distance_range(int64_t distance) {
  size_t i = 0;
  while (kDistanceRanges[i].last != 0 && distance > kDistanceRanges[i].last) ++i;
  return i;
}

}  // namespace sh::tools
