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
/// end; for random a number drawn from its position, layer and head. For max_or_unasked the maximum, but at least
/// half of what the next asker (a token of a sample, a conversation of a study) is expected to ask of rows that none
/// has asked for, a little less of older rows and a little more of those that were asked for a little: heads
/// that ask for another row every time (retrieval) keep rows that were not reached, and heads that ask for the same
/// ones again and again do not. Rows that are not finite have -inf. With `summary`,
/// which names its queries among those scored, it is filled on the way; only for scores by attention. Shapes:
/// result [T]. Cost:    n·T·d products and n·T exponentials in one pass; memory one tile. Precision: f32 weights;
/// sums in f32 within a tile, double over tiles. Threads: pure. Source:  what has been seen once tells of what has
/// not been seen: I. J. Good, "The population frequencies of
///          species and the estimation of population parameters", 1953; its use on attention is our own.
std::vector<float> score_rows(const HeadProblem& problem, const CompactionMethod& method,
                              const SolveOptions& options, const kernels::KernelSet& kernels,
                              RegionSummary* summary = nullptr);

/// The n best rows, increasing. Ties go to the lower row; rows with -inf or NaN are never taken.
std::vector<int32_t> top_rows(std::span<const float> scores, int64_t n);

}  // namespace sh::compaction
