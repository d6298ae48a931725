// SPDX-License-Identifier: MIT
// Compaction of one conversation: plan → reference queries → solve each (layer, KV head) → validate → swap in → free blocks.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "compaction/compactor.h"
#include "engine/engine.h"
#include "engine/reference_queries.h"

namespace sh::engine {

struct CompactionRequest {
  std::string method = "select";
  double ratio = 2.0;            // of the compactable rows, or of the whole cache's bytes when `of_whole_cache`
  int64_t target_tokens = -1;    // > 0: rows to keep of the region per head on average; overrides ratio
  bool of_whole_cache = false;   // ratio counts real bytes of all blocks, pinned rows and rounding included
  int64_t n_protected_prefix = 0;  // p0: logical tokens at the start that stay verbatim
  int64_t n_live_suffix = 0;       // newest tokens that stay live
  // Axes that differ from the method's preset.
  std::optional<compaction::QuerySource> queries;
  std::optional<compaction::RowScore> score;
  std::optional<compaction::Weighting> weighting;
  std::optional<compaction::Fit> fit;
  std::optional<compaction::BudgetPolicy> budget;
  compaction::SolveOptions solve;
  SelfStudyOptions self_study;
  int64_t max_query_bytes = int64_t{512} << 20;
};

/// Reference queries with where they came from: gathered once, they serve every ratio.
struct ReferenceQueries {
  compaction::QuerySource source = compaction::QuerySource::none;  // what was really used
  QuerySets sets;
  StudyStats study;
  double seconds = 0;
};

struct CompactionReport {
  std::string method;
  compaction::QuerySource queries = compaction::QuerySource::none;  // what was really used
  int64_t n_logical = 0;               // tokens of the conversation
  int64_t n_region = 0;                // logical tokens that were compactable
  double rows_before = 0, rows_after = 0;  // per head, mean
  int64_t bytes_before = 0, bytes_after = 0;  // of the conversation's blocks
  double region_ratio = 0, real_ratio = 0;
  double capture_seconds = 0, select_seconds = 0, fit_seconds = 0, total_seconds = 0;
  double heldout_plain = 0, heldout_fitted = 0;    // mean over heads; NaN when nothing was measured
  double fallback_heads = 0;           // share of heads where the unfitted rows were kept
  int64_t n_queries = 0;               // per head, mean
  StudyStats study;
  std::vector<compaction::FitReport> heads;  // layer-major
  std::vector<int64_t> head_rows;      // kept rows of each head, layer-major
};

using CompactionProgress = std::function<void(const char* stage, double fraction)>;

/// Gathers queries of the source that the request's method asks for. Captured queries that were never captured are replaced by a repeated
/// reading, and `source` says so.
/// Errors: as compact_sequence().
Result<ReferenceQueries> gather_reference_queries(Engine& engine, const kv::SequenceCache& sequence, std::span<const int32_t> ids,
                                                  const QueryCapture* captured, const CompactionRequest& request,
                                                  const std::atomic<bool>* cancel = nullptr, const CompactionProgress& on_progress = {});

/// Compacts `sequence`. `ids` are its tokens (logical, all of them); `captured` are queries from reading it, or null.
/// Commits whole or leaves the sequence as it was.
/// Errors: invalid_argument (ratio < 1, ranges, nothing compactable), not_found / unsupported (method), cancelled, out_of_memory.
Result<CompactionReport> compact_sequence(Engine& engine, kv::SequenceCache& sequence, std::span<const int32_t> ids,
                                          const QueryCapture* captured, const CompactionRequest& request,
                                          const std::atomic<bool>* cancel = nullptr, const CompactionProgress& on_progress = {});
/// The same with queries gathered before, from this very conversation.
Result<CompactionReport> compact_sequence(Engine& engine, kv::SequenceCache& sequence, const ReferenceQueries& queries,
                                          const CompactionRequest& request, const std::atomic<bool>* cancel = nullptr,
                                          const CompactionProgress& on_progress = {});

}  // namespace sh::engine
