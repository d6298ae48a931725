// SPDX-License-Identifier: MIT
#pragma once

#include <atomic>
#include <cstdint>
#include <span>
#include <vector>

#include "compaction/method.h"
#include "compaction/problem.h"
#include "kernels/kernel_set.h"

namespace sh::compaction {

struct OmpSelection {
  std::vector<int32_t> picks;    // region rows in order of picking
  std::vector<double> residual;  // [picks] ‖target − P_S w‖ / ‖target‖ with the first rows, not increasing
  int32_t n_by_score = 0;        // the last so many picks: filled in by score
  int32_t n_dropped = 0;
  int32_t n_refits = 0;
  bool hit_deadline = false;
};

/// Picks the rows of one head that together restore the region's mass, one after the other: always those whose
/// column of P correlates most with the mass that is missing, with all weights refitted in [0, max_weight] after
/// each batch. Rows whose weight ends at or under min_weight are replaced, in at most three rounds.
///
/// Between the steps of a batch the new rows alone get a weight. A residual holds until the next refit; those
/// before a drop were reached with the rows dropped later. Below 3e-4 they are rounding of the Gram matrix.
///
/// The rest is filled in by score when nothing more can be gained (mass restored, or all rows left depend on those
/// picked), at the deadline, when cancelled, or without queries. So there are n_rows picks, fewer only if fewer
/// rows are finite with a score above -infinity. The picks of a smaller n_rows are the first of these when
/// candidates are the same, a batch is one row and nothing is dropped.
/// Shapes:  scores [T], higher is more wanted; rows of NaN and -infinity are never picked.
/// Needs:   a problem that passed check_shapes.
/// Cost:    n·T·d + n·c²/2 products once for c candidates, then c·t²/2 divided by the rows of a batch, and a few
///          times t² a batch.
/// Memory:  4·c·(n + c) bytes while the Gram matrix is made, then 4·c² + 4·t².
/// Precision: f32 Gram matrix; factor and weights in double.
/// Threads: pure; the same result every time unless a deadline or cancel ends it. Both are seen within some 10 ms,
///          20 ms while memory for thousands of candidates is cleared.
/// Source:  arXiv 2602.16284 (OMP on mass, its fast variant, drops). Gram form with a growing Cholesky factor:
///          Rubinstein, Zibulevsky, Elad, "Efficient implementation of the K-SVD algorithm using batch orthogonal
///          matching pursuit", 2008.
OmpSelection select_omp(const HeadProblem& problem, std::span<const float> scores, int64_t n_rows,
                        Weighting weighting, const OmpOptions& omp, const SolveOptions& options,
                        const std::atomic<bool>* cancel, const kernels::KernelSet& kernels);

}  // namespace sh::compaction
