// SPDX-License-Identifier: MIT
// Heads with known answers, and the oracle: naive attention in double.
#pragma once

#include <cmath>
#include <cstdint>
#include <limits>
#include <memory>
#include <span>
#include <vector>

#include "base/mat_view.h"
#include "base/result.h"
#include "base/rng.h"
#include "compaction/budget.h"
#include "compaction/compactor.h"
#include "kernels/kernel_set.h"

namespace sh::compaction::testing {

inline const kernels::KernelSet& kernel_set() {
  static const kernels::KernelSet* const chosen = kernels::choose_kernels("").value();
  return *chosen;
}

inline Mat<float> random_mat(Rng& rng, int64_t rows, int64_t cols, double scale = 1.0) {
  Mat<float> result(rows, cols);
  for (float& x : result.data) x = static_cast<float>(scale * rng.next_normal());
  return result;
}

/// Owns what a HeadProblem borrows. Live rows are the rest of what a query sees.
struct Head {
  Mat<float> keys, values, queries;
  Mat<float> live_keys, live_values;
  std::vector<float> bias,
      live_shift;  // live_shift [n]: added to all live scores of a query, so that π differs between queries
  std::vector<int32_t> pos, query_pos;
  std::vector<float> lse;
  Mat<float> out;
  float scale = 0.125f;

  HeadProblem problem() const {
    HeadProblem p;
    p.keys = keys.view();
    p.values = values.view();
    p.bias = bias;
    p.pos = pos;
    p.scale = scale;
    p.queries = queries.view();
    p.query_pos = query_pos;
    p.lse = lse;
    p.out = out.view();
    return p;
  }
};

/// Log-sum-exp and normalised output of one query over rows [t, ·]: naive, in double.
struct Attended {
  double lse = -std::numeric_limits<double>::infinity();
  std::vector<double> out;
};
inline Attended attend(const float* query, MatView<const float> keys, std::span<const float> bias,
                       MatView<const float> values, double scale, double shift = 0, int64_t n_visible = -1) {
  if (n_visible < 0) n_visible = keys.rows;
  std::vector<double> score;
  double highest = -std::numeric_limits<double>::infinity();
  for (int64_t row = 0; row < n_visible; ++row) {
    double dot = 0;
    for (int64_t c = 0; c < keys.cols; ++c) dot += static_cast<double>(query[c]) * keys(row, c);
    score.push_back(dot * scale + (bias.empty() ? 0 : bias[static_cast<size_t>(row)]) + shift);
    highest = std::max(highest, score.back());
  }
  Attended result{.out = std::vector<double>(static_cast<size_t>(values.cols))};
  double sum = 0;
  for (int64_t row = 0; row < n_visible; ++row) {
    const double weight = std::exp(score[static_cast<size_t>(row)] - highest);
    sum += weight;
    for (int64_t c = 0; c < values.cols; ++c) result.out[static_cast<size_t>(c)] += weight * values(row, c);
  }
  if (n_visible == 0) return result;
  for (double& x : result.out) x /= sum;
  result.lse = highest + std::log(sum);
  return result;
}

/// Two segments joined by their log-sum-exps.
inline Attended merge(const Attended& a, const Attended& b) {
  Attended result{.out = std::vector<double>(a.out.size())};
  const double highest = std::max(a.lse, b.lse);
  if (!std::isfinite(highest)) return result;
  const double wa = std::exp(a.lse - highest), wb = std::exp(b.lse - highest);
  for (size_t c = 0; c < a.out.size(); ++c) result.out[c] = (wa * a.out[c] + wb * b.out[c]) / (wa + wb);
  result.lse = highest + std::log(wa + wb);
  return result;
}

inline int64_t n_visible(const Head& head, int64_t query) {
  if (head.query_pos.empty() || head.pos.empty()) return head.keys.rows;
  int64_t n = 0;
  while (n < head.keys.rows && head.pos[static_cast<size_t>(n)] <= head.query_pos[static_cast<size_t>(query)]) ++n;
  return n;
}

inline Attended attend_live(const Head& head, int64_t query) {
  const double shift = head.live_shift.empty() ? 0 : head.live_shift[static_cast<size_t>(query)];
  return attend(head.queries.row(query), head.live_keys.view(), {}, head.live_values.view(), head.scale, shift);
}

/// Fills lse and out: what each query gets from region and live rows together.
inline void finish(Head& head) {
  const int64_t n = head.queries.rows;
  head.lse.resize(static_cast<size_t>(n));
  head.out = Mat<float>(n, head.values.cols);
  for (int64_t query = 0; query < n; ++query) {
    const Attended region = attend(head.queries.row(query), head.keys.view(), head.bias, head.values.view(),
                                   head.scale, 0, n_visible(head, query));
    const Attended all = merge(region, attend_live(head, query));
    head.lse[static_cast<size_t>(query)] = static_cast<float>(all.lse);
    for (int64_t c = 0; c < head.values.cols; ++c)
      head.out(query, c) = static_cast<float>(all.out[static_cast<size_t>(c)]);
  }
}

/// Keys in clusters, some popular; queries that look for one key, with a background. Entropy of about 1.7 nats.
inline Head clustered_head(uint64_t seed, int64_t n_rows, int64_t n_queries, int64_t d = 64,
                           bool has_rest = true) {
  Rng rng(seed);
  Head head;
  head.scale = static_cast<float>(1.0 / std::sqrt(static_cast<double>(d)));
  const int64_t n_clusters = 64;
  const Mat<float> centres = random_mat(rng, n_clusters, d, 1.3), meanings = random_mat(rng, n_clusters, d);
  const auto popular = [&](int64_t n, double bend) {  // a few of n are drawn often, all are drawn
    return static_cast<int64_t>(std::pow(rng.next_unit(), bend) * static_cast<double>(n)) % n;
  };
  head.keys = random_mat(rng, n_rows, d, 0.7);
  head.values = random_mat(rng, n_rows, d, 0.6);
  for (int64_t row = 0; row < n_rows; ++row) {
    const int64_t cluster = popular(n_clusters, 2.0);
    for (int64_t c = 0; c < d; ++c) {
      head.keys(row, c) += centres(cluster, c);
      head.values(row, c) += meanings(cluster, c);
    }
    head.pos.push_back(static_cast<int32_t>(row + 4));
  }
  std::vector<int64_t> shuffled(static_cast<size_t>(n_rows));
  for (size_t i = 0; i < shuffled.size(); ++i) {
    const size_t j = rng.next_below(i + 1);
    shuffled[i] = shuffled[j];
    shuffled[j] = static_cast<int64_t>(i);
  }
  head.queries = random_mat(rng, n_queries, d, 0.4);
  for (int64_t query = 0; query < n_queries; ++query) {
    const int64_t n_wanted = rng.next_unit() < 0.95 ? std::max<int64_t>(n_rows / 8, 1) : n_rows;
    const int64_t wanted = shuffled[static_cast<size_t>(popular(n_wanted, 2.0))];
    const double sharpness = 0.35 + 0.35 * rng.next_unit();
    for (int64_t c = 0; c < d; ++c) head.queries(query, c) += static_cast<float>(sharpness * head.keys(wanted, c));
    head.query_pos.push_back(static_cast<int32_t>(n_rows + 100 + query));
    if (has_rest) head.live_shift.push_back(static_cast<float>(2.0 + 2.0 * rng.next_normal()));
  }
  const int64_t n_live = has_rest ? 64 : 0;
  head.live_keys = random_mat(rng, n_live, d, 1.2);
  head.live_values = random_mat(rng, n_live, d, 1.0);
  if (has_rest) finish(head);
  return head;
}

/// The same keys, values and live rows with other queries: those that no solve has seen.
inline Head with_queries(const Head& head, const Head& other) {
  Head result = head;
  result.queries = other.queries;
  result.query_pos = other.query_pos;
  result.live_shift = other.live_shift;
  finish(result);
  return result;
}

inline Mat<float> gather_rows(const Mat<float>& from, std::span<const int32_t> rows) {
  Mat<float> result(static_cast<int64_t>(rows.size()), from.cols);
  for (size_t i = 0; i < rows.size(); ++i)
    for (int64_t c = 0; c < from.cols; ++c) result(static_cast<int64_t>(i), c) = from(rows[i], c);
  return result;
}

inline Mat<float> values_of(const Head& head, const CompactHead& compact) {
  return compact.values.rows > 0 ? compact.values : gather_rows(head.values, compact.source_rows);
}

/// ‖mixed output with the compact rows - exact‖ per query, by the oracle, relative to the mean norm of the exact
/// ones.
inline std::vector<double> oracle_errors(const Head& head, const CompactHead& compact) {
  const Mat<float> keys = gather_rows(head.keys, compact.source_rows), values = values_of(head, compact);
  std::vector<double> errors;
  double norm = 0;
  for (int64_t query = 0; query < head.queries.rows; ++query) {
    int64_t n_seen = 0;
    const int64_t n_region = n_visible(head, query);
    while (n_seen < keys.rows && compact.source_rows[static_cast<size_t>(n_seen)] < n_region) ++n_seen;
    const Attended live = attend_live(head, query);
    const Attended exact = merge(
        attend(head.queries.row(query), head.keys.view(), head.bias, head.values.view(), head.scale, 0, n_region),
        live);
    const Attended got = merge(
        attend(head.queries.row(query), keys.view(), compact.bias, values.view(), head.scale, 0, n_seen), live);
    double square = 0, exact_square = 0;
    for (size_t c = 0; c < exact.out.size(); ++c) {
      square += (got.out[c] - exact.out[c]) * (got.out[c] - exact.out[c]);
      exact_square += exact.out[c] * exact.out[c];
    }
    errors.push_back(std::sqrt(square));
    norm += std::sqrt(exact_square);
  }
  norm /= static_cast<double>(std::max<size_t>(errors.size(), 1));
  for (double& error : errors) error /= norm > 0 ? norm : 1.0;
  return errors;
}

inline double mean_of(std::span<const double> x) {
  double sum = 0;
  for (const double v : x) sum += v;
  return x.empty() ? 0 : sum / static_cast<double>(x.size());
}
inline double worst_of(std::span<const double> x) {
  double worst = 0;
  for (const double v : x) worst = std::max(worst, v);
  return worst;
}

inline CompactionMethod method_with(RowScore score, Weighting weighting, Fit fit, BudgetPolicy budget) {
  return {.name = "test",
          .summary = "",
          .source = "",
          .queries = QuerySource::repeat_prefill,
          .score = score,
          .weighting = weighting,
          .fit = fit,
          .budget = budget};
}

/// A method of which only the scoring matters.
inline CompactionMethod scoring(RowScore score, Weighting weighting) {
  return method_with(score, weighting, Fit::none, BudgetPolicy::global);
}

/// All phases under one method and budget, as the engine composes them: a head of the result for each problem.
inline Result<std::vector<CompactHead>> solve(const CompactionMethod& method, const ProblemSource& source,
                                              const BudgetLimits& limits, const SolveOptions& options,
                                              const SolveContext& context) {
  SH_ASSIGN(const HeadScores scores, score_heads(method, source, options, context));
  std::vector<int64_t> fixed_rows;
  for (int64_t head = 0; head < source.n_heads(); ++head) fixed_rows.push_back(source.n_fixed_rows(head));
  std::vector<ErrorCurve> curves;
  if (method.budget == BudgetPolicy::sensitivity) {
    SH_ASSIGN(curves, measure_curves(method, source, scores.rows, options, context));
  }
  SH_ASSIGN(const std::vector<int64_t> budget, plan_budget({.policy = method.budget,
                                                            .scores = scores.rows,
                                                            .fixed_rows = fixed_rows,
                                                            .curves = curves,
                                                            .limits = limits}));
  SH_ASSIGN(const auto rows, select_heads(method, source, scores.rows, budget, options, context));
  return fit_heads(method, source, scores.rows, scores.regions, rows, options, context);
}

}  // namespace sh::compaction::testing
