// SPDX-License-Identifier: MIT
// Compaction of one conversation: plan → reference queries → score → budget → fit each (layer, KV head) → validate →
// swap in → free blocks.
#pragma once

#include <atomic>
#include <cstdint>
#include <optional>
#include <span>
#include <vector>

#include "engine/compaction_report.h"
#include "engine/executor.h"
#include "engine/region_plan.h"
#include "engine/replay_check.h"

namespace sh::engine {

/// Reference queries with where they came from: gathered once, they serve every ratio.
struct ReferenceQueries {
  compaction::QuerySources source = compaction::QuerySource::none;  // what was really used
  std::vector<int32_t> ids;  // tokens of the conversation that they were gathered from
  QuerySets sets;
  Replay replay;
  bool is_sample = false;                    // the replay is a part of the text, and no query is of the rest
  std::optional<ReplayReference> reference;  // of the replay, when its logits were kept on the way
  StudyStats study;
  double seconds = 0;
};

/// Gathers queries of the sources that the request's method asks for. The text is read again where its queries were
/// never captured, and repeated where it cannot be read again because it was compacted; `source` says so.
/// Errors: as compact_sequence().
Result<ReferenceQueries> gather_reference_queries(Executor& executor, const kv::SequenceCache& sequence,
                                                  std::span<const int32_t> ids, const QueryCapture* captured,
                                                  const CompactionRequest& request,
                                                  const std::atomic<bool>* cancel = nullptr,
                                                  const CompactionProgress& on_progress = {});

/// Compacts `sequence`. `ids` are its tokens (logical, all of them); `captured` are queries from reading it, or null.
/// Commits whole or leaves the sequence as it was.
/// Errors: invalid_argument (ratio < 1, ranges, nothing compactable), not_found / unsupported (method), cancelled,
///         out_of_memory.
Result<CompactionReport> compact_sequence(Executor& executor, kv::SequenceCache& sequence,
                                          std::span<const int32_t> ids, const QueryCapture* captured,
                                          const CompactionRequest& request,
                                          const std::atomic<bool>* cancel = nullptr,
                                          const CompactionProgress& on_progress = {});
/// The same with queries gathered before, from this very conversation.
Result<CompactionReport> compact_sequence(Executor& executor, kv::SequenceCache& sequence,
                                          const ReferenceQueries& queries, const CompactionRequest& request,
                                          const std::atomic<bool>* cancel = nullptr,
                                          const CompactionProgress& on_progress = {});

}  // namespace sh::engine
