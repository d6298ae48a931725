// SPDX-License-Identifier: MIT
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>

#include "base/result.h"

namespace sh::compaction {

// The axes that a method is composed of (docs/design.md §5).
enum class QuerySource : uint32_t {
  none = 0,
  cache_keys = 1,      // the rows' own keys stand in for queries: a surrogate that does not work, for comparison
  recent = 2,          // the newest tokens, at their own positions
  prefill = 4,         // the text at its own positions, captured while it was read or read again
  repeat_prefill = 8,  // the text repeated after itself
  self_study = 16,     // conversations that the model holds with itself about the text
};
/// Sources add up; written "self_study+repeat_prefill".
class QuerySources {
 public:
  constexpr QuerySources(QuerySource source) : bits_(static_cast<uint32_t>(source)) {}
  constexpr QuerySources operator|(QuerySources other) const { return QuerySources(bits_ | other.bits_); }
  constexpr bool has(QuerySource source) const { return (bits_ & static_cast<uint32_t>(source)) != 0; }
  constexpr bool is_none() const { return bits_ == 0; }
  constexpr bool operator==(const QuerySources&) const = default;

 private:
  constexpr explicit QuerySources(uint32_t bits) : bits_(bits) {}
  uint32_t bits_;
};
constexpr QuerySources operator|(QuerySource a, QuerySource b) {
  return QuerySources(a) | QuerySources(b);
}
/// Aggregate over queries of the weight that a row gets. max_or_unasked: as max, and a row that the queries did
/// not ask for has some of what is likely to be asked next of such rows (compaction/score.h).
enum class RowScore { recency, max, max_or_unasked, rms, mean, random };
enum class Weighting { none, attention_share };  // weight in the region's softmax, or in all the query attends
enum class Selection { attention, omp };         // the best scored rows, or those that restore the mass step by step
enum class Fit { none, biases, values, both };
/// The same for every head; one threshold over all heads; least measured error; shares stored for the model.
enum class BudgetPolicy { uniform, global, sensitivity, profile };
enum class Schedule {
  one_shot,
  chunked,           // stretches of the text on their own: memory of a fit stays that of one
  on_policy,         // fitted again to the queries that the model asks over compacted layers
  layer_sequential,  // rows chosen and fitted layer by layer, each with the queries over the compacted ones before
};

/// A named composition. One file each in compaction/methods/.
struct CompactionMethod {
  const char* name;
  const char* alias = nullptr;  // a second name that other programs use
  const char* summary;  // one line for help and docs
  const char* source;   // paper or where the idea is from
  QuerySources queries = QuerySource::none;
  RowScore score;
  Weighting weighting;
  Selection selection = Selection::attention;
  Fit fit;
  BudgetPolicy budget;
  Schedule schedule = Schedule::one_shot;
  double reread_fraction = 1.0;  // of the text that prefill and repeat_prefill read, in evenly spread pieces
  // > 0: tokens of it at most. Rows and queries that both grow with the text make a score's cost grow with its
  // square: at 16K tokens scoring took five times as long as at 8K.
  int64_t max_reread_tokens = 0;
  /// Of a text of so many tokens.
  double fraction_to_read(int64_t n_text) const {
    if (max_reread_tokens == 0 || n_text <= 0) return reread_fraction;
    return std::min(reread_fraction, static_cast<double>(max_reread_tokens) / static_cast<double>(n_text));
  }
  /// Whether its queries are a repetition of some of the text only.
  bool reads_sample(int64_t n_text) const {
    return queries.has(QuerySource::repeat_prefill) && !queries.has(QuerySource::self_study) &&
           fraction_to_read(n_text) < 1;
  }
  /// Whether rows are scored by what queries attend.
  bool scores_by_attention() const { return score != RowScore::recency && score != RowScore::random; }
  bool needs_queries() const { return scores_by_attention() || fit != Fit::none; }
  int32_t score_pool = 0;        // > 1: scores are averaged over so many neighbouring rows
  int32_t n_sinks = 4;   // rows at the start of a sequence that the engine leaves out of the region
  int32_t n_recent = 4;  // rows at the end of the range, likewise
};

std::span<const CompactionMethod* const> methods();
/// Errors: not_found naming the known methods.
Result<const CompactionMethod*> find_method(std::string_view name);

std::string name_of(QuerySources v);
std::string_view name_of(RowScore v);
std::string_view name_of(Weighting v);
std::string_view name_of(Selection v);
std::string_view name_of(Fit v);
std::string_view name_of(BudgetPolicy v);
std::string_view name_of(Schedule v);

/// Reads a choice of an axis by its name.
/// Errors: invalid_argument naming the axis and its choices.
Result<QuerySources> parse_query_sources(std::string_view text);
template <typename Axis>
Result<Axis> parse_axis(std::string_view text);  // RowScore, Weighting, Selection, Fit, BudgetPolicy, Schedule

/// Of orthogonal matching pursuit (compaction/omp.h).
/// On clustered synthetic heads (T/10 rows, mean of six) one key a step and eight steps a refit end within 0.3 %
/// of the residual of a refit after every key, four keys and two steps at 3 to 4 % more, for the same number of
/// refits. The default is the latter, of which a step also looks for its keys less often.
struct OmpOptions {
  int32_t keys_per_step = 4;       // picked by the same correlations
  int32_t steps_per_refit = 2;     // between two refits of all weights (the paper's fast variant)
  // The dictionary is the best rows by score: so many for each row to keep or each query, if they are fewer,
  int32_t candidates_per_row = 4;
  int32_t max_candidates = 4096;   // at most so many: their Gram matrix is 64 MiB of f32 at 4096
  float max_weight = std::exp(7.0f);   // that one row may stand for
  float min_weight = std::exp(-7.0f);  // a row that ends at or under it is dropped for good and replaced
  double deadline_seconds = 0;         // of one head, 0: none; rows not picked by then are filled in by score
};

/// Numbers of the solver.
struct SolveOptions {
  int32_t max_queries_per_head = 4096;  // of a fit, pooled over the group; more are thinned evenly
  int32_t max_score_queries_per_head = 32768;  // of row scores: a fact may be asked for by one query of many thousands
  // Without a fit the report's error is measured on so many: 16 queries of each of hundreds of heads tell the
  // mean.
  int32_t max_report_queries_per_head = 16;
  int32_t max_fit_rows = 1024;  // of more kept rows in a head, the best scored; the others stay as they are
  int32_t holdout_every = 5;    // one query of so many is held out of the fit
  float min_bias = -3.0f, max_bias = 3.0f;  // of a fit's change to a row's bias
  int32_t max_nnls_sweeps = 50;             // of the box, where it binds
  // A fit is accepted if its worst and its 99th percentile errors are at most the first number times the plain
  // rows', and no query's error grows by more than the second (errors are relative to the mean output): a fact is
  // one query among thousands, and where the plain rows already lose some query altogether, their worst error says
  // nothing about the others. At a factor of exactly 1 the last digits of one such hopeless query decide: it then
  // turned down every candidate on some synthetic heads.
  float accept_worst_factor = 1.05f;
  float accept_max_regret = 0.25f;
  OmpOptions omp;
  int64_t chunk_tokens = 4096;  // of a chunked schedule: positions of one stretch
};

}  // namespace sh::compaction
