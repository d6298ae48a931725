// SPDX-License-Identifier: MIT
#include "engine/measure_profile.h"

#include "engine/compact_sequence.h"
#include "engine/region_plan.h"

namespace sh::engine {

Result<compaction::HeadProfile> measure_profile(Executor& executor, const kv::SequenceCache& sequence,
                                                std::span<const int32_t> ids, const CompactionRequest& request,
                                                const std::atomic<bool>* cancel) {
  const Engine& engine = executor.engine();
  SH_ASSIGN(const ReferenceQueries queries,
            gather_reference_queries(executor, sequence, ids, nullptr, request, cancel));
  SH_ASSIGN(const compaction::CompactionMethod method, method_of(request));
  SH_ASSIGN(const Region region, plan_region(sequence, method, request));
  const std::vector<HeadPlan> plans = plan_heads(sequence, region, request.compacts_window_layers);
  const CacheProblems problems(engine, sequence, plans, queries.sets,
                               queries.source.has(compaction::QuerySource::cache_keys));
  const compaction::SolveContext context{&executor.thread_pool(), &executor.kernels(), cancel, {}};
  SH_ASSIGN(const auto scores, compaction::score_heads(method, problems, request.solve, context));
  SH_ASSIGN(const auto curves, compaction::measure_curves(method, problems, scores, request.solve, context));
  std::vector<int64_t> fixed_rows;
  std::vector<compaction::HeadId> heads;
  for (const HeadPlan& plan : plans) {
    fixed_rows.push_back(plan.n_fixed);
    heads.push_back({plan.layer, plan.head});
  }
  SH_ASSIGN(const std::vector<int64_t> kept,
            compaction::plan_budget({.policy = compaction::BudgetPolicy::sensitivity,
                                     .scores = scores,
                                     .fixed_rows = fixed_rows,
                                     .curves = curves,
                                     .limits = limits_of(engine, sequence, plans, request)}));
  return compaction::HeadProfile{.model = profile_key(engine),
                                 .method = request.method,
                                 .ratio = request.ratio,
                                 .n_documents = 1,
                                 .shares = compaction::shares_of(heads, kept)};
}

}  // namespace sh::engine
