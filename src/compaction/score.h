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

/// How much each region row is wanted by the method's score and weighting: the maximum, root mean square or mean
/// of the attention that it gets, over the queries that see it; for recency minus its distance from the region's
/// end; for random a number drawn from its position, layer and head. Rows that are not finite have -inf. With
/// `summary`, which names its queries among those scored, it is filled on the way; only for scores by attention.
/// Shapes:  result [T].
/// Cost:    n·T·d products and n·T exponentials in one pass; memory one tile.
/// Precision: f32 weights; sums in f32 within a tile, double over tiles.
/// Threads: pure.
std::vector<float> score_rows(const HeadProblem& problem, const CompactionMethod& method,
                              const SolveOptions& options, const kernels::KernelSet& kernels,
                              RegionSummary* summary = nullptr);

/// The n best rows, increasing. Ties go to the lower row; rows with -inf or NaN are never taken.
std::vector<int32_t> top_rows(std::span<const float> scores, int64_t n);

}  // namespace sh::compaction
