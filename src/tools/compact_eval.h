// SPDX-License-Identifier: MIT
// Measures compaction on documents with questions and on prose: full cache, no context and every method × ratio,
// at equal real bytes.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "base/json.h"
#include "engine/engine.h"
#include "tools/eval_cell.h"
#include "tools/eval_methods.h"

namespace sh::tools {

struct EvalOptions {
  std::vector<std::string> recall_files, quality_files, prose_files;
  struct PatientFile {
    std::string path;
    int64_t n_patients = 1;  // in a document
  };
  std::vector<PatientFile> longhealth_files;
  std::vector<int64_t> prose_contexts = {1024};
  std::vector<MethodSpec> methods;  // differences are counted against the first
  std::vector<double> ratios = {2, 4, 8, 16};
  int64_t n_documents = 10;
  int64_t n_choice_tokens = 512;   // of an answer to multiple choice, thoughts included
  int64_t max_context_tokens = 0;  // longer documents are left out
  uint64_t seed = 1;
  std::string items_path;  // ItemLines there; "": none
  bool has_progress = true;
};

/// Label of a LongHealth file's rows: "longhealth-5" with five patients a document.
std::string longhealth_label(int64_t n_patients);

/// What a run collected. Cells of kv:q8_0 and kv:q4_0, the scale of verdicts, are always among them, asked for or
/// not; `no_scale` says why they are not, "" when they are.
struct EvalRun {
  std::vector<EvalCell> cells;
  std::string no_scale;
};
/// Runs everything. Errors: files, a model whose template cannot hold a document, memory.
Result<EvalRun> run_compact_eval(engine::Engine& engine, const EvalOptions& options);

/// A row of the JSON contract (docs/compact-eval.md) as far as one cell tells; figures that were not measured, and
/// those that compare_rows() adds, are null.
Json row_json(const EvalCell& cell, uint64_t seed);
Json item_json(const EvalItem& item);
/// Fills in what takes other cells of the same context: normalised recall, differences to the method `reference`
/// at the same ratio, and verdicts on the scale of the kv:q8_0 and kv:q4_0 cells. Gives the reasons why rows have
/// no verdict, and what to do about it.
/// Needs: rows made by row_json() from run.cells, in the same order.
std::vector<std::string> compare_rows(const EvalRun& run, const std::string& reference, uint64_t seed,
                                      std::vector<Json>& rows);
/// The lists beside the rows: "heads", "kinds", "depths", "drift".
Json breakdowns_json(const std::vector<EvalCell>& cells);

/// The table for people, and what its columns mean.
std::string eval_table(const std::vector<Json>& rows);
/// In words: the questions that the full cache answers and a method does not, for methods that lost only a few.
std::string lost_answers(const std::vector<EvalCell>& cells);

}  // namespace sh::tools
