// SPDX-License-Identifier: MIT
#include "engine/region_plan.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <memory>

namespace sh::engine {

namespace {

using compaction::CompactHead;
using compaction::CompactionMethod;
using compaction::HeadProblem;
using kv::HeadRows;
using kv::Pos;
using kv::SequenceCache;

// Of the keys that stand in for queries, at most so many: more do not make a surrogate true.
constexpr int64_t kMaxSurrogateQueries = 512;

}  // namespace

std::vector<Span> merged(std::vector<Span> spans, int64_t begin, int64_t end) {
  std::sort(spans.begin(), spans.end(), [](const Span& a, const Span& b) { return a.begin < b.begin; });
  std::vector<Span> out;
  for (Span span : spans) {
    span = {std::max(span.begin, begin), std::min(span.end, end)};
    if (span.begin >= span.end) continue;
    if (!out.empty() && span.begin <= out.back().end)
      out.back().end = std::max(out.back().end, span.end);
    else
      out.push_back(span);
  }
  return out;
}

bool Region::contains(Pos pos) const {
  if (pos < begin || pos >= end) return false;
  return std::none_of(pinned.begin(), pinned.end(),
                      [&](const Span& span) { return pos.value >= span.begin && pos.value < span.end; });
}

std::vector<Span> Region::spans() const {
  std::vector<Span> out;
  int64_t at = begin.value;
  for (const Span& span : pinned) {
    if (span.begin > at) out.push_back({at, span.begin});
    at = span.end;
  }
  if (at < end.value) out.push_back({at, end.value});
  return out;
}

int64_t Region::n_tokens() const {
  int64_t n = 0;
  for (const Span& span : spans()) n += span.end - span.begin;
  return n;
}

Result<CompactionMethod> method_of(const CompactionRequest& request) {
  SH_ASSIGN(const CompactionMethod* preset, compaction::find_method(request.method));
  CompactionMethod method = *preset;
  if (request.queries) method.queries = *request.queries;
  if (request.score) method.score = *request.score;
  if (request.weighting) method.weighting = *request.weighting;
  if (request.selection) method.selection = *request.selection;
  if (request.fit) method.fit = *request.fit;
  if (request.budget) method.budget = *request.budget;
  if (request.schedule) method.schedule = *request.schedule;
  if (request.reread_fraction) {
    method.reread_fraction = *request.reread_fraction;
    method.max_reread_tokens = 0;
  }
  return method;
}

Result<Region> plan_region(const SequenceCache& sequence, const CompactionMethod& method,
                           const CompactionRequest& request) {
  const auto refuse = [](const std::string& message) { return Error{ErrorKind::invalid_argument, message}; };
  const int64_t n_positions = sequence.next_pos().value;
  SH_RETURN_IF_ERROR(check_request(request));
  if (n_positions == 0) return refuse("the conversation is empty: there is nothing to compact");
  if (request.n_protected_prefix < 0 || request.n_protected_prefix > n_positions)
    return refuse(fmt::format("{}: expected 0 to {} (the positions of the conversation), got {}",
                              request.prefix_name, n_positions, request.n_protected_prefix));
  if (request.n_live_suffix < 0 || request.n_live_suffix > n_positions)
    return refuse(fmt::format("{}: expected 0 to {} (the positions of the conversation), got {}",
                              request.suffix_name, n_positions, request.n_live_suffix));
  for (const Span& span : request.pinned)
    if (span.begin < 0 || span.begin > span.end || span.end > n_positions)
      return refuse(
          fmt::format("pinned: expected spans [begin, end) within 0 to {} (the positions of the "
                      "conversation), got [{}, {})",
                      n_positions, span.begin, span.end));
  const int64_t begin = std::max<int64_t>(request.n_protected_prefix, method.n_sinks);
  const int64_t end = n_positions - std::max<int64_t>(request.n_live_suffix, method.n_recent);
  Region region{Pos(std::min(begin, end)), Pos(std::max(end, int64_t{0})), merged(request.pinned, begin, end)};
  if (end - begin < 2 || region.n_tokens() < 2) {
    const int64_t first = std::min(begin, n_positions), last = std::clamp(end, first, n_positions);
    return refuse(fmt::format(
        "nothing to compact: of {} positions {} at the start, {} at the end and {} in pinned "
        "spans stay as they are",
        n_positions, first, n_positions - last, std::max<int64_t>(0, last - first - region.n_tokens())));
  }
  return region;
}

std::vector<HeadPlan> plan_heads(const SequenceCache& sequence, const Region& region, bool with_window_layers) {
  std::vector<HeadPlan> plans;
  const auto& layers = sequence.pool().layout().layers;
  for (size_t l = 0; l < layers.size(); ++l) {
    if (layers[l].window > 0 && !with_window_layers) continue;
    Pos first = region.begin;
    if (layers[l].window > 0)
      first = std::max(first, sequence.next_pos() + (kWindowHorizon - layers[l].window));
    for (int32_t h = 0; h < layers[l].n_heads; ++h) {
      HeadPlan plan{.layer = static_cast<int32_t>(l), .head = h};
      const std::vector<Pos> pos = sequence.positions(plan.layer, h);
      plan.rows.reserve(pos.size());
      for (size_t row = 0; row < pos.size(); ++row)
        if (pos[row] >= first && region.contains(pos[row])) plan.rows.push_back(static_cast<int32_t>(row));
      plan.n_fixed = static_cast<int64_t>(pos.size() - plan.rows.size());
      plans.push_back(std::move(plan));
    }
  }
  return plans;
}

namespace {

/// Keeps the queries before position `end`: the others no longer see every row.
void leave_out_blind_queries(int32_t end, HeadProblem& problem, compaction::HeadStorage& storage) {
  std::vector<int64_t> seeing;
  for (int64_t i = 0; i < problem.queries.rows; ++i)
    if (problem.query_pos[static_cast<size_t>(i)] < end) seeing.push_back(i);
  if (std::ssize(seeing) == problem.queries.rows) return;
  const int64_t n = std::ssize(seeing);
  storage.queries = Mat<float>(n, problem.queries.cols);
  storage.out = Mat<float>(n, problem.out.cols);
  storage.lse.clear();
  storage.query_pos.clear();
  storage.asker.clear();
  for (int64_t i = 0; i < n; ++i) {
    const int64_t from = seeing[static_cast<size_t>(i)];
    std::copy_n(problem.queries.row(from), problem.queries.cols, storage.queries.row(i));
    std::copy_n(problem.out.row(from), problem.out.cols, storage.out.row(i));
    storage.lse.push_back(problem.lse[static_cast<size_t>(from)]);
    storage.query_pos.push_back(problem.query_pos[static_cast<size_t>(from)]);
    storage.asker.push_back(problem.asker[static_cast<size_t>(from)]);
  }
  problem.queries = storage.queries.view();
  problem.out = storage.out.view();
  problem.lse = storage.lse;
  problem.query_pos = storage.query_pos;
  problem.asker = storage.asker;
}

}  // namespace

CacheProblems::CacheProblems(const Engine& engine, const SequenceCache& sequence, std::span<const HeadPlan> plans,
                             const QuerySets& sets, bool cache_keys)
    : engine_(engine), sequence_(sequence), plans_(plans), sets_(sets), cache_keys_(cache_keys) {}

namespace {

/// Rows of a cache, decoded into the storage's matrices.
class CacheRowReader final : public compaction::RowReader {
 public:
  CacheRowReader(const kernels::KernelSet& kernels, const SequenceCache& sequence, const HeadPlan& plan,
                 compaction::HeadStorage& storage)
      : kernels_(kernels), sequence_(sequence), plan_(plan), storage_(storage) {}
  MatView<const float> keys(int64_t begin, int64_t end) override {
    sequence_.decode_keys(kernels_, plan_.layer, plan_.head, rows(begin, end), storage_.keys);
    return storage_.keys.view();
  }
  MatView<const float> values(int64_t begin, int64_t end) override {
    sequence_.decode_values(kernels_, plan_.layer, plan_.head, rows(begin, end), storage_.values);
    return storage_.values.view();
  }

 private:
  std::span<const int32_t> rows(int64_t begin, int64_t end) const {
    return std::span(plan_.rows).subspan(static_cast<size_t>(begin), static_cast<size_t>(end - begin));
  }
  const kernels::KernelSet& kernels_;
  const SequenceCache& sequence_;
  const HeadPlan& plan_;
  compaction::HeadStorage& storage_;
};

}  // namespace

HeadProblem CacheProblems::load(int64_t head, compaction::HeadStorage& storage) const {
  const HeadPlan& plan = plans_[static_cast<size_t>(head)];
  return decoded(plan, plan.rows, storage);
}

HeadProblem CacheProblems::load_to_stream(int64_t head, compaction::HeadStorage& storage) const {
  if (cache_keys_) return load(head, storage);
  const HeadPlan& plan = plans_[static_cast<size_t>(head)];
  HeadProblem problem = problem_of(plan, plan.rows, storage);
  const kv::LayerLayout& layer = engine_.kv_layout().layers[static_cast<size_t>(plan.layer)];
  problem.keys = {nullptr, std::ssize(plan.rows), layer.key_width};
  problem.values = {nullptr, std::ssize(plan.rows), layer.value_width};
  storage.reader = std::make_unique<CacheRowReader>(engine_.kernels(), sequence_, plan, storage);
  problem.reader = storage.reader.get();
  return problem;
}

HeadProblem CacheProblems::load_rows(int64_t head, std::span<const int32_t> rows,
                                     compaction::HeadStorage& storage) const {
  const HeadPlan& plan = plans_[static_cast<size_t>(head)];
  std::vector<int32_t> rows_of_head;
  for (const int32_t row : rows) rows_of_head.push_back(plan.rows[static_cast<size_t>(row)]);
  return decoded(plan, rows_of_head, storage);
}

HeadProblem CacheProblems::decoded(const HeadPlan& plan, std::span<const int32_t> rows,
                                   compaction::HeadStorage& storage) const {
  HeadProblem problem = problem_of(plan, rows, storage);
  sequence_.decode_keys(engine_.kernels(), plan.layer, plan.head, rows, storage.keys);
  sequence_.decode_values(engine_.kernels(), plan.layer, plan.head, rows, storage.values);
  problem.keys = storage.keys.view();
  problem.values = storage.values.view();
  if (problem.queries.rows == 0 && cache_keys_ && storage.keys.rows > 0) {
    const int64_t n = std::min(storage.keys.rows, kMaxSurrogateQueries);
    storage.queries = Mat<float>(n, storage.keys.cols);
    for (int64_t i = 0; i < n; ++i)
      std::copy_n(storage.keys.row(i * storage.keys.rows / n), storage.keys.cols, storage.queries.row(i));
    problem.queries = storage.queries.view();
  }
  return problem;
}

HeadProblem CacheProblems::problem_of(const HeadPlan& plan, std::span<const int32_t> rows,
                                      compaction::HeadStorage& storage) const {
  sequence_.read_annotations(plan.layer, plan.head, rows, storage.bias, storage.pos);
  HeadProblem problem;
  problem.layer = plan.layer;
  problem.head = plan.head;
  problem.bias = storage.bias;
  problem.pos = storage.pos;
  problem.n_fixed_rows = plan.n_fixed;
  problem.scale = engine_.model().attention_scale(plan.layer);
  const auto& layer_sets = sets_[static_cast<size_t>(plan.layer)];
  if (!layer_sets.empty() && layer_sets[static_cast<size_t>(plan.head)].queries.rows > 0) {
    const QuerySet& set = layer_sets[static_cast<size_t>(plan.head)];
    problem.queries = set.queries.view();
    problem.query_pos = set.pos;
    problem.asker = set.asker;
    problem.lse = set.lse;
    problem.out = set.out.view();
    const int32_t window = sequence_.pool().layout().layers[static_cast<size_t>(plan.layer)].window;
    if (window > 0 && !plan.rows.empty()) {
      // Of the whole region, whichever of its rows are loaded: the queries of a head stay the same.
      const std::vector<Pos> pos = sequence_.positions(plan.layer, plan.head);
      const auto first = static_cast<size_t>(plan.rows.front());
      leave_out_blind_queries(static_cast<int32_t>(pos[first].value) + window, problem, storage);
    }
  }
  return problem;
}

namespace {

/// One head of assemble_layer().
void assemble(const Engine& engine, const SequenceCache& sequence, const HeadPlan& plan,
              const CompactHead& compact, HeadRows& rows) {
  const kv::KvLayout& layout = engine.kv_layout();
  const kv::LayerLayout& layer = layout.layers[static_cast<size_t>(plan.layer)];
  const auto key_bytes = static_cast<size_t>(row_bytes(layout.key_type, layer.key_width));
  const auto value_bytes = static_cast<size_t>(row_bytes(layout.value_type, layer.value_width));
  kv::BlockPool& pool = sequence.pool();
  const size_t n_rows = static_cast<size_t>(plan.n_fixed) + compact.source_rows.size();
  rows.keys.resize(n_rows * key_bytes);
  rows.values.resize(n_rows * value_bytes);
  rows.bias.clear();
  rows.pos.clear();
  size_t next_region = 0, next_kept = 0;
  int32_t first = 0;  // row of the head where the block begins
  for (const kv::BlockEntry& entry : sequence.head(plan.layer, plan.head).blocks) {
    for (int32_t r = 0; r < entry.n_rows; ++r) {
      const bool is_region = next_region < plan.rows.size() && plan.rows[next_region] == first + r;
      const bool is_kept = is_region && next_kept < compact.source_rows.size() &&
                           static_cast<size_t>(compact.source_rows[next_kept]) == next_region;
      if (is_region) ++next_region;
      if (is_region && !is_kept) continue;
      const size_t to = rows.pos.size(), from = static_cast<size_t>(r);
      std::byte* value = rows.values.data() + to * value_bytes;
      std::memcpy(rows.keys.data() + to * key_bytes, pool.keys(entry.block) + from * key_bytes, key_bytes);
      if (is_kept && compact.values.rows > 0)
        engine.kernels().encode_row(layout.value_type, compact.values.row(static_cast<int64_t>(next_kept)),
                                    layer.value_width, value);
      else
        std::memcpy(value, pool.values(entry.block) + from * value_bytes, value_bytes);
      rows.bias.push_back(is_kept ? compact.bias[next_kept] : kv::bias_of_row(pool, entry, r));
      rows.pos.push_back(kv::pos_of_row(pool, entry, r));
      if (is_kept) ++next_kept;
    }
    first += entry.n_rows;
  }
}

}  // namespace

void assemble_layer(const Engine& engine, ThreadPool& pool, const SequenceCache& sequence,
                    std::span<const HeadPlan> plans, std::span<const CompactHead> compact,
                    std::vector<HeadRows>& rows) {
  rows.resize(plans.size());
  pool.run(std::ssize(plans), [&](int64_t head, int) {
    const auto i = static_cast<size_t>(head);
    assemble(engine, sequence, plans[i], compact[i], rows[i]);
  });
}

namespace {

/// Bytes of the blocks of a layer, as kv::CacheUsage counts them.
double layer_bytes(const SequenceCache& sequence, int32_t layer) {
  int64_t bytes = 0;
  for (int32_t h = 0; h < sequence.pool().layout().layers[static_cast<size_t>(layer)].n_heads; ++h)
    for (const kv::BlockEntry& entry : sequence.head(layer, h).blocks)
      bytes += sequence.pool().block_bytes(entry.block.arena) +
               (entry.is_annotated ? kv::BlockPool::kAnnotationBytes : 0);
  return static_cast<double>(bytes);
}

}  // namespace

compaction::BudgetLimits limits_of(const Engine& engine, const SequenceCache& sequence,
                                   std::span<const HeadPlan> plans, const CompactionRequest& request) {
  compaction::BudgetLimits limits{.block_rows = kv::kBlockRows};
  int64_t n_region_rows = 0;
  for (const HeadPlan& plan : plans) n_region_rows += static_cast<int64_t>(plan.rows.size());
  const auto n_heads = static_cast<int64_t>(plans.size());
  if (request.target_rows > 0) {
    limits.max_region_rows = std::min(request.target_rows, n_region_rows) * n_heads;
  } else if (request.of_whole_cache && request.ratio > 1) {  // at 1 every row stays, and so do its bytes
    // A compacted block costs its annotation too. Layers may differ in row size: count in the mean block.
    const kv::BlockPool& pool = sequence.pool();
    std::vector<bool> is_planned(engine.kv_layout().layers.size(), false);
    double block_bytes = 0, fixed_bytes = 0;
    for (const HeadPlan& plan : plans) {
      is_planned[static_cast<size_t>(plan.layer)] = true;
      block_bytes += static_cast<double>(pool.block_bytes(pool.arena_of_layer(plan.layer)) +
                                         kv::BlockPool::kAnnotationBytes);
    }
    for (size_t l = 0; l < is_planned.size(); ++l)
      if (!is_planned[l]) fixed_bytes += layer_bytes(sequence, static_cast<int32_t>(l));
    block_bytes /= static_cast<double>(n_heads);
    const double bytes = static_cast<double>(sequence.usage().bytes) / request.ratio - fixed_bytes;
    limits.max_blocks = static_cast<int64_t>(std::max(0.0, bytes) / block_bytes);
  } else {
    const double mean_rows = static_cast<double>(n_region_rows) / static_cast<double>(n_heads);
    limits.max_region_rows =
        std::max<int64_t>(2, static_cast<int64_t>(std::ceil(mean_rows / request.ratio))) * n_heads;
  }
  return limits;
}

std::string profile_key(const Engine& engine) {
  std::string key = engine.model().info().arch;
  for (const kv::LayerLayout& layer : engine.kv_layout().layers)
    key += fmt::format("/{}x{}+{}", layer.n_heads, layer.key_width, layer.value_width);
  return key;
}

}  // namespace sh::engine
