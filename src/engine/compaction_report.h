// SPDX-License-Identifier: MIT
// What a compaction is asked for and what it says it did.
#pragma once

#include <cstdint>
#include <functional>
#include <limits>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "compaction/compactor.h"
#include "compaction/head_profile.h"
#include "engine/reference_queries.h"

namespace sh::engine {

/// Logical positions [begin, end).
struct Span {
  int64_t begin = 0, end = 0;
  bool operator==(const Span&) const = default;
};

/// A quality to reach instead of a size; the smallest cache that reaches it is taken. 0: not asked.
struct QualityTarget {
  double kl = 0;          // mean KL of the replay, nats
  double head_error = 0;  // below 1: 99th percentile of the relative error of every head's attention output
  bool is_set() const { return kl > 0 || head_error > 0; }
};

struct CompactionRequest {
  std::string method = "select";
  // How much: one of these. `target_rows` > 0 overrides the ratio, a quality target overrides both.
  double ratio = 2.0;           // of the compactable rows, or of the whole cache's bytes when `of_whole_cache`
  bool of_whole_cache = false;  // ratio counts real bytes of all blocks, pinned rows and rounding included
  int64_t target_rows = -1;     // > 0: rows to keep of the region per head on average
  double aimed_rows = 0;  // > 0: rows a head that `target_rows` would come to with all that stays, for the report
  QualityTarget target;

  // What stays verbatim.
  int64_t n_protected_prefix = 0;  // tokens at the start
  int64_t n_live_suffix = 0;       // newest tokens
  // What whoever asks calls the two, for messages.
  const char* prefix_name = "p0";
  const char* suffix_name = "live_suffix_tokens";
  std::vector<Span> pinned;        // further spans
  bool compacts_window_layers = false;

  // Axes that differ from the method's preset.
  std::optional<compaction::QuerySources> queries;
  std::optional<compaction::RowScore> score;
  std::optional<compaction::Weighting> weighting;
  std::optional<compaction::Selection> selection;
  std::optional<compaction::Fit> fit;
  std::optional<compaction::BudgetPolicy> budget;
  std::optional<compaction::Schedule> schedule;
  std::optional<double> reread_fraction;
  compaction::SolveOptions solve;
  SelfStudyOptions self_study;
  std::optional<compaction::HeadProfile> profile;  // for budget=profile; else the engine's
  int64_t n_recent_queries = 64;                   // tokens of queries=recent
  int64_t max_query_bytes = int64_t{512} << 20;

  // Validation by replay, before the swap.
  std::optional<bool> validates;  // when not said, what is fitted to more than a sample is validated
  double max_kl = 0;  // > 0: a compaction with a mean KL above it is refused (fits are dropped first)
};

enum class Verdict { unknown, transparent, good, gist, reject };
const char* name_of(Verdict verdict);

/// Sets one choice by name, as methods are spelled in lists ("self_study:fit=none:conversations=96"): an axis, or a
/// number of the solver or the study.
/// Errors: invalid_argument naming the option and its choices.
Result<void> set_option(CompactionRequest& request, std::string_view name, std::string_view value);

/// Whether an option of set_option() makes a difference to the method of the request, as its axes are by now.
bool option_matters(const CompactionRequest& request, std::string_view name);

/// What of a request is wrong whatever conversation it is about: ratio, targets, limit.
/// Errors: invalid_argument.
Result<void> check_request(const CompactionRequest& request);

/// The compacted cache against the one before it, on tokens that both were fed before the swap.
struct ReplayCheck {
  int64_t n_tokens = 0;  // 0: nothing was replayed
  bool is_of_compacted = false;  // the cache before had been compacted, too: what that lost is not seen
  double kl_mean = 0, kl_median = 0, kl_p99 = 0, top1 = 0;
  double confident_flips = 0;  // share of tokens where a prediction with a margin above 0.2 changed
  double seconds = 0;
  double scale_seconds = 0;  // of these, spent on the model's scale: with the first validated compaction only
  Verdict verdict = Verdict::unknown;
  int64_t n_fits_dropped = 0;  // heads whose fit was taken back to stay within max_kl
};

struct CompactionReport {
  std::string method;
  compaction::QuerySources queries = compaction::QuerySource::none;  // what was really used
  int64_t n_logical = 0;                      // tokens of the conversation
  int64_t n_region = 0;                       // positions that were compactable
  int64_t n_compactions = 0;                  // of the conversation, this one included
  double rows_before = 0, rows_after = 0;     // per head, mean
  double rows_fixed = 0;                      // of both, outside the region; per head that was compacted, mean
  double aimed_rows = 0;                      // > 0: what rows_after should have been
  int64_t bytes_before = 0, bytes_after = 0;  // of the conversation's blocks
  double region_ratio = 0, real_ratio = 0;
  double capture_seconds = 0, select_seconds = 0, fit_seconds = 0, total_seconds = 0;
  double heldout_plain = 0, heldout_fitted = 0;  // mean over heads; NaN when nothing was measured
  // What QualityTarget::head_error bounds, in the worst head: of its best scored rows, as many as were kept,
  // unfitted. NaN unless error curves were measured.
  double head_error = std::numeric_limits<double>::quiet_NaN();
  double fallback_heads = 0;                     // share of heads where the unfitted rows were kept
  int64_t n_queries = 0;                         // per head, mean
  StudyStats study;
  ReplayCheck check;
  std::vector<Span> kept_verbatim, condensed;  // spans of logical positions
  struct Head {
    int32_t layer = 0, head = 0;
    int64_t n_before = 0, n_kept = 0;  // rows of the region
    compaction::FitReport fit;
  };
  std::vector<Head> heads;  // layer-major
};

/// ", not the 115 that --compact-ratio asks for: 160 stay as they are", or "" when no more rows are left than
/// that.
std::string shortfall_text(const CompactionReport& report);

using CompactionProgress = std::function<void(const char* stage, double fraction)>;

}  // namespace sh::engine
