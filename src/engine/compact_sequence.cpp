// SPDX-License-Identifier: MIT
#include "engine/compact_sequence.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <limits>

#include "base/clock.h"

namespace sh::engine {

namespace {

using compaction::CompactHead;
using compaction::CompactionMethod;
using compaction::HeadProblem;
using compaction::QuerySource;
using kv::HeadRows;
using kv::Pos;
using kv::SequenceCache;

/// Which rows may be replaced, as logical positions [begin, end); everything outside stays verbatim.
struct Region {
  Pos begin, end;
};

/// One head's rows: the whole head decoded, and where in it the region lies.
struct HeadPlan {
  int32_t layer = 0, head = 0;
  SequenceCache::DecodedHead decoded;
  std::vector<int32_t> region_pos;  // [T]
  int64_t first = 0, last = 0;      // region rows [first, last) of the head
  int64_t n_region() const { return last - first; }
};

Result<CompactionMethod> method_of(const CompactionRequest& request) {
  SH_ASSIGN(const CompactionMethod* preset, compaction::find_method(request.method));
  CompactionMethod method = *preset;
  if (request.queries) method.queries = *request.queries;
  if (request.score) method.score = *request.score;
  if (request.weighting) method.weighting = *request.weighting;
  if (request.fit) method.fit = *request.fit;
  if (request.budget) method.budget = *request.budget;
  return method;
}

Result<Region> plan_region(const SequenceCache& sequence, const CompactionMethod& method, const CompactionRequest& request) {
  const int64_t n_logical = sequence.next_pos().value;
  if (!(request.ratio >= 1.0) || !std::isfinite(request.ratio))
    return Error{ErrorKind::invalid_argument, fmt::format("ratio: expected a number of at least 1, got {}", request.ratio)};
  if (n_logical == 0) return Error{ErrorKind::invalid_argument, "the conversation is empty: there is nothing to compact"};
  if (request.n_protected_prefix < 0 || request.n_protected_prefix > n_logical)
    return Error{ErrorKind::invalid_argument, fmt::format("p0: expected 0 to {} (the tokens of the conversation), got {}", n_logical, request.n_protected_prefix)};
  if (request.n_live_suffix < 0 || request.n_live_suffix > n_logical)
    return Error{ErrorKind::invalid_argument, fmt::format("live_suffix_tokens: expected 0 to {} (the tokens of the conversation), got {}", n_logical, request.n_live_suffix)};
  const int64_t begin = std::max<int64_t>(request.n_protected_prefix, method.n_sinks);
  const int64_t end = n_logical - std::max<int64_t>(request.n_live_suffix, method.n_recent);
  if (end - begin < 2)
    return Error{ErrorKind::invalid_argument,
                 fmt::format("nothing to compact: of {} tokens {} at the start and {} at the end stay as they are", n_logical, begin, n_logical - end)};
  return Region{Pos(begin), Pos(end)};
}

std::vector<HeadPlan> decode_heads(Engine& engine, const SequenceCache& sequence, const Region& region) {
  std::vector<HeadPlan> plans;
  const auto& layers = engine.kv_layout().layers;
  for (size_t l = 0; l < layers.size(); ++l) {
    if (layers[l].window > 0) continue;  // a window layer is small already and stays as it is
    for (int32_t h = 0; h < layers[l].n_heads; ++h) plans.push_back({.layer = static_cast<int32_t>(l), .head = h});
  }
  engine.thread_pool().run(static_cast<int64_t>(plans.size()), [&](int64_t i, int) {
    HeadPlan& plan = plans[static_cast<size_t>(i)];
    plan.decoded = sequence.decode_head(engine.kernels(), plan.layer, plan.head);
    const auto& pos = plan.decoded.pos;
    plan.first = std::lower_bound(pos.begin(), pos.end(), region.begin) - pos.begin();
    plan.last = std::lower_bound(pos.begin(), pos.end(), region.end) - pos.begin();
    for (int64_t r = plan.first; r < plan.last; ++r) plan.region_pos.push_back(pos[static_cast<size_t>(r)].value);
  });
  return plans;
}

HeadProblem problem_of(const Engine& engine, const HeadPlan& plan, const QuerySet* set) {
  const auto n_rows = static_cast<int64_t>(plan.decoded.pos.size());
  HeadProblem problem;
  problem.layer = plan.layer;
  problem.head = plan.head;
  problem.keys = plan.decoded.keys.view().slice(plan.first, plan.n_region());
  problem.values = plan.decoded.values.view().slice(plan.first, plan.n_region());
  problem.bias = std::span(plan.decoded.bias).subspan(static_cast<size_t>(plan.first), static_cast<size_t>(plan.n_region()));
  problem.pos = plan.region_pos;
  problem.n_fixed_rows = n_rows - plan.n_region();
  problem.scale = engine.model().attention_scale(plan.layer);
  if (set != nullptr) {
    problem.queries = set->queries.view();
    problem.query_pos = set->pos;
    problem.lse = set->lse;
    problem.out = set->out.view();
  }
  return problem;
}

/// The head after the compaction: fixed rows and kept keys are copied bit for bit, fitted values are encoded anew.
HeadRows assemble(const Engine& engine, const SequenceCache& sequence, const HeadPlan& plan, const CompactHead& compact) {
  const HeadRows all = sequence.copy_head(plan.layer, plan.head);
  const kv::LayerLayout& layer = engine.kv_layout().layers[static_cast<size_t>(plan.layer)];
  const auto key_bytes = static_cast<size_t>(row_bytes(engine.kv_layout().key_type, layer.key_width));
  const auto value_bytes = static_cast<size_t>(row_bytes(engine.kv_layout().value_type, layer.value_width));
  HeadRows rows;
  const auto copy_row = [&](size_t r) {
    rows.keys.insert(rows.keys.end(), all.keys.begin() + static_cast<std::ptrdiff_t>(r * key_bytes), all.keys.begin() + static_cast<std::ptrdiff_t>((r + 1) * key_bytes));
    rows.values.insert(rows.values.end(), all.values.begin() + static_cast<std::ptrdiff_t>(r * value_bytes),
                       all.values.begin() + static_cast<std::ptrdiff_t>((r + 1) * value_bytes));
    rows.bias.push_back(all.bias[r]);
    rows.pos.push_back(all.pos[r]);
  };
  for (int64_t r = 0; r < plan.first; ++r) copy_row(static_cast<size_t>(r));
  for (size_t i = 0; i < compact.source_rows.size(); ++i) {
    copy_row(static_cast<size_t>(plan.first + compact.source_rows[i]));
    rows.bias.back() = compact.bias[i];
    if (compact.values.rows > 0)
      engine.kernels().encode_row(engine.kv_layout().value_type, compact.values.row(static_cast<int64_t>(i)), layer.value_width,
                                  rows.values.data() + rows.values.size() - value_bytes);
  }
  for (auto r = static_cast<size_t>(plan.last); r < all.pos.size(); ++r) copy_row(r);
  return rows;
}

/// Bytes of the blocks of a layer, as kv::CacheUsage counts them.
double layer_bytes(const Engine& engine, const SequenceCache& sequence, int32_t layer) {
  int64_t bytes = 0;
  for (int32_t h = 0; h < engine.kv_layout().layers[static_cast<size_t>(layer)].n_heads; ++h)
    for (const kv::BlockEntry& entry : sequence.head(layer, h).blocks)
      bytes += sequence.pool().block_bytes(entry.block.arena) + (entry.is_annotated ? kv::BlockPool::kAnnotationBytes : 0);
  return static_cast<double>(bytes);
}

compaction::BudgetLimits limits_of(Engine& engine, const SequenceCache& sequence, const std::vector<HeadPlan>& plans, const CompactionRequest& request) {
  compaction::BudgetLimits limits{.block_rows = kv::kBlockRows};
  int64_t n_region_rows = 0;
  for (const HeadPlan& plan : plans) n_region_rows += plan.n_region();
  const auto n_heads = static_cast<int64_t>(plans.size());
  if (request.target_tokens > 0) {
    limits.max_region_rows = std::min(request.target_tokens, n_region_rows) * n_heads;
  } else if (request.of_whole_cache) {
    // A compacted block costs its annotation too. Layers may differ in row size: count in the mean block.
    double block_bytes = 0, fixed_bytes = 0;
    for (size_t l = 0; l < engine.kv_layout().layers.size(); ++l)
      if (engine.kv_layout().layers[l].window > 0) fixed_bytes += layer_bytes(engine, sequence, static_cast<int32_t>(l));
    for (const HeadPlan& plan : plans)
      block_bytes += static_cast<double>(engine.block_pool().block_bytes(engine.block_pool().arena_of_layer(plan.layer)) + kv::BlockPool::kAnnotationBytes);
    block_bytes /= static_cast<double>(n_heads);
    limits.max_blocks = static_cast<int64_t>(std::max(0.0, static_cast<double>(sequence.usage().bytes) / request.ratio - fixed_bytes) / block_bytes);
  } else {
    const double mean_rows = static_cast<double>(n_region_rows) / static_cast<double>(n_heads);
    limits.max_region_rows = std::max<int64_t>(2, static_cast<int64_t>(std::ceil(mean_rows / request.ratio))) * n_heads;
  }
  return limits;
}

void summarise(CompactionReport& report, const compaction::Solution& solution) {
  double plain = 0, fitted = 0, queries = 0;
  int64_t n_measured = 0, n_fallback = 0;
  for (const CompactHead& head : solution.heads) {
    report.heads.push_back(head.report);
    report.head_rows.push_back(static_cast<int64_t>(head.source_rows.size()));
    queries += static_cast<double>(head.report.n_fit_queries + head.report.n_heldout_queries);
    if (head.report.n_heldout_queries == 0) continue;
    ++n_measured;
    plain += head.report.heldout_plain;
    fitted += head.report.heldout_fitted;
    n_fallback += head.report.is_fit_accepted ? 0 : 1;
  }
  const auto n_heads = static_cast<double>(solution.heads.size());
  report.n_queries = static_cast<int64_t>(queries / std::max(1.0, n_heads));
  constexpr double kNone = std::numeric_limits<double>::quiet_NaN();
  report.heldout_plain = n_measured > 0 ? plain / static_cast<double>(n_measured) : kNone;
  report.heldout_fitted = n_measured > 0 ? fitted / static_cast<double>(n_measured) : kNone;
  report.fallback_heads = n_measured > 0 ? static_cast<double>(n_fallback) / static_cast<double>(n_measured) : 0;
}

}  // namespace

Result<ReferenceQueries> gather_reference_queries(Engine& engine, const SequenceCache& sequence, std::span<const int32_t> ids, const QueryCapture* captured,
                                                  const CompactionRequest& request, const std::atomic<bool>* cancel, const CompactionProgress& on_progress) {
  const Stopwatch watch;
  SH_CHECK(static_cast<int64_t>(ids.size()) == sequence.next_pos().value, "the token list must match the cache");
  SH_ASSIGN(const CompactionMethod method, method_of(request));
  SH_RETURN_IF_ERROR(plan_region(sequence, method, request));
  ReferenceQueries queries{.source = method.queries};
  if (queries.source == QuerySource::prefill && (captured == nullptr || captured->n_tokens() == 0)) queries.source = QuerySource::repeat_prefill;
  switch (queries.source) {
    case QuerySource::none:
      queries.sets.resize(engine.kv_layout().layers.size());
      break;
    case QuerySource::prefill:
      queries.sets = captured->take();
      break;
    case QuerySource::repeat_prefill: {
      SH_ASSIGN(queries.sets, repeat_prefill(engine, sequence, ids, request.max_query_bytes, cancel, &queries.study));
      break;
    }
    case QuerySource::self_study: {
      const auto progress = [&](double fraction) {
        if (on_progress) on_progress("self-study", fraction);
      };
      SH_ASSIGN(queries.sets, self_study(engine, sequence, ids, request.self_study, request.max_query_bytes, cancel, progress, &queries.study));
      break;
    }
  }
  queries.seconds = watch.seconds();
  return queries;
}

Result<CompactionReport> compact_sequence(Engine& engine, SequenceCache& sequence, std::span<const int32_t> ids, const QueryCapture* captured,
                                          const CompactionRequest& request, const std::atomic<bool>* cancel, const CompactionProgress& on_progress) {
  SH_ASSIGN(const ReferenceQueries queries, gather_reference_queries(engine, sequence, ids, captured, request, cancel, on_progress));
  return compact_sequence(engine, sequence, queries, request, cancel, on_progress);
}

Result<CompactionReport> compact_sequence(Engine& engine, SequenceCache& sequence, const ReferenceQueries& queries, const CompactionRequest& request,
                                          const std::atomic<bool>* cancel, const CompactionProgress& on_progress) {
  const Stopwatch total;
  const auto progress = [&](const char* stage, double fraction) {
    if (on_progress) on_progress(stage, fraction);
  };

  // Plan.
  SH_ASSIGN(const CompactionMethod method, method_of(request));
  SH_ASSIGN(const Region region, plan_region(sequence, method, request));
  const kv::CacheUsage before = sequence.usage();
  CompactionReport report{.method = request.method, .queries = queries.source, .capture_seconds = queries.seconds, .study = queries.study};
  report.n_logical = sequence.next_pos().value;
  report.n_region = region.end - region.begin;
  report.rows_before = before.n_physical;
  report.bytes_before = before.bytes;

  // Solve each (layer, KV head).
  const std::vector<HeadPlan> plans = decode_heads(engine, sequence, region);
  if (plans.empty()) return Error{ErrorKind::unsupported, "the model has no attention layer that can be compacted"};
  std::vector<HeadProblem> problems;
  for (const HeadPlan& plan : plans) {
    const auto& sets = queries.sets[static_cast<size_t>(plan.layer)];
    problems.push_back(problem_of(engine, plan, sets.empty() ? nullptr : &sets[static_cast<size_t>(plan.head)]));
  }
  const compaction::SolveContext context{&engine.thread_pool(), &engine.kernels(), cancel, [&](double fraction) { progress("solve", fraction); }};
  SH_ASSIGN(const compaction::Solution solution, compaction::solve(method, problems, limits_of(engine, sequence, plans, request), request.solve, context));
  report.select_seconds = solution.times.select_seconds;
  report.fit_seconds = solution.times.fit_seconds;
  summarise(report, solution);

  // Swap in: heads that were not touched keep their rows.
  progress("swap", 0);
  std::vector<std::vector<HeadRows>> rows(engine.kv_layout().layers.size());
  for (size_t l = 0; l < rows.size(); ++l)
    for (int32_t h = 0; h < engine.kv_layout().layers[l].n_heads; ++h)
      rows[l].push_back(engine.kv_layout().layers[l].window > 0 ? sequence.copy_head(static_cast<int32_t>(l), h) : HeadRows{});
  engine.thread_pool().run(static_cast<int64_t>(plans.size()), [&](int64_t i, int) {
    const HeadPlan& plan = plans[static_cast<size_t>(i)];
    rows[static_cast<size_t>(plan.layer)][static_cast<size_t>(plan.head)] = assemble(engine, sequence, plan, solution.heads[static_cast<size_t>(i)]);
  });
  SH_RETURN_IF_ERROR(sequence.replace(rows, std::max(region.end, sequence.compacted_end())));

  const kv::CacheUsage after = sequence.usage();
  report.rows_after = after.n_physical;
  report.bytes_after = after.bytes;
  report.real_ratio = static_cast<double>(before.bytes) / static_cast<double>(std::max<int64_t>(1, after.bytes));
  double region_before = 0, region_after = 0;
  for (size_t i = 0; i < plans.size(); ++i) {
    region_before += static_cast<double>(plans[i].n_region());
    region_after += static_cast<double>(report.head_rows[i]);
  }
  report.region_ratio = region_before / std::max(1.0, region_after);
  report.total_seconds = queries.seconds + total.seconds();
  progress("done", 1);
  return report;
}

}  // namespace sh::engine
