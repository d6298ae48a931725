// SPDX-License-Identifier: MIT
#include <algorithm>
#include <optional>

#include "base/clock.h"
#include "engine/compact_sequence.h"
#include "engine/row_coverage.h"

namespace sh::engine {

namespace {

using compaction::CompactionMethod;
using compaction::QuerySource;
using compaction::QuerySources;
using kv::Pos;
using kv::SequenceCache;

/// Gathers from one source after the other.
class Gatherer {
 public:
  Gatherer(Executor& executor, const SequenceCache& sequence, std::span<const int32_t> ids,
           const CompactionMethod& method, const CompactionRequest& request, GatherContext context)
      : executor_(executor),
        sequence_(sequence),
        ids_(ids),
        method_(method),
        request_(request),
        context_(std::move(context)) {
    context_.reference = &out_.reference;
  }

  Result<ReferenceQueries> run(const QueryCapture* captured, const Stopwatch& watch) {
    const bool has_captured = captured != nullptr && captured->n_tokens() > 0;
    const Pos compacted = sequence_.compacted_end(), end = sequence_.next_pos();
    const auto wants = [&](QuerySource source) { return method_.queries.has(source); };
    QuerySources used = wants(QuerySource::cache_keys) ? QuerySource::cache_keys : QuerySource::none;
    bool repeats = wants(QuerySource::repeat_prefill);
    const double fraction = method_.fraction_to_read(std::ssize(ids_));
    if (wants(QuerySource::recent)) {
      const Pos begin = std::max(compacted, Pos(std::max<int64_t>(0, end.value - request_.n_recent_queries)));
      // Right after a compaction nothing is live that could be read again.
      if (begin == end) repeats = true;
      if (begin < end) {
        SH_RETURN_IF_ERROR(add(reread(executor_, sequence_, live_ids(), begin, end, 1.0, context_, &out_.study)));
        used = used | QuerySource::recent;
      }
    }
    if (wants(QuerySource::prefill)) {
      if (has_captured) {
        sets_.push_back(captured->take(executor_.thread_pool()));
        used = used | QuerySource::prefill;
      } else if (compacted == Pos(0)) {
        SH_RETURN_IF_ERROR(add(reread(executor_, sequence_, ids_, Pos(0), end, fraction, context_,
                                      &out_.study)));
        used = used | QuerySource::prefill;
      } else {
        repeats = true;
      }
    }
    if (repeats) {
      GatherContext context = context_;
      // A sample praises itself, and a study's answers are compared instead of what was repeated before it.
      if (fraction < 1 || wants(QuerySource::self_study)) context.n_compared = 0;
      SH_RETURN_IF_ERROR(add(repeat_prefill(executor_, sequence_, ids_, fraction, context,
                                            &out_.replay, &out_.study)));
      used = used | QuerySource::repeat_prefill;
      out_.is_sample = fraction < 1;
    }
    if (wants(QuerySource::self_study)) {
      out_.replay = {};
      out_.is_sample = false;
      SH_RETURN_IF_ERROR(add(
          self_study(executor_, sequence_, ids_, request_.self_study, context_, &out_.replay, &out_.study)));
      used = used | QuerySource::self_study;
    }
    out_.sets = sets_.empty() ? QuerySets(executor_.engine().kv_layout().layers.size()) : merge(std::move(sets_));
    out_.ids.assign(ids_.begin(), ids_.end());
    out_.source = used;
    out_.seconds = watch.seconds();
    return std::move(out_);
  }

 private:
  /// Tokens by position, true for live rows: the positions of compacted ones may have been given anew.
  std::span<const int32_t> live_ids() const {
    return ids_.subspan(ids_.size() - static_cast<size_t>(sequence_.next_pos().value));
  }
  Result<void> add(Result<QuerySets> sets) {
    if (!sets.ok()) return sets.error();
    sets_.push_back(std::move(*sets));
    return {};
  }

  Executor& executor_;
  const SequenceCache& sequence_;
  std::span<const int32_t> ids_;
  const CompactionMethod& method_;
  const CompactionRequest& request_;
  GatherContext context_;
  std::vector<QuerySets> sets_;
  ReferenceQueries out_;
};

}  // namespace

Result<ReferenceQueries> gather_reference_queries(Executor& executor, const SequenceCache& sequence,
                                                  std::span<const int32_t> ids, const QueryCapture* captured,
                                                  const CompactionRequest& request, const std::atomic<bool>* cancel,
                                                  const CompactionProgress& on_progress) {
  SH_CHECK(static_cast<int64_t>(ids.size()) >= sequence.next_pos().value, "the token list must match the cache");
  SH_ASSIGN(const CompactionMethod method, method_of(request));
  SH_ASSIGN(const Region region, plan_region(sequence, method, request));
  const Stopwatch watch;
  std::vector<HeadPlan> plans;
  std::optional<RowCoverage> coverage;  // decides when a study ends
  if (method.queries.has(QuerySource::self_study)) {
    plans = plan_heads(sequence, region, request.compacts_window_layers);
    coverage.emplace(executor, sequence, plans);
  }
  const GatherContext context{.cancel = cancel,
                              .on_progress =
                                  [&](double fraction) {
                                    if (on_progress) on_progress("queries", fraction);
                                  },
                              .max_query_bytes = request.max_query_bytes,
                              .coverage = coverage ? &*coverage : nullptr,
                              .n_compared = n_replay_tokens(method, request, region.n_tokens())};
  return Gatherer(executor, sequence, ids, method, request, context).run(captured, watch);
}

}  // namespace sh::engine
