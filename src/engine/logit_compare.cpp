// SPDX-License-Identifier: MIT
#include "engine/logit_compare.h"

#include <algorithm>
#include <cmath>
#include <limits>

namespace sh::engine {

namespace {
constexpr double kNaN = std::numeric_limits<double>::quiet_NaN();

double log_sum_exp(std::span<const float> logits) {
  const double top = *std::max_element(logits.begin(), logits.end());
  double sum = 0;
  for (const float x : logits) sum += std::exp(x - top);
  return top + std::log(sum);
}
}  // namespace

TokenComparison compare_logits(std::span<const float> full, std::span<const float> compact, int32_t fed) {
  // exp takes nearly all of the time: once for each logit, not again for p.
  std::vector<double> weights(full.size());
  const double full_max = *std::max_element(full.begin(), full.end());
  double sum = 0;
  for (size_t i = 0; i < full.size(); ++i) sum += weights[i] = std::exp(full[i] - full_max);
  const double full_lse = full_max + std::log(sum), compact_lse = log_sum_exp(compact);
  TokenComparison c;
  double first = -std::numeric_limits<double>::infinity(), second = first;
  size_t full_top = 0, compact_top = 0;
  for (size_t i = 0; i < full.size(); ++i) {
    const double log_p = full[i] - full_lse, log_q = compact[i] - compact_lse;
    const double p = weights[i] / sum;
    if (p != 0) c.kl += p * (log_p - log_q);  // 0 ln 0 is 0; NaN stays NaN
    if (log_p > first) {
      second = first;
      first = log_p;
      full_top = i;
    } else {
      second = std::max(second, log_p);
    }
    if (compact[i] > compact[compact_top]) compact_top = i;
  }
  if (c.kl < 0) c.kl = 0;  // rounding may give -1e-17
  c.is_same_top1 = full_top == compact_top;
  c.is_confident = std::exp(first) - std::exp(second) > 0.2;
  c.nll_full = full_lse - full[static_cast<size_t>(fed)];
  c.nll_compact = compact_lse - compact[static_cast<size_t>(fed)];
  c.nll_none = kNaN;
  return c;
}

double negative_log_likelihood(std::span<const float> logits, int32_t token) {
  return log_sum_exp(logits) - logits[static_cast<size_t>(token)];
}

double quantile(std::vector<double> values, double q) {
  if (values.empty()) return kNaN;
  std::sort(values.begin(), values.end());
  const double at = q * static_cast<double>(values.size() - 1);
  const auto low = static_cast<size_t>(at);
  const size_t high = std::min(low + 1, values.size() - 1);
  return values[low] + (at - static_cast<double>(low)) * (values[high] - values[low]);
}

double mean(std::span<const double> values) {
  if (values.empty()) return kNaN;
  double sum = 0;
  for (const double value : values) sum += value;
  return sum / static_cast<double>(values.size());
}

}  // namespace sh::engine
