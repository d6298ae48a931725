// SPDX-License-Identifier: MIT
// The numbers that a fit is made from: what kept rows weigh in each query, and what each query should get.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "base/mat_view.h"
#include "compaction/method.h"
#include "compaction/problem.h"
#include "compaction/region.h"
#include "compaction/region_summary.h"
#include "kernels/kernel_set.h"

namespace sh::compaction {

/// Reference queries of one head: those of the fit first, then those held out.
struct QuerySplit {
  std::vector<int64_t> queries;  // indices into the problem
  int64_t n_fit = 0;
};
/// Holds out one query in `holdout_every`, its place moving by one from group to group: queries of a group's heads
/// lie interleaved, and a fixed place would hold out one head only.
QuerySplit split_queries(std::span<const int64_t> queries, int32_t holdout_every);

/// Below this share of its original attention a query is lost: what is left is renormalised on its own, because
/// f32 shares lose their meaning there.
inline constexpr float kLostMass = 1e-10f;

/// How a query's attention over all rows divides.
struct AttentionSplit {
  float share;      // π: the part of the region; 0 for a query that sees nothing of it
  float factor;     // what turns weights of RegionSoftmax into shares of the whole
  float rest_mass;  // the part of the rows outside; 0 if the problem does not say, or it is rounding
};
/// Needs:  the log-sum-exp and the sum of weights of that RegionSoftmax for this query of the problem.
AttentionSplit split_attention(const HeadProblem& problem, const RegionSoftmax& softmax, int64_t query, float lse,
                               float sum);

/// The queries that a fit of this kind reads: those to fit, and those held out. Without a fit only some of those
/// held out, which tell the error of the plain rows.
QuerySplit queries_of_fit(const HeadProblem& problem, Fit fit, const SolveOptions& options);

/// For each query, in units where all of its original attention is 1: with weights w and values v of the fitted
/// rows,   output ≈ (Σ_j w_j · mass_j · v_j + rest_output) / (Σ_j w_j · mass_j + rest_mass).
/// The rest is everything but the fitted rows: rows outside the region and kept rows that no fit moves.
/// A query that has next to nothing left to attend (its mass lay in rows that were dropped) is in units of what is
/// left instead, as a softmax over that would be, and has no say in the biases.
struct FitTargets {
  int64_t n_fit = 0;                 // the first n_fit queries are for the fit, the others are held out
  Mat<float> mass;                   // [n, t]
  std::vector<float> rest_mass;      // [n]
  Mat<float> rest_output;            // [n, dv]
  Mat<float> exact;                  // [n, dv] what the query gets with all rows
  std::vector<float> region_mass;    // [n] π with all rows; 0 for queries without a say in the biases
  std::vector<float> unfitted_mass;  // [n] share of kept region rows that no fit moves
  double mean_exact_norm = 0;        // over held-out queries; what errors are relative to
  int64_t n() const { return mass.rows; }
};

/// Shapes:  `kept` is the problem with its kept rows only; fitted [t] and unfitted [..] are disjoint rows of it,
///          increasing; `region` summarises the whole problem for all queries of the split.
/// Cost:    n·t·d products, n·t exponentials; memory n·(t + 2·dv) floats.
/// Precision: f32.
FitTargets make_targets(const HeadProblem& kept, const QuerySplit& split, std::span<const int32_t> fitted,
                        std::span<const int32_t> unfitted, const RegionSummary& region, RegionSoftmax& softmax,
                        const kernels::KernelSet& kernels);

}  // namespace sh::compaction
