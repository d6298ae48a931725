// SPDX-License-Identifier: MIT
#include "engine/conversation.h"

#include <fmt/format.h>

#include <algorithm>
#include <utility>

#include "base/log.h"
#include "engine/rebase.h"
#include "engine/region_plan.h"

namespace sh::engine {

using kv::Pos;

namespace {

// Positions are given anew once this share of the trained range is used: re-basing loses a little each time, so
// rarely and by much (scribe, f16: a KL of 8e-7 after one, 1.5e-4 after 16). The compacted part is then squeezed to
// a quarter: of 25 answers about a text 4000 tokens past the trained range, 13 are right uncompacted, 15 compacted,
// 21 squeezed to a half and 23 to a quarter; of 30 about the live text 28, 28, 26 and 26.
constexpr double kRebaseAt = 0.75, kRebaseSqueeze = 0.25;
constexpr int64_t kNeverRebased = 4;  // the rows that heads look at out of idleness keep their distance to the start

// Of its capacity, one in so many rows is what a conversation gains between two attempts of an automatic
// compaction, and how many of the newest tokens stay live in one.
constexpr int64_t kCompactionPart = 16;

// Of its capacity, one in so many rows is what an automatic compaction must gain at least, and a block of each
// head: with everything kept but 6 rows, eight compactions of 2 s freed 3 rows each.
constexpr double kLeastGainPart = 64;

double least_gain(const Engine& engine) {
  return std::max(static_cast<double>(kv::kBlockRows), static_cast<double>(engine.n_ctx_slot()) / kLeastGainPart);
}

}  // namespace

/// Hands each conversation's rows of a batch to its own capture.
class Conversation::CaptureTap : public ops::AttentionTap {
 public:
  explicit CaptureTap(std::span<const Piece> pieces) : pieces_(pieces) {}
  bool is_empty() const {
    return std::none_of(pieces_.begin(), pieces_.end(),
                        [](const Piece& piece) { return piece.conversation->capture_ != nullptr; });
  }
  void begin_batch(std::span<const Pos> pos) {
    for_captures([&](QueryCapture& capture, int64_t first_row, int64_t n_rows) {
      capture.begin_batch(pos.subspan(static_cast<size_t>(first_row), static_cast<size_t>(n_rows)));
    });
  }
  void abort_batch() {
    for_captures([](QueryCapture& capture, int64_t, int64_t) { capture.abort_batch(); });
  }

  bool on_attention(int32_t layer, MatView<const float> queries, MatView<const float> lse,
                    MatView<const float> out) override {
    for_captures([&](QueryCapture& capture, int64_t first_row, int64_t n_rows) {
      if (capture.wants_layer(layer))
        capture.on_attention(layer, queries.slice(first_row, n_rows), lse.slice(first_row, n_rows),
                             out.slice(first_row, n_rows));
    });
    return false;
  }
  bool wants_layer(int32_t layer) const override {
    bool is_wanted = false;
    for_captures(
        [&](QueryCapture& capture, int64_t, int64_t) { is_wanted = is_wanted || capture.wants_layer(layer); });
    return is_wanted;
  }

 private:
  /// fn(capture, first_row, n_rows)
  template <typename Fn>
  void for_captures(Fn&& fn) const {
    int64_t first_row = 0;
    for (const Piece& piece : pieces_) {
      if (piece.conversation->capture_) fn(*piece.conversation->capture_, first_row, std::ssize(piece.ids));
      first_row += std::ssize(piece.ids);
    }
  }
  std::span<const Piece> pieces_;
};

Conversation::Conversation(Engine& engine, bool captures_queries) : engine_(engine), cache_(engine.block_pool()) {
  if (captures_queries && engine.options().capture_bytes > 0)
    capture_ = std::make_unique<QueryCapture>(engine.model(), engine.kv_layout(), engine.options().capture_bytes,
                                              kReadingStride);
}

Result<void> Conversation::append_all(Engine& engine, std::span<const Piece> pieces, MatView<float> logits) {
  TokenBatch& batch = engine.executor().new_batch();
  for (const Piece& piece : pieces) batch.add(piece.conversation->cache_, piece.ids, piece.wants_logits);
  CaptureTap tap(pieces);
  tap.begin_batch(batch.pos);
  const auto done = engine.forward(batch.view(), logits, tap.is_empty() ? nullptr : &tap);
  if (!done.ok()) {
    tap.abort_batch();
    return done;
  }
  for (const Piece& piece : pieces) {
    std::vector<int32_t>& tokens = piece.conversation->tokens_;
    tokens.insert(tokens.end(), piece.ids.begin(), piece.ids.end());
  }
  return {};
}

Result<void> Conversation::append(std::span<const int32_t> ids, MatView<float> logits) {
  const Piece piece{this, ids, logits.rows > 0};
  return append_all(engine_, std::span(&piece, 1), logits);
}

Result<void> Conversation::truncate(int64_t n_tokens) {
  if (n_tokens >= this->n_tokens()) return {};
  if (n_tokens <= 0) {
    clear();
    return {};
  }
  if (n_tokens < n_compacted_tokens())
    return Error{ErrorKind::unsupported,
                 fmt::format("the conversation cannot be cut back to {} tokens: the first {} were compacted", n_tokens,
                             n_compacted_tokens())};
  SH_RETURN_IF_ERROR(cache_.truncate(Pos(n_tokens - n_rebased())));
  tokens_.resize(static_cast<size_t>(n_tokens));
  if (capture_) capture_->truncate(cache_.next_pos());
  recount();
  return {};
}

void Conversation::clear() {
  cache_.clear();
  tokens_.clear();
  if (capture_) capture_->clear();
  recount();
  forget_last_attempt();
  has_told_of_held_rows_ = false;
  n_first_prompt_ = 0;
}

Result<CompactionReport> Conversation::compact(const CompactionRequest& request, const std::atomic<bool>* cancel,
                                               const CompactionProgress& on_progress) {
  auto report =
      compact_sequence(engine_.executor(), cache_, tokens_, capture_.get(), request, cancel, on_progress);
  if (report.ok()) settle_after_compaction();
  return report;
}

Conversation::Snapshot Conversation::snapshot(const CompactionRequest& request) {
  Snapshot copy{.cache = cache_.fork(), .tokens = tokens_, .captured = nullptr};
  // What is appended from now on begins blocks of its own, so that adopt() moves no rows.
  cache_.seal();
  const auto method = method_of(request);
  if (capture_ && method.ok() && method->queries.has(compaction::QuerySource::prefill))
    copy.captured = std::make_unique<QueryCapture>(*capture_);
  return copy;
}

Result<void> Conversation::adopt(kv::SequenceCache& compacted, int64_t boundary) {
  SH_RETURN_IF_ERROR(cache_.splice(compacted, Pos(boundary)));
  compacted.clear();  // rows that nobody shares can be changed where they are
  settle_after_compaction();
  return {};
}

void Conversation::settle_after_compaction() {
  has_told_of_held_rows_ = false;
  give_positions_anew();
  recount();
}

void Conversation::give_positions_anew() {
  const int64_t n_trained = engine_.model().info().n_ctx_train, next = cache_.next_pos().value;
  if (!engine_.options().compact_rebase || static_cast<double>(next) < kRebaseAt * static_cast<double>(n_trained))
    return;
  const int64_t compacted = cache_.compacted_end().value;
  const int64_t keep = std::min(compacted, std::max<int64_t>(kNeverRebased, engine_.options().compact_keep));
  const auto squeezed = static_cast<int64_t>(static_cast<double>(compacted - keep) * kRebaseSqueeze);
  const auto done = rebase(engine_.executor(), cache_, Pos(keep), Pos(keep + squeezed));
  if (!done.ok()) {
    log_warning("positions stay as they are: {}", done.error().message);
    return;
  }
  log_info("positions given anew: {} of {} trained are used, by {} tokens", cache_.next_pos().value, n_trained,
           n_tokens());
  if (capture_) capture_->clear();  // what it holds has the old positions
}

void Conversation::recount() {
  physical_base_ = cache_.usage().n_physical;
  logical_base_ = n_tokens();
}

int64_t Conversation::rows_left() const {
  return std::max<int64_t>(0, static_cast<int64_t>(static_cast<double>(engine_.n_ctx_slot()) - n_physical()));
}

bool Conversation::wants_compaction() const {
  if (!engine_.compacts_automatically()) return false;
  if (rows_left() == 0) return true;
  const double n = n_physical();
  return n >= engine_.options().compact_threshold * static_cast<double>(engine_.n_ctx_slot()) &&
         n >= retry_at_rows_;
}

Result<CompactionRequest> Conversation::requested_by_flags(int64_t n_keep) const {
  const EngineOptions& options = engine_.options();
  CompactionRequest request;
  request.method = options.compact_method;
  request.ratio = options.compact_ratio;
  request.pinned = options.compact_pinned;
  for (Span& span : request.pinned) span = {std::min(span.begin, n_tokens()), std::min(span.end, n_tokens())};
  request.max_kl = options.compact_max_kl;
  request.target = {.kl = options.compact_target_kl, .head_error = options.compact_target_head_error};
  for (const auto& [name, value] : options.compact_options) SH_RETURN_IF_ERROR(set_option(request, name, value));
  request.n_protected_prefix =
      std::min<int64_t>(std::max(n_kept(n_keep), n_kept(options.compact_keep)), cache_.next_pos().value);
  return request;
}

int64_t Conversation::n_kept(int64_t n_keep) const {
  return n_keep < 0 ? n_first_prompt_ : std::min(n_keep, n_tokens());
}

Result<CompactionRequest> Conversation::automatic_request(const AutomaticLimits& limits) const {
  const EngineOptions& options = engine_.options();
  SH_ASSIGN(CompactionRequest request, requested_by_flags(limits.n_keep));
  request.n_live_suffix = std::min<int64_t>(engine_.n_ctx_slot() / kCompactionPart, cache_.next_pos().value);
  SH_ASSIGN(const compaction::CompactionMethod method, method_of(request));
  if (limits.turn_begin >= 0) {
    request.n_live_suffix = n_tokens() - limits.turn_begin;
    request.n_recent_queries = request.n_live_suffix;
    request.queries = method.queries | compaction::QuerySource::recent;
  }

  SH_ASSIGN(const Region region, plan_region(cache_, method, request));
  const std::vector<HeadPlan> plans = plan_heads(cache_, region, request.compacts_window_layers);
  double n_fixed = 0, n_region = 0;
  for (const HeadPlan& plan : plans) {
    n_fixed += static_cast<double>(plan.n_fixed) / static_cast<double>(plans.size());
    n_region += static_cast<double>(plan.rows.size()) / static_cast<double>(plans.size());
  }
  const double low_watermark =
      options.compact_threshold * static_cast<double>(engine_.n_ctx_slot()) / options.compact_ratio;
  const double n_rows = std::max(low_watermark - n_fixed, n_region / (2 * options.compact_ratio));
  request.target_rows = std::max<int64_t>(1, static_cast<int64_t>(n_rows));
  if (!request.target.is_set()) request.aimed_rows = low_watermark;
  const double n_gained = request.target.is_set() ? n_region : n_region - n_rows;
  const double n_least = least_gain(engine_);
  if (n_gained < n_least)
    return Error{
        ErrorKind::invalid_argument,
        fmt::format("too few rows may go: of {} positions {} at the start, {} at the end and {} in pinned spans "
                    "stay as they are, and {} rows a head could be gained, of {} that are worth a compaction",
                    cache_.next_pos().value, region.begin.value, cache_.next_pos() - region.end,
                    region.end - region.begin - region.n_tokens(), static_cast<int64_t>(n_gained),
                    static_cast<int64_t>(n_least))};
  return request;
}

Error Conversation::full_error(const std::string& reason, int64_t n_keep) const {
  const EngineOptions& options = engine_.options();
  std::string remedy = "raise -c";
  int64_t n_pinned = 0;
  for (const Span& span : options.compact_pinned)
    n_pinned += std::clamp<int64_t>(n_tokens() - span.begin, 0, span.end - span.begin);
  if (n_pinned > 0) remedy += fmt::format(" or pin less (--compact-pin holds {} tokens)", n_pinned);
  if (n_kept(options.compact_keep) > 0)
    remedy += fmt::format(" or keep less (--compact-keep holds {} tokens)", n_kept(options.compact_keep));
  if (n_kept(n_keep) > 0)
    remedy += fmt::format(" or keep less (--keep, n_keep in a request, holds {} tokens)", n_kept(n_keep));
  if (options.compact_max_kl > 0)
    remedy += fmt::format(" or allow more than --compact-max-kl {}", options.compact_max_kl);
  return Error{ErrorKind::context_exceeded,
               fmt::format("the conversation fills its {} rows and {}; {}", engine_.n_ctx_slot(), reason, remedy)};
}

std::string Conversation::end_reason(int64_t n_keep) const {
  if (n_tokens() + 1 > engine_.n_ctx_logical()) return engine_.length_limit();
  return full_error("no compaction makes room", n_keep).message;
}

bool Conversation::is_news(const Error& failure) {
  // The request is the flags' own, so that only what stays can be wrong with it.
  return failure.kind != ErrorKind::invalid_argument || !std::exchange(has_told_of_held_rows_, true);
}

void Conversation::note_attempt() {
  retry_at_rows_ = n_physical() + static_cast<double>(engine_.n_ctx_slot()) / kCompactionPart;
}

Result<CompactionReport> Conversation::compact_automatically(const AutomaticLimits& limits,
                                                             const std::atomic<bool>* cancel,
                                                             const CompactionProgress& on_progress) {
  const auto request = automatic_request(limits);
  auto report = request.ok() ? compact(*request, cancel, on_progress) : Result<CompactionReport>(request.error());
  if (report.ok() || report.error().kind != ErrorKind::cancelled) note_attempt();
  return report;
}

std::string held_rows_text(const Engine& engine, int64_t n_keep) {
  const EngineOptions& options = engine.options();
  if (!engine.compacts_automatically()) return "";
  const int64_t n_rows = engine.n_ctx_slot(), n_newest = n_rows / kCompactionPart;
  std::vector<Span> spans = options.compact_pinned;
  spans.push_back({0, std::max(n_keep, options.compact_keep)});
  int64_t n_held = 0;
  for (const Span& span : merged(std::move(spans), 0, n_rows)) n_held += span.end - span.begin;
  if (static_cast<double>(n_rows - n_held - n_newest) >= 2 * least_gain(engine)) return "";
  return fmt::format(
      "--keep, --compact-keep and --compact-pin hold {} of the {} rows that a conversation has, and its "
      "newest {} stay, too: automatic compaction has next to nothing to do; raise -c or hold less",
      n_held, n_rows, n_newest);
}

Result<std::string> TurnFormat::first_turn(const std::string& system, const std::string& user) const {
  Json messages = Json::array();
  if (!system.empty()) messages.push_back({{"role", "system"}, {"content", system}});
  messages.push_back({{"role", "user"}, {"content", user}});
  return engine_.render_messages(std::move(messages), true);
}

Result<std::string> TurnFormat::next_turn(const std::string& user) const {
  static const std::string kAnswer = "Answer-of-the-assistant";
  const Json messages = Json::array({{{"role", "user"}, {"content", "Question"}},
                                     {{"role", "assistant"}, {"content", kAnswer}},
                                     {{"role", "user"}, {"content", user}}});
  SH_ASSIGN(const std::string text, engine_.render_messages(messages, true));
  const size_t at = text.find(kAnswer);
  if (at == std::string::npos)
    return Error{
        ErrorKind::unsupported,
        "the chat template does not show what the assistant said, so a second turn cannot be added; use -st, or "
        "--chat-template with another one"};
  return text.substr(at + kAnswer.size());
}

std::vector<int32_t> encode_opening(const Engine& engine, std::string_view text) {
  const tokenizer::Tokenizer& tokenizer = engine.tokenizer();
  std::vector<int32_t> ids = tokenizer.encode(text, {.add_special = true, .parse_special = true});
  const int32_t bos = tokenizer.data().bos;
  if (tokenizer.adds_bos() && ids.size() > 1 && ids[0] == bos && ids[1] == bos) ids.erase(ids.begin());
  if (tokenizer.adds_eos() && ids.size() > 1 && ids.back() == tokenizer.data().eos)
    ids.pop_back();  // an opening goes on
  return ids;
}

std::vector<int32_t> encode_following(const Engine& engine, std::string_view text) {
  return engine.tokenizer().encode(text, {.add_special = false, .parse_special = true});
}

}  // namespace sh::engine
