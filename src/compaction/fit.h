// SPDX-License-Identifier: MIT
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "compaction/method.h"
#include "compaction/problem.h"
#include "compaction/region_summary.h"
#include "kernels/kernel_set.h"

namespace sh::compaction {

/// The compact head of some rows: fits biases, values or both on most queries, judges each candidate on those held
/// out, and keeps the plain rows (original values, input biases) unless a candidate is better on average and
/// within the limits that the options set for its worst queries.
/// Biases: weights exp(Δbias) that restore the region's mass, row by row
/// of the queries relative to their whole attention, by least squares in the box, shrunk to 1. Values: ridge
/// regression of the mixed output, shrunk to the original values. Strengths of both are tried from strong to weak
/// for as long as the held-out error falls.
/// Shapes:  rows [t] region rows, increasing; scores [T] say which rows are fitted when there are more than
///          options.max_fit_rows.
/// Needs:   a problem that passed check_shapes.
/// Errors:  none; what degraded is in the report. Output is finite for finite rows.
/// Cost:    n·T·(d + dv) products and that of fit_kept_rows().
/// Precision: f32, sums over many queries in double (compaction/ridge.h).
/// Threads: pure; the result depends on nothing but the arguments.
/// Source:  arXiv 2602.16284 (relative mass, least-squares values); shrinkage and acceptance are our own.
CompactHead fit_head(const HeadProblem& problem, std::span<const int32_t> rows, std::span<const float> scores,
                     Fit fit, const SolveOptions& options, const kernels::KernelSet& kernels);

/// The same from what a pass over the whole region left behind: reads the kept rows only.
/// Shapes:  `kept` is the problem with its `rows` only; `rows` and `scores` as above; `region` summarises the
/// whole
///          problem for the queries of queries_of_fit(), or more.
/// Cost:    O(n·t·(d + dv)) and a Cholesky factor of min(n, t)³/6 products a strength tried; memory 2·n·t floats.
CompactHead fit_kept_rows(const HeadProblem& kept, std::span<const int32_t> rows, std::span<const float> scores,
                          const RegionSummary& region, Fit fit, const SolveOptions& options,
                          const kernels::KernelSet& kernels);

/// The same with stretches of options.chunk_tokens positions fitted on their own: what lies in other stretches is
/// part of the rest that a query sees. Memory and cost of a fit are those of one stretch.
/// Source: arXiv 2602.16284, chunked compaction over one cache.
CompactHead fit_head_in_chunks(const HeadProblem& problem, std::span<const int32_t> rows,
                               std::span<const float> scores, Fit fit, const SolveOptions& options,
                               const kernels::KernelSet& kernels);

}  // namespace sh::compaction
