// SPDX-License-Identifier: MIT
// What compact-eval collects: items in cells of context × method × ratio.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "tools/eval_metrics.h"

namespace sh::tools {

/// One question or passage under one method and ratio.
struct EvalItem {
  std::string context, document, kind, method;
  int64_t index = 0;
  double depth = -1, ratio = 1;
  std::string question, expected, answer;
  bool has_answer = false, is_right = false, is_right_with_full = false, is_same_as_full = false;
  bool was_asked_in_study = false;  // self-study put this question word for word
  bool is_choice = false, is_parsed = true;
  std::optional<bool> is_likeliest;  // of a choice: the right letter is the likeliest
  std::optional<bool> obeys;         // the document's standing instruction
  std::optional<bool> obeys_with_full;
  double nll = 0;               // of the expected answer, or of the passage, a token
  std::optional<int64_t> rank;  // of a question: the lowest place of a token of the expected answer; of a choice
                                // the right letter's among the letters
  int64_t first_distance = 1;  // of tokens[0] from the end of the context
  std::vector<TokenComparison> tokens;
  std::vector<LogitOverlap> overlaps;  // one a token
};

/// What one document gave beside its items. NaN: not measured.
struct EvalCost {
  double n_tokens = kUnmeasured, bytes_before = kUnmeasured, bytes_after = kUnmeasured;
  double seconds_prefill = kUnmeasured, seconds_total = kUnmeasured, seconds_capture = kUnmeasured,
         seconds_select = kUnmeasured, seconds_fit = kUnmeasured;
  double fallback_heads = kUnmeasured, heldout_plain = kUnmeasured, heldout_fitted = kUnmeasured;
  double study_conversations = kUnmeasured, study_tokens = kUnmeasured;
  double check_kl = kUnmeasured;  // of the compaction's own replay
  // Over heads with held-out queries: median error; means of the rms of log(mass) as returned and unfitted, and of
  // its mean; share where the returned rows are worse than the unfitted ones.
  double heldout_median = kUnmeasured, log_mass = kUnmeasured, log_mass_plain = kUnmeasured,
         mean_log_mass = kUnmeasured, worse_heads = kUnmeasured;
  // Of the first document only.
  double decode_tps_before = kUnmeasured, decode_tps_after = kUnmeasured;
  double rss_before = kUnmeasured, rss_after = kUnmeasured, peak_extra = kUnmeasured;
};

/// Errors of one head over the documents.
struct HeadFigures {
  double n_documents = 0, rows = 0;             // sums
  double n_measured = 0, error = 0, worst = 0;  // held-out error: sum and highest
  double plain = 0, log_mass = 0;               // sums: of the unfitted rows; rms of log(mass)
};

/// The caches whose KL verdicts are given in.
inline constexpr const char *kScaleFine = "kv:q8_0", *kScaleCoarse = "kv:q4_0";

/// One cell of the result.
struct EvalCell {
  std::string context, method;
  std::map<std::string, std::string> options;
  double ratio = 1;  // 0: it has none
  std::vector<EvalItem> items;
  std::vector<EvalCost> costs;                               // one a document
  std::map<std::pair<int32_t, int32_t>, HeadFigures> heads;  // by layer and KV head
  std::vector<std::string> refusals;  // documents that could not be compacted so far, and why

  /// Neither an anchor nor a rerun of one.
  bool is_anchor() const { return method == "full" || method == "none" || method == "full:rerun"; }
};

}  // namespace sh::tools
