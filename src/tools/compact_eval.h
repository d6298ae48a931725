// SPDX-License-Identifier: MIT
// Measures compaction on documents with questions and on prose: full cache, no context and every method × ratio, at equal real bytes.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <string>
#include <vector>

#include "base/json.h"
#include "engine/compact_sequence.h"
#include "engine/engine.h"
#include "tools/eval_data.h"
#include "tools/eval_metrics.h"

namespace sh::tools {

/// A method as the user names it: "self_study" or "self_study:fit=none:budget=uniform".
struct MethodSpec {
  std::string label;                     // as given
  engine::CompactionRequest request;     // method and axes set
  std::map<std::string, std::string> options;
};
/// Axes: queries, score, weighting, fit, budget, conversations. Errors: invalid_argument naming the option and its choices.
Result<MethodSpec> parse_method_spec(const std::string& text);

struct EvalOptions {
  std::vector<std::string> recall_files, prose_files;
  std::vector<int64_t> prose_contexts = {1024};
  std::vector<MethodSpec> methods;
  std::vector<double> ratios = {2, 4, 8, 16};
  int64_t n_documents = 10;
  int64_t max_context_tokens = 0;  // longer documents are left out
  uint64_t seed = 1;
  bool has_progress = true;
};

/// One question or passage under one method and ratio.
struct EvalItem {
  std::string context, document, kind, method;
  int64_t index = 0;
  double depth = -1, ratio = 1;
  std::string expected, answer;
  bool has_answer = false, is_right = false, is_right_with_full = false, is_same_as_full = false;
  bool was_asked_in_study = false;   // self-study put this question word for word
  double nll = 0;                    // of the expected answer, or of the passage, a token
  std::vector<TokenComparison> tokens;
};

/// What one document gave beside its items.
struct EvalCost {
  double n_tokens = 0, bytes_before = 0, bytes_after = 0, seconds_total = 0, seconds_capture = 0, seconds_select = 0, seconds_fit = 0,
         seconds_prefill = 0, fallback_heads = 0, heldout_plain = 0, heldout_fitted = 0, study_conversations = 0, study_tokens = 0;
  double decode_tps_before = -1, decode_tps_after = -1, rss_before = -1, rss_after = -1;  // measured on the first document only
};

/// One cell of the result: context × method × ratio.
struct EvalCell {
  std::string context, method;
  std::map<std::string, std::string> options;
  double ratio = 1;
  std::vector<EvalItem> items;
  std::vector<EvalCost> costs;       // one a document
  std::vector<std::string> refusals; // documents that could not be compacted so far, and why
};

/// Runs everything. Errors: files, a model whose template cannot hold a document, memory.
Result<std::vector<EvalCell>> run_compact_eval(engine::Engine& engine, const EvalOptions& options);

/// A row of the JSON contract (docs/compact-eval.md); figures that were not measured are null.
Json row_json(const EvalCell& cell, uint64_t seed);
Json item_json(const EvalItem& item);
/// The table for people.
std::string eval_table(const std::vector<Json>& rows);

}  // namespace sh::tools
