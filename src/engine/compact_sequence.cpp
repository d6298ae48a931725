// SPDX-License-Identifier: MIT
#include "engine/compact_sequence.h"

#include <fmt/format.h>

#include <algorithm>
#include <limits>

#include "base/clock.h"
#include "engine/region_plan.h"

namespace sh::engine {

namespace {

using compaction::CompactHead;
using compaction::CompactionMethod;
using compaction::QuerySource;
using compaction::QuerySources;
using kv::HeadRows;
using kv::Pos;
using kv::SequenceCache;

/// Figures over heads; sums become means.
void summarise(std::span<const HeadPlan> plans, const compaction::Solution& solution, CompactionReport& report) {
  double plain = 0, fitted = 0, queries = 0, n_before = 0, n_after = 0;
  int64_t n_measured = 0, n_fallback = 0;
  for (size_t i = 0; i < plans.size(); ++i) {
    const CompactHead& head = solution.heads[i];
    report.heads.push_back({plans[i].layer, plans[i].head, static_cast<int64_t>(plans[i].rows.size()),
                            static_cast<int64_t>(head.source_rows.size()), head.report});
    n_before += static_cast<double>(plans[i].rows.size());
    n_after += static_cast<double>(head.source_rows.size());
    queries += static_cast<double>(head.report.n_fit_queries + head.report.n_heldout_queries);
    if (head.report.n_heldout_queries == 0) continue;
    ++n_measured;
    plain += head.report.heldout_plain;
    fitted += head.report.heldout_fitted;
    n_fallback += head.report.is_fit_accepted ? 0 : 1;
  }
  constexpr double kNone = std::numeric_limits<double>::quiet_NaN();
  const auto measured = static_cast<double>(n_measured);
  report.region_ratio = n_before / std::max(1.0, n_after);
  report.n_queries = static_cast<int64_t>(queries / std::max<double>(1.0, static_cast<double>(plans.size())));
  report.heldout_plain = n_measured > 0 ? plain / measured : kNone;
  report.heldout_fitted = n_measured > 0 ? fitted / measured : kNone;
  report.fallback_heads = n_measured > 0 ? static_cast<double>(n_fallback) / measured : 0;
}

/// All heads of the cache after the compaction.
std::vector<std::vector<HeadRows>> assemble_all(Executor& executor, const SequenceCache& sequence,
                                                std::span<const HeadPlan> plans,
                                                std::span<const CompactHead> heads) {
  const Engine& engine = executor.engine();
  const auto& layers = engine.kv_layout().layers;
  std::vector<std::vector<HeadRows>> rows(layers.size());
  std::vector<bool> is_planned(layers.size(), false);
  for (const HeadPlan& plan : plans) is_planned[static_cast<size_t>(plan.layer)] = true;
  for (size_t l = 0; l < layers.size(); ++l)
    for (int32_t h = 0; h < layers[l].n_heads; ++h)
      rows[l].push_back(is_planned[l] ? HeadRows{} : sequence.copy_head(static_cast<int32_t>(l), h));
  executor.thread_pool().run(static_cast<int64_t>(plans.size()), [&](int64_t i, int) {
    const HeadPlan& plan = plans[static_cast<size_t>(i)];
    rows[static_cast<size_t>(plan.layer)][static_cast<size_t>(plan.head)] =
        assemble(engine, sequence, plan, heads[static_cast<size_t>(i)]);
  });
  return rows;
}

/// Gathers from one source after the other.
class Gatherer {
 public:
  Gatherer(Executor& executor, const SequenceCache& sequence, std::span<const int32_t> ids,
           const CompactionMethod& method, const CompactionRequest& request, const GatherContext& context)
      : executor_(executor), sequence_(sequence), ids_(ids), method_(method), request_(request), context_(context) {}

  Result<ReferenceQueries> run(const QueryCapture* captured) {
    const Stopwatch watch;
    const bool has_captured = captured != nullptr && captured->n_tokens() > 0;
    const Pos compacted = sequence_.compacted_end(), end = sequence_.next_pos();
    const auto wants = [&](QuerySource source) { return method_.queries.has(source); };
    QuerySources used = wants(QuerySource::cache_keys) ? QuerySource::cache_keys : QuerySource::none;
    bool repeats = wants(QuerySource::repeat_prefill);
    if (wants(QuerySource::recent)) {
      const Pos begin = std::max(compacted, Pos(std::max<int64_t>(0, end.value - request_.n_recent_queries)));
      // Right after a compaction nothing is live that could be read again.
      if (begin == end) repeats = true;
      if (begin < end) SH_RETURN_IF_ERROR(add(reread(executor_, sequence_, ids_, begin, end, 1.0, context_, &out_.study)));
      if (begin < end) used = used | QuerySource::recent;
    }
    if (wants(QuerySource::prefill)) {
      if (has_captured) {
        sets_.push_back(captured->take());
        used = used | QuerySource::prefill;
      } else if (compacted == Pos(0)) {
        SH_RETURN_IF_ERROR(add(reread(executor_, sequence_, ids_, Pos(0), end, method_.reread_fraction, context_, &out_.study)));
        used = used | QuerySource::prefill;
      } else {
        repeats = true;
      }
    }
    if (repeats) {
      SH_RETURN_IF_ERROR(add(repeat_prefill(executor_, sequence_, ids_, method_.reread_fraction, context_,
                                            &out_.replay, &out_.study)));
      used = used | QuerySource::repeat_prefill;
    }
    if (wants(QuerySource::self_study)) {
      out_.replay = {};
      SH_RETURN_IF_ERROR(add(self_study(executor_, sequence_, ids_, request_.self_study, context_, &out_.replay, &out_.study)));
      used = used | QuerySource::self_study;
    }
    out_.sets = sets_.empty() ? QuerySets(executor_.engine().kv_layout().layers.size()) : merge(std::move(sets_));
    out_.source = used;
    out_.seconds = watch.seconds();
    return std::move(out_);
  }

 private:
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
  const GatherContext& context_;
  std::vector<QuerySets> sets_;
  ReferenceQueries out_;
};

}  // namespace

Result<ReferenceQueries> gather_reference_queries(Executor& executor, const SequenceCache& sequence,
                                                  std::span<const int32_t> ids, const QueryCapture* captured,
                                                  const CompactionRequest& request, const std::atomic<bool>* cancel,
                                                  const CompactionProgress& on_progress) {
  SH_CHECK(static_cast<int64_t>(ids.size()) == sequence.next_pos().value, "the token list must match the cache");
  SH_ASSIGN(const CompactionMethod method, method_of(request));
  SH_RETURN_IF_ERROR(plan_region(sequence, method, request));
  const GatherContext context{.cancel = cancel,
                              .on_progress =
                                  [&](double fraction) {
                                    if (on_progress) on_progress("queries", fraction);
                                  },
                              .max_query_bytes = request.max_query_bytes};
  return Gatherer(executor, sequence, ids, method, request, context).run(captured);
}

Result<CompactionReport> compact_sequence(Executor& executor, SequenceCache& sequence, std::span<const int32_t> ids,
                                          const QueryCapture* captured, const CompactionRequest& request,
                                          const std::atomic<bool>* cancel, const CompactionProgress& on_progress) {
  SH_ASSIGN(const ReferenceQueries queries,
            gather_reference_queries(executor, sequence, ids, captured, request, cancel, on_progress));
  return compact_sequence(executor, sequence, queries, request, cancel, on_progress);
}

Result<CompactionReport> compact_sequence(Executor& executor, SequenceCache& sequence,
                                          const ReferenceQueries& queries, const CompactionRequest& request,
                                          const std::atomic<bool>* cancel, const CompactionProgress& on_progress) {
  const Stopwatch total;
  const Engine& engine = executor.engine();
  const auto progress = [&](const char* stage, double fraction) {
    if (on_progress) on_progress(stage, fraction);
  };

  // Plan.
  SH_ASSIGN(const CompactionMethod method, method_of(request));
  SH_ASSIGN(const Region region, plan_region(sequence, method, request));
  const std::vector<HeadPlan> plans = plan_heads(sequence, region, request.compacts_window_layers);
  if (plans.empty()) return Error{ErrorKind::unsupported, "the model has no attention layer that can be compacted"};
  const kv::CacheUsage before = sequence.usage();
  CompactionReport report{.method = request.method, .queries = queries.source};
  report.capture_seconds = queries.seconds;
  report.study = queries.study;
  report.n_logical = sequence.next_pos().value;
  report.n_region = region.n_tokens();
  report.rows_before = before.n_physical;
  report.bytes_before = before.bytes;
  report.condensed = region.spans();

  // Score, budget, fit each (layer, KV head).
  const CacheProblems problems(engine, sequence, plans, queries.sets, queries.source.has(QuerySource::cache_keys));
  const compaction::SolveContext context{&executor.thread_pool(), &executor.kernels(), cancel,
                                         [&](double fraction) { progress("solve", fraction); }};
  SH_ASSIGN(const compaction::Solution solution,
            compaction::solve(method, problems, limits_of(engine, sequence, plans, request), request.solve, context));
  report.select_seconds = solution.times.select_seconds;
  report.fit_seconds = solution.times.fit_seconds;
  summarise(plans, solution, report);

  // Swap in.
  progress("swap", 0);
  SH_RETURN_IF_ERROR(sequence.replace(assemble_all(executor, sequence, plans, solution.heads),
                                      std::max(region.end, sequence.compacted_end())));
  const kv::CacheUsage after = sequence.usage();
  report.rows_after = after.n_physical;
  report.bytes_after = after.bytes;
  report.real_ratio = static_cast<double>(before.bytes) / static_cast<double>(std::max<int64_t>(1, after.bytes));
  report.total_seconds = queries.seconds + total.seconds();
  progress("done", 1);
  return report;
}

}  // namespace sh::engine
