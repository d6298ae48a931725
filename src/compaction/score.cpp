// SPDX-License-Identifier: MIT
#include "compaction/score.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "compaction/region.h"

namespace sh::compaction {
namespace {

// Folds one query's weights, each times `factor`, into the aggregate of the tile.
void fold(RowScore score, const float* weights, float factor, float* tile, int64_t n) {
  if (score == RowScore::max)
    for (int64_t row = 0; row < n; ++row) tile[row] = std::max(tile[row], weights[row] * factor);
  else if (score == RowScore::mean)
    for (int64_t row = 0; row < n; ++row) tile[row] += weights[row] * factor;
  else
    for (int64_t row = 0; row < n; ++row) tile[row] += (weights[row] * factor) * (weights[row] * factor);
}

std::vector<double> aggregate(const HeadProblem& problem, RowScore score, Weighting weighting,
                              const SolveOptions& options, RegionSoftmax& softmax) {
  const int64_t n_rows = problem.keys.rows;
  std::vector<double> total(static_cast<size_t>(n_rows), 0.0);
  std::vector<float> tile(static_cast<size_t>(n_rows));
  const std::vector<int64_t> queries = pick_queries(problem, options.max_score_queries_per_head);
  const int64_t n_queries = static_cast<int64_t>(queries.size());
  for (int64_t begin = 0; begin < n_queries; begin += softmax.max_tile()) {
    const int64_t m = std::min(softmax.max_tile(), n_queries - begin);
    const std::span<const int64_t> part(queries.data() + begin, static_cast<size_t>(m));
    softmax.compute(part);
    std::fill(tile.begin(), tile.end(), 0.0f);
    for (int64_t i = 0; i < m; ++i) {
      if (!(softmax.sum(i) > 0)) continue;
      const float share =
          weighting == Weighting::none ? 1.0f : softmax.share(part[static_cast<size_t>(i)], softmax.lse(i));
      fold(score, softmax.weights(i), share / softmax.sum(i), tile.data(), n_rows);
    }
    for (size_t row = 0; row < total.size(); ++row)
      total[row] =
          score == RowScore::max ? std::max(total[row], static_cast<double>(tile[row])) : total[row] + tile[row];
  }
  if (score != RowScore::max)
    for (double& value : total) value /= static_cast<double>(std::max<int64_t>(n_queries, 1));
  if (score == RowScore::rms)
    for (double& value : total) value = std::sqrt(value);
  return total;
}

}  // namespace

std::vector<float> score_rows(const HeadProblem& problem, RowScore score, Weighting weighting,
                              const SolveOptions& options, const kernels::KernelSet& kernels) {
  const int64_t n_rows = problem.keys.rows;
  std::vector<float> scores(static_cast<size_t>(n_rows));
  std::vector<uint8_t> is_finite;
  if (score == RowScore::recency) {
    is_finite = finite_rows(problem);
    for (int64_t row = 0; row < n_rows; ++row) scores[static_cast<size_t>(row)] = static_cast<float>(row - n_rows);
  } else {
    RegionSoftmax softmax(problem, kernels);
    is_finite = softmax.row_is_finite();
    const std::vector<double> total = aggregate(problem, score, weighting, options, softmax);
    std::copy(total.begin(), total.end(), scores.begin());
  }
  for (size_t row = 0; row < scores.size(); ++row)
    if (!is_finite[row]) scores[row] = -std::numeric_limits<float>::infinity();
  return scores;
}

std::vector<int32_t> top_rows(std::span<const float> scores, int64_t n) {
  std::vector<int32_t> rows;
  for (size_t row = 0; row < scores.size(); ++row)
    if (scores[row] > -std::numeric_limits<float>::infinity()) rows.push_back(static_cast<int32_t>(row));
  if (n < static_cast<int64_t>(rows.size())) {
    const auto is_better = [&](int32_t a, int32_t b) {
      const float score_a = scores[static_cast<size_t>(a)], score_b = scores[static_cast<size_t>(b)];
      return score_a > score_b || (score_a == score_b && a < b);
    };
    std::nth_element(rows.begin(), rows.begin() + n, rows.end(), is_better);
    rows.resize(static_cast<size_t>(n));
    std::sort(rows.begin(), rows.end());
  }
  return rows;
}

}  // namespace sh::compaction
