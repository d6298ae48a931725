// SPDX-License-Identifier: MIT
#pragma once

#include <cstdint>
#include <span>
#include <string_view>

#include "base/result.h"

namespace sh::compaction {

// The axes that a method is composed of (docs/design.md §5).
enum class QuerySource { none, prefill, repeat_prefill, self_study };
enum class RowScore { recency, max, rms, mean };  // aggregate over queries of the weight that a row gets
enum class Weighting { none, attention_share };   // weight in the region's softmax, or in all the query attends
enum class Fit { none, biases, values, both };
enum class BudgetPolicy { uniform, global };  // the same for every head, or one threshold over all heads

/// A named composition. One file each in compaction/methods/.
struct CompactionMethod {
  const char* name;
  const char* summary;  // one line for help and docs
  const char* source;   // paper or where the idea is from
  QuerySource queries;
  RowScore score;
  Weighting weighting;
  Fit fit;
  BudgetPolicy budget;
  int32_t n_sinks = 4;   // rows at the start of a sequence that the engine leaves out of the region
  int32_t n_recent = 4;  // rows at the end of the range, likewise
};

std::span<const CompactionMethod* const> methods();
/// Names of the public list that are not built yet are known as such.
/// Errors: not_found naming the known methods; unsupported for a public name that does not exist yet.
Result<const CompactionMethod*> find_method(std::string_view name);

std::string_view name_of(QuerySource v);
std::string_view name_of(RowScore v);
std::string_view name_of(Weighting v);
std::string_view name_of(Fit v);
std::string_view name_of(BudgetPolicy v);

/// Numbers of the solver.
struct SolveOptions {
  int32_t max_queries_per_head = 4096;  // of a fit, pooled over the group; more are thinned evenly
  int32_t max_score_queries_per_head = 32768;  // of row scores: a fact may be asked for by one query of many thousands
  int32_t max_fit_rows = 1024;  // of more kept rows in a head, the best scored; the others stay as they are
  int32_t holdout_every = 5;    // one query of so many is held out of the fit
  float min_bias = -3.0f, max_bias = 3.0f;  // of a fit's change to a row's bias
  int32_t max_nnls_sweeps = 500;
  // A fit is accepted if its worst and its 99th percentile errors are at most the first number times the plain
  // rows', and no query's error grows by more than the second (errors are relative to the mean output): a fact is
  // one query among thousands, and where the plain rows already lose some query altogether, their worst error says
  // nothing about the others. At a factor of exactly 1 the last digits of one such hopeless query decide: it then
  // turned down every candidate on some synthetic heads.
  float accept_worst_factor = 1.05f;
  float accept_max_regret = 0.25f;
};

}  // namespace sh::compaction
