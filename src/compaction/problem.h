// SPDX-License-Identifier: MIT
// The pure problem of one (layer, KV head): keys, values and reference queries in, a smaller set of rows out.
// Source:  Zweiger, Fu, Guo, Kim, "Fast KV Compaction via Attention Matching", arXiv 2602.16284.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "base/mat_view.h"

namespace sh::compaction {

/// Rows of a region that are decoded when they are read, a stretch at a time: a pass over many rows then finds
/// them in the cache.
class RowReader {
 public:
  virtual ~RowReader() = default;
  /// Rows [begin, end); valid until the next call of the same function.
  virtual MatView<const float> keys(int64_t begin, int64_t end) = 0;
  virtual MatView<const float> values(int64_t begin, int64_t end) = 0;
};

/// T region rows, d key width, dv value width, n reference queries of all query heads of the group, t kept rows.
/// A query attends the region and rows outside it (pinned rows, its own conversation). When `lse` and `out` are
/// given they hold what it saw over ALL rows; the region's share of its attention is π = exp(lse_region - lse),
/// and what the rest contributed is out - π · out_region. With `lse` alone rows are scored by π but fitted as if
/// nothing were beside the region; with neither, π is 1.
struct HeadProblem {
  int32_t layer = 0, head = 0;   // for reports
  MatView<const float> keys;     // [T, d] after rope, as attention reads them (decoded)
  MatView<const float> values;   // [T, dv]
  RowReader* reader = nullptr;   // gives keys and values where those two have a shape only (load_to_stream())
  std::span<const float> bias;   // [T] bias of rows that an earlier compaction wrote, or empty (0)
  std::span<const int32_t> pos;  // [T] not decreasing, or empty: every query sees every row
  int64_t n_fixed_rows = 0;      // rows outside the region that stay: they count in the head's blocks
  float scale = 1.0f;
  float softcap = 0.0f;

  MatView<const float> queries;        // [n, d] after norm and rope, unscaled
  std::span<const int32_t> query_pos;  // [n] or empty: a query sees region rows with pos <= query_pos
  // [n] or empty, each for itself: whose query it is, a token's (one a head of the group) or a conversation's. Those
  // of one asker follow one another.
  std::span<const int32_t> asker;
  std::span<const float> lse;          // [n] or empty
  MatView<const float> out;            // [n, dv] or empty
};

/// What happened to one head. Errors are relative: ‖approximate - exact‖ / mean ‖exact‖ of the mixed attention
/// output (region and rest together), over held-out queries that no fit saw. "Plain" are the same rows as the
/// input has them: with its values and its biases.
struct FitReport {
  int64_t n_fit_queries = 0, n_heldout_queries = 0;
  double heldout_plain = 0, heldout_fitted = 0;              // mean: the plain rows; as returned
  double heldout_plain_worst = 0, heldout_fitted_worst = 0;  // the highest: a fact is one query among thousands
  double worst_regret = 0;  // the most that the fit added to the error of any query, held out or not
  double log_mass_plain = 0, log_mass_fitted = 0;  // rms of log(mass approximate / exact)
  double mean_log_mass_plain = 0, mean_log_mass_fitted = 0;  // below 0: the region weighs too little
  bool is_fit_accepted = false;                    // else the plain rows were kept
  float bias_ridge = 0, value_ridge = 0;           // shrinkage chosen, as a multiple of the mean eigenvalue
  int32_t n_bias_at_bound = 0;
  int32_t n_nnls_sweeps = 0;
  int32_t n_factorisation_retries = 0;
  bool had_nonfinite_input = false;  // rows or queries with NaN, infinity or above 1e15 were left out
};

/// The rows that replace a region.
struct CompactHead {
  std::vector<int32_t> source_rows;  // [t] indices into the region, increasing; keys are copied from there
  std::vector<float> bias;           // [t] log of the weight, 0 for one key: the input's plus what a fit added
  Mat<float> values;                 // [t, dv], or 0 rows: the original values are kept exactly
  FitReport report;
};

}  // namespace sh::compaction
