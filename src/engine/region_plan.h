// SPDX-License-Identifier: MIT
// Which rows of a conversation a compaction may replace, and each head's part of them as a problem to solve.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "compaction/budget.h"
#include "compaction/method.h"
#include "compaction/problem_source.h"
#include "engine/compaction_report.h"
#include "engine/engine.h"
#include "kv/sequence_cache.h"

namespace sh::engine {

/// Logical positions [begin, end) without the pinned spans; everything else stays verbatim.
struct Region {
  kv::Pos begin, end;
  std::vector<Span> pinned;  // within [begin, end), increasing, not touching
  bool operator==(const Region&) const = default;
  bool contains(kv::Pos pos) const;
  int64_t n_tokens() const;
  std::vector<Span> spans() const;  // what may be condensed
};

/// Joins what overlaps or touches and cuts off what lies outside [begin, end).
std::vector<Span> merged(std::vector<Span> spans, int64_t begin, int64_t end);

/// The request's method with the axes that it changes.
/// Errors: not_found.
Result<compaction::CompactionMethod> method_of(const CompactionRequest& request);

/// Errors: invalid_argument (ratio, spans outside the conversation, nothing left to compact).
Result<Region> plan_region(const kv::SequenceCache& sequence, const compaction::CompactionMethod& method,
                           const CompactionRequest& request);

/// One head of the cache that has rows in a region.
struct HeadPlan {
  int32_t layer = 0, head = 0;
  std::vector<int32_t> rows;  // of the region: indices into the head, increasing
  int64_t n_fixed = 0;        // other rows
};
/// Rows of a window layer are condensed only if every token of the next so many still sees them all: a fit promises
/// that the kept rows stand for the others, which is wrong once some of those have left the window. Enough for a
/// question and an answer of a self-study.
inline constexpr int32_t kWindowHorizon = 192;
/// Heads whose rows may be replaced, layer-major. Window layers are small already and left out unless asked for;
/// then rows that leave the window within kWindowHorizon tokens stay as they are.
std::vector<HeadPlan> plan_heads(const kv::SequenceCache& sequence, const Region& region,
                                 bool with_window_layers);

/// Problems over a cache that does not change meanwhile; a head is decoded when it is asked for. In a window layer
/// queries that do not see all of a problem's rows are left out.
class CacheProblems final : public compaction::ProblemSource {
 public:
  /// Borrows all. `sets` [layer][head] may have empty sets; with `cache_keys` the region's own keys are the queries.
  CacheProblems(const Engine& engine, const kv::SequenceCache& sequence, std::span<const HeadPlan> plans,
                const QuerySets& sets, bool cache_keys);
  int64_t n_heads() const override { return static_cast<int64_t>(plans_.size()); }
  int64_t n_rows(int64_t head) const override {
    return static_cast<int64_t>(plans_[static_cast<size_t>(head)].rows.size());
  }
  int64_t n_fixed_rows(int64_t head) const override { return plans_[static_cast<size_t>(head)].n_fixed; }
  compaction::HeadProblem load(int64_t head, compaction::HeadStorage& storage) const override;
  compaction::HeadProblem load_to_stream(int64_t head, compaction::HeadStorage& storage) const override;
  compaction::HeadProblem load_rows(int64_t head, std::span<const int32_t> rows,
                                    compaction::HeadStorage& storage) const override;

 private:
  /// The problem without keys and values.
  compaction::HeadProblem problem_of(const HeadPlan& plan, std::span<const int32_t> rows,
                                     compaction::HeadStorage& storage) const;
  compaction::HeadProblem decoded(const HeadPlan& plan, std::span<const int32_t> rows,
                                  compaction::HeadStorage& storage) const;

  const Engine& engine_;
  const kv::SequenceCache& sequence_;
  std::span<const HeadPlan> plans_;
  const QuerySets& sets_;
  bool cache_keys_;
};

/// What head profiles tell models apart by: architecture, layers, KV heads and widths.
std::string profile_key(const Engine& engine);

/// What may be kept in all, from the request's ratio or target.
compaction::BudgetLimits limits_of(const Engine& engine, const kv::SequenceCache& sequence,
                                   std::span<const HeadPlan> plans, const CompactionRequest& request);

/// A layer's heads after the compaction: fixed rows and kept keys are copied bit for bit, fitted values are
/// encoded anew. Replaces `rows`, whose memory is used again. Shapes: one plan and one compact head for each of
/// its heads.
void assemble_layer(const Engine& engine, ThreadPool& pool, const kv::SequenceCache& sequence,
                    std::span<const HeadPlan> plans, std::span<const compaction::CompactHead> compact,
                    std::vector<kv::HeadRows>& rows);

}  // namespace sh::engine
