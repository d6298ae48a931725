// SPDX-License-Identifier: MIT
#include "engine/compact_sequence.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <optional>

#include "base/clock.h"
#include "compaction/error_curve.h"
#include "engine/on_policy.h"
#include "engine/reference_steps.h"
#include "engine/region_plan.h"
#include "engine/replay_check.h"
#include "engine/verdict_scale.h"

namespace sh::engine {

namespace {

using compaction::BudgetLimits;
using compaction::BudgetPolicy;
using compaction::CompactHead;
using compaction::CompactionMethod;
using compaction::QuerySource;
using compaction::Schedule;
using kv::HeadRows;
using kv::Pos;
using kv::SequenceCache;

// Sizes tried for a KL target: from this ratio by factors of two until it is bracketed, then halves of the bracket.
constexpr double kFirstTrialRatio = 8, kLowestTrialRatio = 1.25, kHighestTrialRatio = 1024;
constexpr int kBracketHalvings = 3;

/// The profile that a request with budget=profile is served by, its own before the engine's; null for other
/// budgets. Errors: invalid_argument when there is none.
Result<const compaction::HeadProfile*> profile_for(const Engine& engine, const CompactionMethod& method,
                                                   const CompactionRequest& request) {
  if (method.budget != BudgetPolicy::profile) return nullptr;
  if (request.profile) return &*request.profile;
  if (engine.head_profile()) return &*engine.head_profile();
  return Error{ErrorKind::invalid_argument,
               "budget=profile needs a head profile of this model, and none is loaded: measure one with 'shorthand "
               "profile' and start with --compact-profile FILE, or use another budget"};
}

/// One compaction from plan to swap. Nothing changes before the swap.
class Compaction {
 public:
  Compaction(Executor& executor, SequenceCache& sequence, const ReferenceQueries& queries,
             const CompactionRequest& request, const std::atomic<bool>* cancel, const CompactionProgress& on_progress)
      : executor_(executor),
        engine_(executor.engine()),
        sequence_(sequence),
        queries_(queries),
        request_(request),
        cancel_(cancel),
        on_progress_(on_progress) {}

  Result<CompactionReport> run() {
    SH_RETURN_IF_ERROR(plan());
    SH_RETURN_IF_ERROR(score());
    SH_RETURN_IF_ERROR(record_replay());
    if (request_.target.kl > 0)
      SH_RETURN_IF_ERROR(find_size_for_kl());
    else
      SH_RETURN_IF_ERROR(try_limits(limits_of(engine_, sequence_, plans_, request_)));
    SH_RETURN_IF_ERROR(stay_within_max_kl());
    SH_RETURN_IF_ERROR(swap());
    return report();
  }

 private:
  void progress(const char* stage, double fraction) const {
    if (on_progress_) on_progress_(stage, fraction);
  }
  compaction::SolveContext solve_context() {
    return {&executor_.thread_pool(), &executor_.kernels(), cancel_,
            [this](double fraction) { progress("solve", fraction); }, &storage_};
  }

  Result<void> plan() {
    SH_ASSIGN(method_, method_of(request_));
    SH_ASSIGN(region_, plan_region(sequence_, method_, request_));
    plans_ = plan_heads(sequence_, region_, request_.compacts_window_layers);
    if (plans_.empty())
      return Error{ErrorKind::unsupported, "the model has no attention layer that can be compacted"};
    if (request_.target.head_error > 0 && queries_.source == QuerySource::none)
      return Error{ErrorKind::invalid_argument,
                   fmt::format("target head_error: '{}' has no reference queries to measure an error with; set "
                               "queries=..., or use a target kl or another method",
                               request_.method)};
    before_ = sequence_.usage();
    problems_.emplace(engine_, sequence_, plans_, queries_.sets, queries_.source.has(QuerySource::cache_keys));
    return {};
  }

  Result<void> score() {
    const Stopwatch watch;
    SH_ASSIGN(scores_, compaction::score_heads(method_, *problems_, request_.solve, solve_context()));
    if (method_.budget == BudgetPolicy::sensitivity || request_.target.head_error > 0) {
      SH_ASSIGN(curves_,
                compaction::measure_curves(method_, *problems_, scores_.rows, request_.solve, solve_context()));
    }
    SH_ASSIGN(const compaction::HeadProfile* profile, profile_for(engine_, method_, request_));
    if (profile != nullptr) {
      std::vector<compaction::HeadId> heads;
      for (const HeadPlan& plan : plans_) heads.push_back({plan.layer, plan.head});
      SH_ASSIGN(shares_, compaction::shares_for(*profile, profile_key(engine_), heads));
    }
    select_seconds_ += watch.seconds();
    return {};
  }

  /// Keeps what the uncompacted cache predicts on the replay, if anybody wants to know. Without memory for it only
  /// a limit or target on it is refused.
  Result<void> record_replay() {
    const int64_t n_compared = n_replay_tokens(method_, request_, region_.n_tokens());
    if (n_compared == 0) return {};
    const Stopwatch watch;
    progress("check", 0);
    const auto refused = [&](const Error& error) -> Result<void> {
      if (must_check() || error.kind == ErrorKind::cancelled) return error;
      return {};
    };
    // Rows that were chosen and fitted for a few of the text's tokens predict those, whatever else was lost (of 31
    // answers `solver` kept 5 at 8x and was called good). Who asks for the quality is told by other tokens.
    const bool asks_others = queries_.is_sample;
    if (!asks_others && queries_.reference && queries_.reference->n_wanted() >= n_compared) {
      reference_ = &*queries_.reference;
    } else {
      const Replay* replay = &queries_.replay;
      Replay text;
      if (asks_others || replay->parts.empty()) {
        // Of a multiple of twice as many pieces none has its middle where one of the sample has it.
        const int64_t n_apart = 2 * kSamplePiece * std::max<int64_t>(1, std::ssize(replay->parts));
        const int64_t n_tokens = asks_others ? (n_compared + n_apart - 1) / n_apart * n_apart : n_compared;
        auto made = text_replay(engine_, queries_.ids, {region_.begin.value, region_.end.value}, n_tokens);
        if (!made.ok()) return refused(made.error());
        text = std::move(*made);
        replay = &text;
      }
      auto recorded = ReplayReference::record(executor_, sequence_, *replay, n_compared, kMaxReplayBytes, cancel_);
      if (!recorded.ok()) return refused(recorded.error());
      reference_ = &own_reference_.emplace(std::move(*recorded));
    }
    if (must_check() && reference_->n_tokens() == 0)
      return Error{
          ErrorKind::unmet,
          "target kl and max_kl: no token could be replayed, so that nothing is known of the quality; the "
          "cache is unchanged"};
    const Stopwatch scale_watch;
    const auto scale = engine_.verdict_scales().get(executor_, queries_.ids, cancel_);
    scale_seconds_ = scale_watch.seconds();
    if (!scale.ok()) {
      reference_ = nullptr;
      return refused(scale.error());
    }
    scale_ = *scale;
    check_seconds_ += watch.seconds();
    return {};
  }
  bool must_check() const { return request_.max_kl > 0 || request_.target.kl > 0; }

  ReplayKind replay_kind() const {
    return queries_.source.has(QuerySource::self_study) ? ReplayKind::answers : ReplayKind::repetition;
  }

  Result<std::vector<int64_t>> budget_under(const BudgetLimits& limits) const {
    std::vector<int64_t> fixed_rows;
    for (const HeadPlan& plan : plans_) fixed_rows.push_back(plan.n_fixed);
    return compaction::plan_budget({.policy = method_.budget,
                                    .scores = scores_.rows,
                                    .fixed_rows = fixed_rows,
                                    .curves = curves_,
                                    .shares = shares_,
                                    .limits = limits});
  }
  /// Rows to keep of each head: under the limits, or to the target of an error in its place. Also then two rows a
  /// head stay on average, as under any ratio: heads that hardly attend the region need none for their error.
  Result<std::vector<int64_t>> plan_rows(const BudgetLimits& limits) {
    if (!(request_.target.head_error > 0)) return budget_under(limits);
    SH_ASSIGN(std::vector<int64_t> budget,
              budget_under({.block_rows = kv::kBlockRows, .max_head_error = request_.target.head_error}));
    const int64_t n_least = 2 * std::ssize(budget);
    if (std::accumulate(budget.begin(), budget.end(), int64_t{0}) < n_least) {
      SH_ASSIGN(const std::vector<int64_t> least,
                budget_under({.max_region_rows = n_least, .block_rows = kv::kBlockRows}));
      for (size_t i = 0; i < budget.size(); ++i) budget[i] = std::max(budget[i], least[i]);
    }
    return budget;
  }

  /// Budget, rows, fit and a candidate cache under these limits, compared by the replay.
  Result<void> try_limits(const BudgetLimits& limits) {
    const Stopwatch select_watch;
    SH_ASSIGN(const std::vector<int64_t> budget, plan_rows(limits));
    std::vector<std::vector<int32_t>> rows;
    if (method_.schedule != Schedule::layer_sequential) {
      SH_ASSIGN(rows, compaction::select_heads(method_, *problems_, scores_.rows, budget, request_.solve,
                                               solve_context()));
    }
    select_seconds_ += select_watch.seconds();

    const Stopwatch fit_watch;
    if (method_.schedule == Schedule::on_policy || method_.schedule == Schedule::layer_sequential) {
      const LayerwiseInput input{&sequence_, &queries_.replay, plans_, scores_.rows, budget, rows};
      SH_ASSIGN(heads_, solve_layer_by_layer(executor_, method_, input, request_.solve, solve_context()));
    } else {
      SH_ASSIGN(heads_, compaction::fit_heads(method_, *problems_, scores_.rows, scores_.regions, rows,
                                              request_.solve, solve_context()));
    }
    fit_seconds_ += fit_watch.seconds();
    return check();
  }

  /// The heads of a layer, from the plan of its first on. Replaces `rows`.
  void assemble_from(size_t first_plan, std::vector<HeadRows>& rows) const {
    const auto layer = static_cast<size_t>(plans_[first_plan].layer);
    const auto n = static_cast<size_t>(engine_.kv_layout().layers[layer].n_heads);
    assemble_layer(engine_, executor_.thread_pool(), sequence_, std::span(plans_).subspan(first_plan, n),
                   std::span(heads_).subspan(first_plan, n), rows);
  }
  std::vector<std::vector<HeadRows>> assemble_all() const {
    const auto& layers = engine_.kv_layout().layers;
    std::vector<std::vector<HeadRows>> rows(layers.size());
    for (size_t i = 0; i < plans_.size(); i += rows[static_cast<size_t>(plans_[i].layer)].size())
      assemble_from(i, rows[static_cast<size_t>(plans_[i].layer)]);
    for (size_t l = 0; l < layers.size(); ++l)
      while (std::ssize(rows[l]) < layers[l].n_heads)
        rows[l].push_back(sequence_.copy_head(static_cast<int32_t>(l), static_cast<int32_t>(rows[l].size())));
    return rows;
  }
  /// The compacted cache beside the uncompacted one, layer by layer through the same memory.
  /// Errors: out_of_memory when the pool has no room for both.
  Result<SequenceCache> candidate() const {
    SequenceCache compacted = sequence_.fork();
    std::vector<HeadRows> rows;
    for (size_t i = 0; i < plans_.size(); i += rows.size()) {
      assemble_from(i, rows);
      SH_RETURN_IF_ERROR(compacted.replace_layer(executor_.thread_pool(), plans_[i].layer, rows));
    }
    SH_RETURN_IF_ERROR(compacted.mark_compacted(compacted_end()));
    return compacted;
  }
  Pos compacted_end() const { return std::max(region_.end, sequence_.compacted_end()); }

  /// Builds the candidate and compares it. A pool without room for both caches leaves no candidate: then only the
  /// swap in place is possible, and nothing is known of the quality.
  Result<void> check() {
    candidate_.reset();
    check_ = {};
    if (reference_ == nullptr) return {};
    const Stopwatch watch;
    progress("check", 0.5);
    const auto refused = [&](const Error& error) -> Result<void> {
      if (must_check() || error.kind != ErrorKind::out_of_memory) return error;
      return {};
    };
    Result<SequenceCache> compacted = candidate();
    if (!compacted.ok()) return refused(compacted.error());
    const auto check = reference_->compare(executor_, *compacted, cancel_);
    if (!check.ok()) return refused(check.error());
    check_ = *check;
    check_.is_of_compacted = before_.n_compactions > 0;
    check_.verdict = verdict_of(check_, scale_, replay_kind());
    candidate_.emplace(std::move(*compacted));
    check_seconds_ += watch.seconds();
    return {};
  }

  BudgetLimits limits_at(double ratio) const {
    CompactionRequest at = request_;
    at.ratio = ratio;
    at.target_rows = -1;
    return limits_of(engine_, sequence_, plans_, at);
  }

  /// The highest ratio whose KL stays within the target: bracketed by doubling, then halved in the logarithm.
  Result<void> find_size_for_kl() {
    double passes = 0, fails = 0;
    const auto try_ratio = [&](double ratio) -> Result<bool> {
      SH_RETURN_IF_ERROR(try_limits(limits_at(ratio)));
      const bool is_good = check_.kl_mean <= request_.target.kl;
      (is_good ? passes : fails) = ratio;
      return is_good;
    };
    for (double ratio = kFirstTrialRatio; passes == 0 || fails == 0;) {
      SH_ASSIGN(const bool is_good, try_ratio(ratio));
      if (is_good ? ratio >= kHighestTrialRatio : ratio <= kLowestTrialRatio) break;
      ratio = is_good ? ratio * 2 : std::max(kLowestTrialRatio, ratio / 2);
    }
    if (passes == 0)
      return Error{
          ErrorKind::unmet,
          fmt::format("target kl: even at a ratio of {} the replay has a mean KL of {:.3g}, above the {:.3g} "
                      "asked for; the cache is unchanged",
                      fails, check_.kl_mean, request_.target.kl)};
    for (int i = 0; i < kBracketHalvings && fails > 0; ++i)
      SH_RETURN_IF_ERROR(try_ratio(std::sqrt(passes * fails)));
    if (check_.kl_mean > request_.target.kl) SH_RETURN_IF_ERROR(try_limits(limits_at(passes)));
    return {};
  }

  /// Takes fits back, those that moved some query most first, and refuses what is still worse than the limit.
  Result<void> stay_within_max_kl() {
    if (!(request_.max_kl > 0) || check_.kl_mean <= request_.max_kl) return {};
    const double first_kl = check_.kl_mean;
    std::vector<size_t> fitted;
    for (size_t i = 0; i < heads_.size(); ++i)
      if (heads_[i].report.is_fit_accepted) fitted.push_back(i);
    std::stable_sort(fitted.begin(), fitted.end(), [&](size_t a, size_t b) {
      return heads_[a].report.worst_regret > heads_[b].report.worst_regret;
    });
    for (size_t n_dropped = 0; n_dropped < fitted.size();) {
      const size_t n_next = std::min(fitted.size(), n_dropped + (fitted.size() + 1) / 2);
      for (; n_dropped < n_next; ++n_dropped) drop_fit(fitted[n_dropped]);
      SH_RETURN_IF_ERROR(check());
      check_.n_fits_dropped = static_cast<int64_t>(n_dropped);
      if (check_.kl_mean <= request_.max_kl) return {};
    }
    const std::string without_fits = fitted.empty() ? "" : fmt::format(" ({:.3g} without fits)", check_.kl_mean);
    return Error{
        ErrorKind::unmet,
        fmt::format("max_kl: the compacted cache has a mean KL of {:.3g} on {} replayed tokens{}, above the "
                    "limit of {:.3g}; the cache is unchanged: ask for a lower ratio or another method",
                    first_kl, check_.n_tokens, without_fits, request_.max_kl)};
  }
  /// The same rows as they were.
  void drop_fit(size_t i) {
    CompactHead& head = heads_[i];
    compaction::HeadStorage storage;
    const compaction::HeadProblem kept = problems_->load_rows(static_cast<int64_t>(i), head.source_rows, storage);
    head.bias.assign(kept.bias.begin(), kept.bias.end());
    head.values = {};
    head.report.is_fit_accepted = false;
    head.report.heldout_fitted = head.report.heldout_plain;
    head.report.heldout_fitted_worst = head.report.heldout_plain_worst;
    head.report.log_mass_fitted = head.report.log_mass_plain;
    head.report.mean_log_mass_fitted = head.report.mean_log_mass_plain;
    head.report.worst_regret = 0;
  }

  /// Errors: invalid_argument (no row would be left of the heads that are compacted).
  Result<void> swap() {
    bool is_anything_left = false;
    for (size_t i = 0; i < plans_.size(); ++i)
      is_anything_left = is_anything_left || plans_[i].n_fixed > 0 || !heads_[i].source_rows.empty();
    if (!is_anything_left)
      return Error{ErrorKind::invalid_argument,
                   fmt::format("no block of the context would be left of {} tokens: ask for a lower ratio",
                               region_.n_tokens())};
    progress("swap", 0);
    if (!candidate_) {
      Result<SequenceCache> compacted = candidate();
      if (!compacted.ok() && compacted.error().kind == ErrorKind::out_of_memory)
        return sequence_.replace(assemble_all(), compacted_end());
      if (!compacted.ok()) return compacted.error();
      candidate_.emplace(std::move(*compacted));
    }
    sequence_ = std::move(*candidate_);
    return {};
  }

  CompactionReport report() {
    CompactionReport report{.method = request_.method, .queries = queries_.source};
    const kv::CacheUsage after = sequence_.usage();
    report.n_logical = static_cast<int64_t>(queries_.ids.size());
    report.n_region = region_.n_tokens();
    report.n_compactions = after.n_compactions;
    report.rows_before = before_.n_physical;
    for (const HeadPlan& plan : plans_)
      report.rows_fixed += static_cast<double>(plan.n_fixed) / static_cast<double>(plans_.size());
    report.aimed_rows = request_.aimed_rows;
    report.rows_after = after.n_physical;
    report.bytes_before = before_.bytes;
    report.bytes_after = after.bytes;
    report.real_ratio = static_cast<double>(before_.bytes) / static_cast<double>(std::max<int64_t>(1, after.bytes));
    report.capture_seconds = queries_.seconds;
    report.select_seconds = select_seconds_;
    report.fit_seconds = fit_seconds_;
    report.total_seconds = queries_.seconds + total_.seconds();
    report.study = queries_.study;
    report.check = check_;
    report.check.seconds = check_seconds_;
    report.check.scale_seconds = scale_seconds_;
    report.condensed = region_.spans();
    report.kept_verbatim = verbatim_spans();
    summarise_heads(report);
    progress("done", 1);
    return report;
  }

  /// What is not condensed now and was not before: tokens outside the region of which every head has a row that no
  /// earlier fit has moved. (A row of a fit without biases cannot be told from one that was never touched.)
  std::vector<Span> verbatim_spans() const {
    std::vector<int64_t> n_rows(static_cast<size_t>(sequence_.next_pos().value), 0);
    for (const HeadPlan& plan : plans_)
      for (const kv::BlockEntry& entry : sequence_.head(plan.layer, plan.head).blocks)
        for (int32_t row = 0; row < entry.n_rows; ++row) {
          const Pos pos = kv::pos_of_row(sequence_.pool(), entry, row);
          const bool is_moved = kv::bias_of_row(sequence_.pool(), entry, row) != 0.0f;
          if (!is_moved && !region_.contains(pos)) ++n_rows[static_cast<size_t>(pos.value)];
        }
    std::vector<Span> spans;
    for (int64_t pos = 0; pos < static_cast<int64_t>(n_rows.size()); ++pos) {
      if (n_rows[static_cast<size_t>(pos)] < static_cast<int64_t>(plans_.size())) continue;
      if (spans.empty() || spans.back().end != pos) spans.push_back({pos, pos});
      spans.back().end = pos + 1;
    }
    return spans;
  }

  void summarise_heads(CompactionReport& report) const {
    double plain = 0, fitted = 0, queries = 0, n_before = 0, n_after = 0;
    int64_t n_measured = 0, n_fallback = 0;
    for (size_t i = 0; i < plans_.size(); ++i) {
      const CompactHead& head = heads_[i];
      report.heads.push_back({plans_[i].layer, plans_[i].head, static_cast<int64_t>(plans_[i].rows.size()),
                              static_cast<int64_t>(head.source_rows.size()), head.report});
      n_before += static_cast<double>(plans_[i].rows.size());
      n_after += static_cast<double>(head.source_rows.size());
      queries += static_cast<double>(head.report.n_fit_queries + head.report.n_heldout_queries);
      if (head.report.n_heldout_queries == 0) continue;
      ++n_measured;
      plain += head.report.heldout_plain;
      fitted += head.report.heldout_fitted;
      n_fallback += head.report.is_fit_accepted ? 0 : 1;
    }
    for (size_t i = 0; i < curves_.size(); ++i) {
      const double error = compaction::p99_at(curves_[i], std::ssize(heads_[i].source_rows));
      report.head_error = i == 0 ? error : std::max(report.head_error, error);
    }
    constexpr double kNone = std::numeric_limits<double>::quiet_NaN();
    const auto measured = static_cast<double>(n_measured);
    report.region_ratio = n_before / std::max(1.0, n_after);
    report.n_queries = static_cast<int64_t>(queries / static_cast<double>(plans_.size()));
    report.heldout_plain = n_measured > 0 ? plain / measured : kNone;
    report.heldout_fitted = n_measured > 0 ? fitted / measured : kNone;
    report.fallback_heads = n_measured > 0 ? static_cast<double>(n_fallback) / measured : 0;
  }

  Executor& executor_;
  Engine& engine_;
  SequenceCache& sequence_;
  const ReferenceQueries& queries_;
  const CompactionRequest& request_;
  const std::atomic<bool>* cancel_;
  const CompactionProgress& on_progress_;
  Stopwatch total_;
  double select_seconds_ = 0, fit_seconds_ = 0, check_seconds_ = 0, scale_seconds_ = 0;

  CompactionMethod method_{};
  Region region_;
  std::vector<HeadPlan> plans_;
  kv::CacheUsage before_;
  std::optional<CacheProblems> problems_;
  compaction::HeadScores scores_;
  std::vector<compaction::ErrorCurve> curves_;
  std::vector<float> shares_;
  std::optional<ReplayReference> own_reference_;
  const ReplayReference* reference_ = nullptr;  // own, or that of the queries
  VerdictScale scale_;
  std::vector<compaction::HeadStorage> storage_;
  std::vector<CompactHead> heads_;
  std::optional<SequenceCache> candidate_;
  ReplayCheck check_;
};

}  // namespace

Result<CompactionReport> compact_sequence(Executor& executor, SequenceCache& sequence, std::span<const int32_t> ids,
                                          const QueryCapture* captured, const CompactionRequest& request,
                                          const std::atomic<bool>* cancel, const CompactionProgress& on_progress) {
  SH_ASSIGN(const CompactionMethod method, method_of(request));
  SH_RETURN_IF_ERROR(profile_for(executor.engine(), method, request));  // before the long part
  SH_ASSIGN(const ReferenceQueries queries,
            gather_reference_queries(executor, sequence, ids, captured, request, cancel, on_progress));
  return Compaction(executor, sequence, queries, request, cancel, on_progress).run();
}

Result<CompactionReport> compact_sequence(Executor& executor, SequenceCache& sequence,
                                          const ReferenceQueries& queries, const CompactionRequest& request,
                                          const std::atomic<bool>* cancel, const CompactionProgress& on_progress) {
  return Compaction(executor, sequence, queries, request, cancel, on_progress).run();
}

}  // namespace sh::engine
