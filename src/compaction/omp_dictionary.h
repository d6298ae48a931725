// SPDX-License-Identifier: MIT
#pragma once

#include <cstdint>
#include <functional>
#include <span>
#include <vector>

#include "base/mat_view.h"
#include "compaction/method.h"
#include "compaction/problem.h"
#include "kernels/kernel_set.h"

namespace sh::compaction {

/// What a pursuit of the region's mass reads: P [n, c] holds the mass that each of c candidate rows has in each
/// query (P_ij sums to the target over all rows of the region), and only its products are kept.
struct MassDictionary {
  Mat<float> gram;           // [c, c] PᵀP, symmetric
  std::vector<double> rhs;   // [c] Pᵀ target
  double target_square = 0;  // ‖target‖²; 0 when no query attends the region
};

/// Rows of P are softmax weights over the region, times π when weighting is attention_share; the target is π or 1.
/// Shapes:  rows [c] candidate region rows, increasing.
/// Cost:    n·T·d + n·c²/2 products for n queries.
/// Memory:  4·c·(n + c) bytes while it is made, then 4·c².
/// Precision: products summed in f32 over 256 queries, in double over tiles, rounded to f32 at the end.
/// Errors:  an empty gram when `should_stop`, asked every few milliseconds, said so, or without queries.
MassDictionary make_mass_dictionary(const HeadProblem& problem, std::span<const int32_t> rows, Weighting weighting,
                                    const SolveOptions& options, const std::function<bool()>& should_stop,
                                    const kernels::KernelSet& kernels);

}  // namespace sh::compaction
