// SPDX-License-Identifier: MIT
#include "engine/measure_profile.h"

#include <fmt/format.h>

#include <vector>

#include "base/mapped_file.h"
#include "engine/region_plan.h"

namespace sh::engine {

using compaction::BudgetPolicy;
using compaction::HeadId;
using compaction::HeadProfile;

Result<HeadProfile> measure_profile(Executor& executor, const kv::SequenceCache& sequence,
                                    std::span<const int32_t> ids, const CompactionRequest& request,
                                    const std::atomic<bool>* cancel, const CompactionProgress& on_progress) {
  const Engine& engine = executor.engine();
  SH_ASSIGN(const compaction::CompactionMethod method, method_of(request));
  if (method.budget != BudgetPolicy::global && method.budget != BudgetPolicy::sensitivity)
    return Error{
        ErrorKind::invalid_argument,
        fmt::format("a head profile is measured with budget=global or budget=sensitivity, which look at the "
                    "heads; method '{}' has budget={}",
                    method.name, compaction::name_of(method.budget))};
  SH_ASSIGN(const Region region, plan_region(sequence, method, request));
  const std::vector<HeadPlan> plans = plan_heads(sequence, region, request.compacts_window_layers);
  if (plans.empty())
    return Error{ErrorKind::unsupported, "the model has no attention layer that can be compacted"};
  SH_ASSIGN(const ReferenceQueries queries,
            gather_reference_queries(executor, sequence, ids, nullptr, request, cancel, on_progress));

  const CacheProblems problems(engine, sequence, plans, queries.sets,
                               queries.source.has(compaction::QuerySource::cache_keys));
  const compaction::SolveContext context{&executor.thread_pool(), &executor.kernels(), cancel,
                                         [&](double fraction) {
                                           if (on_progress) on_progress("score", fraction);
                                         }};
  SH_ASSIGN(const auto scores, compaction::score_heads(method, problems, request.solve, context));
  std::vector<compaction::ErrorCurve> curves;
  if (method.budget == BudgetPolicy::sensitivity) {
    SH_ASSIGN(curves, compaction::measure_curves(method, problems, scores.rows, request.solve, context));
  }
  std::vector<int64_t> fixed_rows;
  std::vector<HeadId> heads;
  for (const HeadPlan& plan : plans) {
    fixed_rows.push_back(plan.n_fixed);
    heads.push_back({plan.layer, plan.head});
  }
  SH_ASSIGN(const std::vector<int64_t> kept,
            compaction::plan_budget({.policy = method.budget,
                                     .scores = scores.rows,
                                     .fixed_rows = fixed_rows,
                                     .curves = curves,
                                     .limits = limits_of(engine, sequence, plans, request)}));
  return HeadProfile{.model = profile_key(engine),
                     .method = request.method,
                     .ratio = request.ratio,
                     .n_documents = 1,
                     .shares = compaction::shares_of(heads, kept)};
}

Result<HeadProfile> load_profile(const Engine& engine, const std::string& path) {
  SH_ASSIGN(const std::string text, read_file(path));
  SH_ASSIGN(HeadProfile profile, compaction::parse_head_profile(text, path));
  std::vector<HeadId> heads;
  const auto& layers = engine.kv_layout().layers;
  for (size_t l = 0; l < layers.size(); ++l) {
    const bool has_shares = l < profile.shares.size() && !profile.shares[l].empty();
    if (layers[l].window > 0 && !has_shares) continue;
    for (int32_t h = 0; h < layers[l].n_heads; ++h) heads.push_back({static_cast<int32_t>(l), h});
  }
  if (const auto shares = compaction::shares_for(profile, profile_key(engine), heads); !shares.ok())
    return Error{shares.error().kind, fmt::format("{}: {}", path, shares.error().message)};
  return profile;
}

}  // namespace sh::engine
