// SPDX-License-Identifier: MIT
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "compaction/method.h"
#include "compaction/problem.h"
#include "kernels/kernel_set.h"

namespace sh::compaction {

/// Error of a head's mixed attention output against the number of rows kept, the best scored ones, unfitted.
/// Errors are relative to the mean norm of the exact outputs, as FitReport has them.
struct ErrorCurve {
  std::vector<int64_t> n_rows;                  // increasing, from 0 to all rows that can be kept
  std::vector<double> mean_square, p99, worst;  // over queries, one for each of n_rows
  int64_t n_queries = 0;                        // measured; at 0 nothing is known and all errors are 0
};

/// The 99th percentile at a size, linear between those measured. Needs: a curve with sizes.
double p99_at(const ErrorCurve& curve, int64_t n_rows);

/// Measures at about 24 sizes, evenly spaced in their logarithm, over at most 2048 of the queries. What a query
/// gets from few rows is defined as in FitTargets, lost queries included.
/// Shapes:  scores [T] as score_rows returns them; rows with -inf or NaN are never kept.
/// Needs:   a problem that passed check_shapes.
/// Cost:    n·T·(d + dv) products and n·T exponentials, once for all sizes; memory T·dv floats and one tile.
/// Precision: f32.
/// Threads: pure.
ErrorCurve measure_error_curve(const HeadProblem& problem, std::span<const float> scores,
                               const SolveOptions& options, const kernels::KernelSet& kernels);

}  // namespace sh::compaction
