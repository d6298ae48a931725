// SPDX-License-Identifier: MIT
#include "engine/on_policy.h"

#include <algorithm>
#include <optional>

#include "engine/token_batch.h"

namespace sh::engine {

namespace {

using compaction::CompactHead;
using compaction::CompactionMethod;
using kv::SequenceCache;

// The activations of all replayed tokens are held at once: at 4096 wide and 16 bytes an element over a forward's
// buffers, half a gigabyte.
constexpr int64_t kMaxReplayTokens = 8192;

/// Conversations of the replay, each on a fork of its own, as many as the limit allows, evenly spread.
struct Conversations {
  std::vector<SequenceCache> caches;
  std::vector<std::vector<int32_t>> ids;

  /// Whose token each of the forward is: its conversation, or each for itself.
  std::vector<int32_t> askers(bool of_conversations) const {
    std::vector<int32_t> askers;
    for (size_t i = 0; i < ids.size(); ++i)
      for (size_t token = 0; token < ids[i].size(); ++token)
        askers.push_back(static_cast<int32_t>(of_conversations ? i : askers.size()));
    return askers;
  }
};
Conversations conversations_of(const SequenceCache& sequence, const Replay& replay) {
  int64_t n_tokens = 0;
  for (const Replay::Part& part : replay.parts)
    n_tokens += static_cast<int64_t>(replay.opening.size() + part.ids.size());
  const size_t every = static_cast<size_t>((n_tokens + kMaxReplayTokens - 1) / std::max(kMaxReplayTokens, int64_t{1}));
  Conversations out;
  int64_t n_taken = 0;
  for (size_t i = 0; i < replay.parts.size(); i += std::max<size_t>(1, every)) {
    std::vector<int32_t> ids = replay.opening;
    ids.insert(ids.end(), replay.parts[i].ids.begin(), replay.parts[i].ids.end());
    n_taken += static_cast<int64_t>(ids.size());
    if (n_taken > kMaxReplayTokens && !out.ids.empty()) break;
    out.caches.push_back(sequence.fork());
    out.caches.back().seal();
    out.ids.push_back(std::move(ids));
  }
  return out;
}

/// Solves each layer when attention reaches it and exchanges the layer under the forward that runs.
class LayerwiseTap final : public ops::AttentionTap {
 public:
  LayerwiseTap(Executor& executor, const CompactionMethod& method, const LayerwiseInput& input,
               const compaction::SolveOptions& options, const compaction::SolveContext& context,
               std::span<const kv::Pos> pos, std::vector<int32_t> askers, std::span<SequenceCache> conversations,
               SequenceCache& compacted)
      : executor_(executor),
        method_(method),
        input_(input),
        options_(options),
        context_(context),
        pos_(pos),
        askers_(std::move(askers)),
        conversations_(conversations),
        compacted_(compacted),
        sets_(executor.engine().kv_layout().layers.size()),
        heads_(input.plans.size()) {}

  bool wants_layer(int32_t layer) const override {
    return !error_ && std::any_of(input_.plans.begin(), input_.plans.end(),
                                  [&](const HeadPlan& plan) { return plan.layer == layer; });
  }

  bool on_attention(int32_t layer, MatView<const float> queries, MatView<const float> lse,
                    MatView<const float> out) override {
    const auto done = compact_layer(layer, queries, lse, out);
    if (!done.ok()) error_ = done.error();
    return done.ok();
  }

  Result<std::vector<CompactHead>> take() {
    if (error_) return *error_;
    return std::move(heads_);
  }

 private:
  Result<void> compact_layer(int32_t layer, MatView<const float> queries, MatView<const float> lse,
                             MatView<const float> out) {
    const auto begin = std::find_if(input_.plans.begin(), input_.plans.end(),
                                    [&](const HeadPlan& plan) { return plan.layer == layer; });
    const auto end = std::find_if(begin, input_.plans.end(), [&](const HeadPlan& plan) { return plan.layer != layer; });
    const auto first = static_cast<size_t>(begin - input_.plans.begin()), n = static_cast<size_t>(end - begin);
    const std::span<const HeadPlan> plans = input_.plans.subspan(first, n);
    sets_[static_cast<size_t>(layer)] = pool_groups(
        executor_.engine().kv_layout().layers[static_cast<size_t>(layer)],
        executor_.engine().model().n_query_heads(layer), queries.rows, [&](int64_t token) {
          return TokenQueries{queries.row(token), lse.row(token), out.row(token),
                              pos_[static_cast<size_t>(token)].value, askers_[static_cast<size_t>(token)]};
        });
    const CacheProblems problems(executor_.engine(), *input_.sequence, plans, sets_, false);
    std::vector<std::vector<int32_t>> rows;
    std::vector<std::vector<float>> scores(input_.scores.begin() + static_cast<std::ptrdiff_t>(first),
                                           input_.scores.begin() + static_cast<std::ptrdiff_t>(first + n));
    if (!input_.given_rows.empty()) {
      rows.assign(input_.given_rows.begin() + static_cast<std::ptrdiff_t>(first),
                  input_.given_rows.begin() + static_cast<std::ptrdiff_t>(first + n));
    } else {
      // A row that some earlier query needed stays wanted: the replay is a part of what was asked.
      SH_ASSIGN(const auto fresh, compaction::score_heads(method_, problems, options_, context_));
      for (size_t i = 0; i < n; ++i)
        for (size_t row = 0; row < fresh.rows[i].size(); ++row)
          scores[i][row] = std::max(scores[i][row], fresh.rows[i][row]);
      SH_ASSIGN(rows, compaction::select_heads(method_, problems, scores, input_.budget.subspan(first, n), options_,
                                               context_));
    }
    SH_ASSIGN(std::vector<CompactHead> solved,
              compaction::fit_heads(method_, problems, scores, {}, rows, options_, context_));
    std::vector<kv::HeadRows> layer_rows;
    assemble_layer(executor_.engine(), executor_.thread_pool(), *input_.sequence, plans, solved, layer_rows);
    std::move(solved.begin(), solved.end(), heads_.begin() + static_cast<std::ptrdiff_t>(first));
    SH_RETURN_IF_ERROR(compacted_.replace_layer(executor_.thread_pool(), layer, layer_rows));
    for (SequenceCache& conversation : conversations_)
      SH_RETURN_IF_ERROR(conversation.splice_layer(layer, compacted_, input_.sequence->next_pos()));
    sets_[static_cast<size_t>(layer)].clear();
    return {};
  }

  Executor& executor_;
  const CompactionMethod& method_;
  const LayerwiseInput& input_;
  const compaction::SolveOptions& options_;
  const compaction::SolveContext& context_;
  std::span<const kv::Pos> pos_;
  std::vector<int32_t> askers_;
  std::span<SequenceCache> conversations_;
  SequenceCache& compacted_;
  QuerySets sets_;  // of the layer that is being solved
  std::vector<CompactHead> heads_;
  std::optional<Error> error_;
};

}  // namespace

Result<std::vector<CompactHead>> solve_layer_by_layer(Executor& executor, const CompactionMethod& method,
                                                      const LayerwiseInput& input,
                                                      const compaction::SolveOptions& options,
                                                      const compaction::SolveContext& context) {
  if (input.replay->parts.empty())
    return Error{ErrorKind::invalid_argument,
                 "on-policy compaction feeds the reference conversations again, and these queries have none; use "
                 "queries=self_study or queries=repeat_prefill"};
  Conversations conversations = conversations_of(*input.sequence, *input.replay);
  TokenBatch batch;
  for (size_t i = 0; i < conversations.caches.size(); ++i)
    batch.add(conversations.caches[i], conversations.ids[i], false);
  SequenceCache compacted = input.sequence->fork();
  LayerwiseTap tap(executor, method, input, options, context, batch.pos,
                   conversations.askers(method.queries.has(compaction::QuerySource::self_study)),
                   conversations.caches, compacted);
  Mat<float> no_logits(0, executor.engine().model().info().n_vocab);
  SH_RETURN_IF_ERROR(executor.forward(batch.view(), no_logits.view(), &tap));
  return tap.take();
}

}  // namespace sh::engine
