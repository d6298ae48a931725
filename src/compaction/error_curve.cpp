// SPDX-License-Identifier: MIT
#include "compaction/error_curve.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "base/check.h"
#include "compaction/region.h"
#include "compaction/targets.h"
#include "compaction/validate.h"

namespace sh::compaction {
namespace {

constexpr int kGridSizes = 24;
constexpr int64_t kMaxQueries = 2048;

// 0, 1 and on by equal factors to n; small sizes are next to each other.
std::vector<int64_t> size_grid(int64_t n) {
  std::vector<int64_t> sizes = {0};
  if (n > 0) sizes.push_back(1);
  for (int n_steps = kGridSizes - 1; sizes.back() < n; n_steps = std::max(n_steps - 1, 1)) {
    const double current = static_cast<double>(sizes.back());
    const double next = current * std::pow(static_cast<double>(n) / current, 1.0 / n_steps);
    sizes.push_back(std::clamp<int64_t>(std::llround(next), sizes.back() + 1, n));
  }
  return sizes;
}

// Keepable rows, best first. Between two sizes of the grid their order does not matter: there they are increasing,
// so that gathering walks through memory in one direction.
std::vector<int32_t> rows_by_score(std::span<const float> scores) {
  std::vector<int32_t> rows;
  for (size_t row = 0; row < scores.size(); ++row)
    if (scores[row] > -std::numeric_limits<float>::infinity()) rows.push_back(static_cast<int32_t>(row));
  std::stable_sort(rows.begin(), rows.end(), [&](int32_t a, int32_t b) {
    return scores[static_cast<size_t>(a)] > scores[static_cast<size_t>(b)];
  });
  return rows;
}

class CurveMeter {
 public:
  CurveMeter(const HeadProblem& problem, std::span<const float> scores, RegionSoftmax& softmax,
             const kernels::KernelSet& kernels)
      : problem_(problem), softmax_(softmax), kernels_(kernels), order_(rows_by_score(scores)) {
    sizes_ = size_grid(static_cast<int64_t>(order_.size()));
    for (size_t s = 1; s < sizes_.size(); ++s)
      std::sort(order_.begin() + sizes_[s - 1], order_.begin() + sizes_[s]);
    values_ = Mat<float>(static_cast<int64_t>(order_.size()), problem.values.cols);
    for (int64_t j = 0; j < values_.rows; ++j)
      std::copy_n(softmax.values().row(order_[static_cast<size_t>(j)]), values_.cols, values_.row(j));
    ones_.assign(order_.size(), 1.0f);
    differences_.resize(sizes_.size());
  }

  void add_tile(std::span<const int64_t> queries);
  ErrorCurve finish();

 private:
  void sum_segments(int64_t m);
  void add_query(int64_t query, int64_t i);
  void add_lost(int64_t query, size_t n_lost);
  float norm_of_difference(const float* output, float factor) const;

  const HeadProblem& problem_;
  RegionSoftmax& softmax_;
  const kernels::KernelSet& kernels_;
  std::vector<int32_t> order_;
  std::vector<int64_t> sizes_;  // of the grid; segment s holds rows sizes_[s] to sizes_[s + 1] of order_
  Mat<float> values_;           // [order_.size(), dv] in that order
  std::vector<float> ones_;
  std::vector<float> gathered_;        // [m, rows of a segment] weights of the tile
  std::vector<Mat<float>> sums_;       // one [m, dv] a segment: weights times values
  std::vector<float> masses_;          // [m, n segments]
  std::vector<float> exact_, output_;  // [dv] of the query at hand
  std::vector<float> scratch_;
  std::vector<std::vector<float>> differences_;  // one [n] a size: ‖approximate - exact‖
  double norm_sum_ = 0;
};

void CurveMeter::add_tile(std::span<const int64_t> queries) {
  softmax_.compute(queries);
  sum_segments(static_cast<int64_t>(queries.size()));
  for (size_t i = 0; i < queries.size(); ++i)
    if (!std::isnan(softmax_.lse(static_cast<int64_t>(i)))) add_query(queries[i], static_cast<int64_t>(i));
}

void CurveMeter::sum_segments(int64_t m) {
  const int64_t dv = values_.cols, n_segments = static_cast<int64_t>(sizes_.size()) - 1;
  sums_.resize(static_cast<size_t>(n_segments));
  masses_.resize(static_cast<size_t>(m * n_segments));
  for (int64_t s = 0; s < n_segments; ++s) {
    const int64_t first = sizes_[static_cast<size_t>(s)], n = sizes_[static_cast<size_t>(s) + 1] - first;
    gathered_.resize(static_cast<size_t>(m * n));
    for (int64_t i = 0; i < m; ++i) {
      const float* weights = softmax_.weights(i);
      float* gathered = gathered_.data() + i * n;
      for (int64_t j = 0; j < n; ++j) gathered[j] = weights[order_[static_cast<size_t>(first + j)]];
      masses_[static_cast<size_t>(i * n_segments + s)] = kernels_.dot(gathered, ones_.data(), n);
    }
    Mat<float>& sums = sums_[static_cast<size_t>(s)];
    if (sums.rows != m) sums = Mat<float>(m, dv);
    kernels_.gemm_nn({.m = m,
                      .n = dv,
                      .k = n,
                      .a = gathered_.data(),
                      .a_stride = n,
                      .b = values_.row(first),
                      .b_stride = dv,
                      .c = sums.data.data(),
                      .c_stride = dv});
  }
}

void CurveMeter::add_query(int64_t query, int64_t i) {
  const int64_t dv = values_.cols;
  const AttentionSplit split = split_attention(problem_, softmax_, query, softmax_.lse(i), softmax_.sum(i));
  output_.assign(static_cast<size_t>(dv), 0.0f);
  for (const Mat<float>& sums : sums_) kernels_.axpy(split.factor, sums.row(i), output_.data(), dv);
  exact_ = output_;
  if (problem_.out.rows > 0) std::copy_n(problem_.out.row(query), dv, exact_.data());
  norm_sum_ += std::sqrt(static_cast<double>(kernels_.dot(exact_.data(), exact_.data(), dv)));

  // From the rest alone on, segment by segment; the rest is what the region leaves of the exact output.
  for (size_t c = 0; c < output_.size(); ++c) output_[c] = split.rest_mass > 0 ? exact_[c] - output_[c] : 0.0f;
  float mass = split.rest_mass;
  size_t n_lost = 0;
  for (size_t s = 0; s < sizes_.size(); ++s) {
    if (s > 0) {
      kernels_.axpy(split.factor, sums_[s - 1].row(i), output_.data(), dv);
      mass += split.factor * masses_[static_cast<size_t>(i) * sums_.size() + s - 1];
    }
    if (mass < kLostMass) n_lost = s + 1;  // mass only grows: these are the first sizes
    differences_[s].push_back(norm_of_difference(output_.data(), mass < kLostMass ? 0.0f : 1.0f / mass));
  }
  if (n_lost > 0) add_lost(query, n_lost);
}

// Replaces the last query's differences at the first n_lost sizes by those of a softmax over the kept rows alone.
void CurveMeter::add_lost(int64_t query, size_t n_lost) {
  const int64_t dv = values_.cols, n_most = sizes_[n_lost - 1];
  std::vector<float> scores(static_cast<size_t>(n_most));
  softmax_.scores_of(query, std::span(order_).first(static_cast<size_t>(n_most)), scores.data());
  for (size_t s = 0; s < n_lost; ++s) {
    const int64_t n = sizes_[s];
    const float highest = kernels_.max(scores.data(), n);
    if (!std::isfinite(highest)) continue;  // nothing is left of what it saw: its output stays 0
    scratch_.assign(scores.begin(), scores.begin() + n);
    const float sum = kernels_.exp_sum(scratch_.data(), highest, n);
    output_.assign(static_cast<size_t>(dv), 0.0f);
    for (int64_t j = 0; j < n; ++j)
      kernels_.axpy(scratch_[static_cast<size_t>(j)], values_.row(j), output_.data(), dv);
    differences_[s].back() = norm_of_difference(output_.data(), 1.0f / sum);
  }
}

float CurveMeter::norm_of_difference(const float* output, float factor) const {
  float square = 0;
  for (size_t c = 0; c < exact_.size(); ++c) {
    const float difference = output[c] * factor - exact_[c];
    square += difference * difference;
  }
  return std::sqrt(square);
}

ErrorCurve CurveMeter::finish() {
  ErrorCurve curve;
  curve.n_rows = sizes_;
  curve.n_queries = static_cast<int64_t>(differences_[0].size());
  const double mean_norm = norm_sum_ / static_cast<double>(std::max<int64_t>(curve.n_queries, 1));
  for (std::vector<float>& errors : differences_) {
    for (float& error : errors) error = relative_error(error, mean_norm);
    const ErrorSummary summary = summarise(errors);
    curve.mean_square.push_back(summary.mean_square);
    curve.p99.push_back(summary.p99);
    curve.worst.push_back(summary.worst);
  }
  return curve;
}

}  // namespace

double p99_at(const ErrorCurve& curve, int64_t n_rows) {
  const auto next = std::lower_bound(curve.n_rows.begin(), curve.n_rows.end(), n_rows);
  if (next == curve.n_rows.end()) return curve.p99.back();
  const auto s = static_cast<size_t>(next - curve.n_rows.begin());
  if (s == 0 || *next == n_rows) return curve.p99[s];
  const int64_t n_below = curve.n_rows[s - 1];
  const double part = static_cast<double>(n_rows - n_below) / static_cast<double>(*next - n_below);
  return curve.p99[s - 1] + part * (curve.p99[s] - curve.p99[s - 1]);
}

ErrorCurve measure_error_curve(const HeadProblem& problem, std::span<const float> scores,
                               const SolveOptions& options, const kernels::KernelSet& kernels) {
  SH_CHECK(static_cast<int64_t>(scores.size()) == problem.keys.rows, "one score a row");
  RegionSoftmax softmax(problem, kernels);
  CurveMeter meter(problem, scores, softmax, kernels);
  const std::vector<int64_t> queries =
      pick_queries(problem, std::min<int64_t>(kMaxQueries, options.max_queries_per_head));
  const int64_t n = static_cast<int64_t>(queries.size());
  for (int64_t begin = 0; begin < n; begin += softmax.max_tile())
    meter.add_tile(std::span(queries).subspan(static_cast<size_t>(begin),
                                              static_cast<size_t>(std::min(softmax.max_tile(), n - begin))));
  return meter.finish();
}

}  // namespace sh::compaction
