// SPDX-License-Identifier: MIT
#pragma once

#include <atomic>
#include <cmath>
#include <cstdint>
#include <span>
#include <vector>

#include "compaction/method.h"
#include "compaction/problem.h"
#include "kernels/kernel_set.h"

namespace sh::compaction {

struct OmpOptions {
  int32_t keys_per_step = 1;       // picked by the same correlations; k
  int32_t steps_per_refit = 1;     // between two refits of all weights (the paper's fast variant: 4 keys, 2 steps)
  int32_t candidates_per_row = 4;  // the dictionary is the best n_rows · this rows by score,
  int32_t max_candidates = 4096;   // at most so many: their Gram matrix is 64 MiB of f32 at 4096
  float max_weight = std::exp(7.0f);   // that one row may stand for
  float min_weight = std::exp(-7.0f);  // a row that ends at or under it is dropped for good and replaced
  double deadline_seconds = 0;         // of one head, 0: none; rows not picked by then are filled in by score
};

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
/// Between the steps of a batch the new keys alone get a weight. A residual holds until the next refit; values
/// before a drop still count the rows dropped later. Below 3e-4 it is rounding of the Gram matrix.
/// The rest is filled in by score when nothing can be gained any more (mass restored, or all rows left depend on
/// those picked), at the deadline, when cancelled, or without queries. So there are n_rows picks, fewer only if
/// fewer rows are finite with a score above -infinity. The same rows in the same order come first for a smaller
/// n_rows with the same candidates, batches of 1 and no drops.
/// Shapes:  scores [T], higher is more wanted; NaN and -infinity: never picked.
/// Needs:   a problem that passed check_shapes.
/// Cost:    n·T·d + n·c²/2 products once for c candidates; then c·t²/2 divided by the keys a refit, and a few
/// times
///          t²/2 a refit.
/// Memory:  4·c·(n + c) bytes while the dictionary is made, then 4·c² + 4·t².
/// Precision: f32 Gram matrix; factor, weights and residuals in double.
/// Threads: pure; the same result every time unless a deadline or cancel ends it. Both are seen within some 10 ms.
/// Source:  arXiv 2602.16284 (OMP on mass; fast variant; drop rounds). Gram form with a growing Cholesky factor:
///          Rubinstein, Zibulevsky, Elad, "Efficient implementation of the K-SVD algorithm using batch orthogonal
///          matching pursuit", 2008.
OmpSelection select_omp(const HeadProblem& problem, std::span<const float> scores, int64_t n_rows,
                        Weighting weighting, const OmpOptions& omp, const SolveOptions& options,
                        const std::atomic<bool>* cancel, const kernels::KernelSet& kernels);

}  // namespace sh::compaction
