// SPDX-License-Identifier: MIT
#include <algorithm>
#include <cmath>
#include <limits>

#include "compaction/compactor.h"

namespace sh::compaction {
namespace {

struct Accumulator {
  double highest, sum = 0;
  std::vector<double> output;  // unnormalised, in units of exp(highest)
};

// Adds one thing of log-weight `score` to attention in progress.
void attend_one(Accumulator& into, double score, auto&& value_at) {
  const double weight = std::exp(score - into.highest);
  into.sum += weight;
  for (size_t c = 0; c < into.output.size(); ++c) into.output[c] += weight * value_at(c);
}

std::vector<double> scores_of(const HeadProblem& problem, int64_t query, MatView<const float> keys,
                              std::span<const float> bias, std::span<const int32_t> pos) {
  std::vector<double> scores(static_cast<size_t>(keys.rows), -std::numeric_limits<double>::infinity());
  for (int64_t row = 0; row < keys.rows; ++row) {
    const size_t r = static_cast<size_t>(row);
    if (!pos.empty() && !problem.query_pos.empty() && pos[r] > problem.query_pos[static_cast<size_t>(query)])
      continue;
    double dot = 0;
    for (int64_t c = 0; c < keys.cols; ++c) dot += static_cast<double>(problem.queries(query, c)) * keys(row, c);
    double score = problem.scale * dot;
    if (problem.softcap > 0) score = problem.softcap * std::tanh(score / problem.softcap);
    scores[r] = score + (bias.empty() ? 0.0 : bias[r]);
  }
  return scores;
}

double highest_of(std::span<const double> scores) {
  double highest = -std::numeric_limits<double>::infinity();
  for (const double score : scores) highest = std::max(highest, score);
  return highest;
}

void attend_rows(Accumulator& into, std::span<const double> scores, MatView<const float> values) {
  for (size_t row = 0; row < scores.size(); ++row)
    if (std::isfinite(scores[row]))
      attend_one(into, scores[row],
                 [&](size_t c) { return values(static_cast<int64_t>(row), static_cast<int64_t>(c)); });
}

}  // namespace

Mat<float> mixed_output(const HeadProblem& problem, MatView<const float> keys, std::span<const float> bias,
                        MatView<const float> values, std::span<const int32_t> pos) {
  const int64_t n = problem.queries.rows, dv = problem.values.cols;
  Mat<float> result(n, dv);
  for (int64_t query = 0; query < n; ++query) {
    const std::vector<double> scores = scores_of(problem, query, keys, bias, pos);
    Accumulator total{highest_of(scores), 0, std::vector<double>(static_cast<size_t>(dv))};
    std::vector<double> rest_output(static_cast<size_t>(dv));
    double log_rest = -std::numeric_limits<double>::infinity();
    if (problem.out.rows > 0) {
      const std::vector<double> all = scores_of(problem, query, problem.keys, problem.bias, problem.pos);
      Accumulator region{highest_of(all), 0, std::vector<double>(static_cast<size_t>(dv))};
      if (std::isfinite(region.highest)) attend_rows(region, all, problem.values);
      const double lse = problem.lse[static_cast<size_t>(query)];
      const double share =
          region.sum > 0 ? std::min(1.0, std::exp(region.highest + std::log(region.sum) - lse)) : 0.0;
      if (share < 1.0) log_rest = lse + std::log1p(-share);
      for (size_t c = 0; c < rest_output.size(); ++c) {
        const double of_region = region.sum > 0 ? region.output[c] / region.sum : 0.0;
        rest_output[c] = (problem.out(query, static_cast<int64_t>(c)) - share * of_region) / (1.0 - share);
      }
    }
    total.highest = std::max(total.highest, log_rest);
    if (!std::isfinite(total.highest)) continue;
    attend_rows(total, scores, values);
    if (std::isfinite(log_rest)) attend_one(total, log_rest, [&](size_t c) { return rest_output[c]; });
    for (int64_t c = 0; c < dv; ++c)
      result(query, c) = static_cast<float>(total.output[static_cast<size_t>(c)] / total.sum);
  }
  return result;
}

}  // namespace sh::compaction
