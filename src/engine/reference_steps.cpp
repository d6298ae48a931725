// SPDX-License-Identifier: MIT
#include "engine/reference_steps.h"

#include <algorithm>
#include <deque>
#include <limits>
#include <memory>

#include "base/cancel.h"
#include "base/check.h"
#include "engine/token_batch.h"

namespace sh::engine {

namespace {

constexpr const char* kRepeatInstruction = "Repeat the text above.";
// An opening is fed again with every stretch, in the same forward, as long as that makes no more tokens than this
// in all; else it gets a forward of its own that all stretches share.
constexpr int64_t kOpeningsAgain = 48;

bool ends_turn(const Engine& engine, std::span<const int32_t> ids) {
  return !ids.empty() &&
         (engine.tokenizer().is_end_of_generation(ids.back()) || engine.tokenizer().is_control(ids.back()));
}

/// Shows a forward's queries to the capture, which keeps some, and to the coverage, which keeps none but sees all.
class StudyTap final : public ops::AttentionTap {
 public:
  /// Rows of the batch [begin, end).
  using Run = std::pair<int64_t, int64_t>;
  /// Either may be null. `runs`: the rows whose queries count, as the capture was told.
  StudyTap(QueryCapture* capture, RowCoverage* coverage, std::span<const kv::Pos> pos, std::span<const Run> runs)
      : capture_(capture), coverage_(coverage), pos_(pos), runs_(runs) {}
  bool on_attention(int32_t layer, MatView<const float> queries, MatView<const float> lse,
                    MatView<const float> out) override {
    if (captures(layer)) capture_->on_attention(layer, queries, lse, out);
    if (!covers(layer)) return false;
    for (const auto& [begin, end] : runs_)
      coverage_->fold(layer, pos_.subspan(static_cast<size_t>(begin), static_cast<size_t>(end - begin)),
                      queries.slice(begin, end - begin), lse.slice(begin, end - begin));
    return false;
  }
  bool wants_layer(int32_t layer) const override { return captures(layer) || covers(layer); }

 private:
  bool captures(int32_t layer) const { return capture_ != nullptr && capture_->wants_layer(layer); }
  bool covers(int32_t layer) const { return coverage_ != nullptr && coverage_->wants_layer(layer); }

  QueryCapture* capture_;
  RowCoverage* coverage_;
  std::span<const kv::Pos> pos_;
  std::span<const Run> runs_;
};

/// A stretch with the first tokens that are not shown to anybody.
struct FedStretch {
  Stretch stretch;
  int64_t n_hidden = 0;
};

/// Feeds stretches in full forwards.
class Feeder {
 public:
  Feeder(Executor& executor, std::span<const FedStretch> stretches,
         const std::function<Result<kv::SequenceCache>(size_t i)>& fork_of, const FeedOptions& options)
      : executor_(executor), stretches_(stretches), fork_of_(fork_of), options_(options) {
    for (const FedStretch& s : stretches) {
      SH_CHECK(!s.stretch.ids.empty(), "a stretch has tokens");
      n_tokens_ += n_of(s);
    }
  }

  Result<void> run() {
    while (next_ < stretches_.size() || !open_.empty()) {
      if (is_cancelled(options_.cancel)) return cancelled_error();
      SH_RETURN_IF_ERROR(fill());
      const auto done = forward();
      if (!done.ok() && done.error().kind == ErrorKind::out_of_memory && step_.n_taken.size() > 1) {
        most_side_by_side_ = step_.n_taken.size() / 2;
        put_back();
        continue;
      }
      SH_RETURN_IF_ERROR(done);
      advance();
    }
    return {};
  }

 private:
  /// A stretch that has begun, or is about to.
  struct Open {
    size_t index;
    kv::SequenceCache cache;
    int64_t n_fed = 0;
  };
  /// The forward that runs.
  struct Step {
    TokenBatch batch;
    std::vector<int64_t> n_taken;      // [stretches in it, the first open ones] tokens
    std::vector<StudyTap::Run> shown;  // rows of the batch
  };

  static int64_t n_of(const FedStretch& s) { return static_cast<int64_t>(s.stretch.ids.size()); }

  /// Takes tokens of the open stretches, and opens more while there is room.
  Result<void> fill() {
    step_ = {};
    int64_t room = executor_.engine().options().n_ubatch;
    int64_t n_logits_left = options_.max_logits > 0 ? options_.max_logits : room;
    while (room > 0 && step_.n_taken.size() < most_side_by_side_) {
      if (step_.n_taken.size() == open_.size()) {
        if (next_ == stretches_.size()) break;
        SH_ASSIGN(kv::SequenceCache fork, fork_of_(next_));
        open_.push_back({next_++, std::move(fork)});
      }
      Open& o = open_[step_.n_taken.size()];
      const FedStretch& s = stretches_[o.index];
      int64_t n = std::min(room, n_of(s) - o.n_fed);
      const int64_t first_logit = std::max(o.n_fed, s.stretch.first_logit);
      n = std::min(n, std::max<int64_t>(0, first_logit - o.n_fed) + n_logits_left);
      if (n == 0) break;
      const int64_t end_logit = std::min(o.n_fed + n, s.stretch.end_logit);
      const auto row = static_cast<int64_t>(step_.batch.ids.size());
      step_.batch.add(o.cache, s.stretch.ids.subspan(static_cast<size_t>(o.n_fed), static_cast<size_t>(n)), false);
      for (int64_t token = first_logit; token < end_logit; ++token)
        step_.batch.logit_rows.push_back(static_cast<int32_t>(row + token - o.n_fed));
      n_logits_left -= std::max<int64_t>(0, end_logit - first_logit);
      const int64_t n_hidden = std::clamp<int64_t>(s.n_hidden - o.n_fed, 0, n);
      if (n_hidden < n) step_.shown.emplace_back(row + n_hidden, row + n);
      step_.n_taken.push_back(n);
      room -= n;
      if (o.n_fed + n < n_of(s)) break;
    }
    return {};
  }

  Result<void> forward() {
    const auto n_logits = static_cast<int64_t>(step_.batch.logit_rows.size());
    const MatView<float> logits = n_logits > 0
                                      ? options_.room(n_logits_, n_logits)
                                      : MatView<float>(nullptr, 0, executor_.engine().model().info().n_vocab);
    if (options_.capture != nullptr) {
      const auto is_shown = std::make_unique<bool[]>(step_.batch.ids.size());
      for (const auto& [begin, end] : step_.shown) std::fill(is_shown.get() + begin, is_shown.get() + end, true);
      options_.capture->begin_batch(step_.batch.pos, {is_shown.get(), step_.batch.ids.size()});
    }
    StudyTap tap(options_.capture, options_.coverage, step_.batch.pos, step_.shown);
    const auto done = executor_.forward(step_.batch.view(), logits, &tap);
    if (!done.ok()) {
      if (options_.capture != nullptr) options_.capture->abort_batch();
      return done;
    }
    if (n_logits > 0 && options_.use) options_.use(n_logits_, logits);
    n_logits_ += n_logits;
    return {};
  }

  /// After a forward that did not run: forks that have not begun give back what they took for it.
  void put_back() {
    while (!open_.empty() && open_.back().n_fed == 0) {
      next_ = open_.back().index;
      open_.pop_back();
    }
  }

  void advance() {
    for (size_t i = 0; i < step_.n_taken.size(); ++i) {
      open_[i].n_fed += step_.n_taken[i];
      n_fed_ += step_.n_taken[i];
    }
    while (!open_.empty() && open_.front().n_fed == n_of(stretches_[open_.front().index])) open_.pop_front();
    if (options_.on_progress) options_.on_progress(static_cast<double>(n_fed_) / static_cast<double>(n_tokens_));
  }

  Executor& executor_;
  std::span<const FedStretch> stretches_;
  const std::function<Result<kv::SequenceCache>(size_t i)>& fork_of_;
  const FeedOptions& options_;
  std::deque<Open> open_;  // batches point into it
  Step step_;
  size_t next_ = 0, most_side_by_side_ = std::numeric_limits<size_t>::max();
  int64_t n_tokens_ = 0, n_fed_ = 0, n_logits_ = 0;
};

}  // namespace

std::vector<int32_t> encode_text(const Engine& engine, const std::string& text) {
  return engine.tokenizer().encode(text, {.add_special = false, .parse_special = true});
}

std::vector<int32_t> opening_tokens(const Engine& engine, const TurnTokens& turn, std::span<const int32_t> ids) {
  std::vector<int32_t> opening;
  if (!ends_turn(engine, ids)) opening = turn.close_turn;
  opening.insert(opening.end(), turn.user_open.begin(), turn.user_open.end());
  return opening;
}

Result<std::vector<int32_t>> repeat_opening(const Engine& engine, std::span<const int32_t> ids) {
  SH_ASSIGN(const TurnTokens turn, turn_tokens(engine));
  std::vector<int32_t> opening = opening_tokens(engine, turn, ids);
  const std::vector<int32_t> instruction = encode_text(engine, kRepeatInstruction);
  opening.insert(opening.end(), instruction.begin(), instruction.end());
  opening.insert(opening.end(), turn.user_close.begin(), turn.user_close.end());
  return opening;
}

Replay::Part repeat_part(std::span<const int32_t> ids, int64_t begin, int64_t end) {
  const int64_t first = std::max<int64_t>(0, begin - kRepeatLeadIn);
  return {{ids.begin() + first, ids.begin() + end}, begin - first};
}

std::vector<std::pair<int64_t, int64_t>> spread_pieces(int64_t begin, int64_t end, int64_t n_pieces,
                                                       int64_t length) {
  std::vector<std::pair<int64_t, int64_t>> pieces;
  for (int64_t i = 0; i < n_pieces; ++i) {
    const int64_t from = begin + (end - begin) * i / n_pieces, to = begin + (end - begin) * (i + 1) / n_pieces;
    const int64_t n = std::min(length, to - from), at = from + (to - from - n) / 2;
    pieces.emplace_back(at, at + n);
  }
  return pieces;
}

Error cancelled_error() {
  return {ErrorKind::cancelled,
          "the compaction was cancelled while it gathered or replayed reference queries; nothing has changed"};
}

Result<Mat<float>> run_step(Executor& executor, std::span<const StepItem> items, QueryCapture& capture,
                            RowCoverage* coverage) {
  TokenBatch batch;
  std::vector<int64_t> labels;
  for (const StepItem& item : items) {
    batch.add(*item.sequence, item.ids, true);
    if (items.front().label == 0) continue;
    for (size_t i = 0; i < item.ids.size(); ++i) labels.push_back(item.label + static_cast<int64_t>(i));
  }
  Mat<float> logits(static_cast<int64_t>(items.size()), executor.engine().model().info().n_vocab);
  capture.begin_batch(batch.pos, {}, labels);
  const StudyTap::Run all{0, static_cast<int64_t>(batch.ids.size())};
  StudyTap tap(&capture, coverage, batch.pos, std::span(&all, 1));
  SH_RETURN_IF_ERROR(executor.forward(batch.view(), logits.view(), &tap));
  return logits;
}

Result<void> feed_stretches(Executor& executor, std::span<const Stretch> stretches,
                            const std::function<Result<kv::SequenceCache>(size_t i)>& fork_of,
                            const FeedOptions& options) {
  std::vector<FedStretch> fed;
  for (const Stretch& stretch : stretches) fed.push_back({stretch});
  return Feeder(executor, fed, fork_of, options).run();
}

Result<int64_t> feed_behind(Executor& executor, const kv::SequenceCache& sequence,
                            std::span<const int32_t> opening, std::span<const Stretch> stretches,
                            const FeedOptions& options) {
  const auto n_opening = static_cast<int64_t>(opening.size());
  const bool feeds_again = n_opening * (static_cast<int64_t>(stretches.size()) - 1) <= kOpeningsAgain;
  kv::SequenceCache base = sequence.fork();
  int64_t n_fed = 0;
  if (!feeds_again) {
    SH_RETURN_IF_ERROR(executor.prefill(base, opening));
    n_fed = n_opening;
  }
  std::vector<std::vector<int32_t>> joined;  // stays where it is: stretches point into its elements
  std::vector<FedStretch> fed;
  for (const Stretch& stretch : stretches) {
    fed.push_back({stretch});
    if (feeds_again) {
      std::vector<int32_t>& ids = joined.emplace_back(opening.begin(), opening.end());
      ids.insert(ids.end(), stretch.ids.begin(), stretch.ids.end());
      fed.back() = {{ids, stretch.first_logit + n_opening, stretch.end_logit + n_opening}, n_opening};
    }
    n_fed += static_cast<int64_t>(fed.back().stretch.ids.size());
  }
  SH_RETURN_IF_ERROR(Feeder(
                         executor, fed, [&](size_t) -> Result<kv::SequenceCache> { return base.fork(); }, options)
                         .run());
  return n_fed;
}

Result<TurnTokens> turn_tokens(const Engine& engine) {
  const std::string a = "First question?", b = "First answer.", c = "Second question?";
  const Json user_a = {{"role", "user"}, {"content", a}}, assistant_b = {{"role", "assistant"}, {"content", b}},
             user_c = {{"role", "user"}, {"content", c}};
  SH_ASSIGN(const std::string two, engine.render_messages(Json::array({user_a, assistant_b}), false));
  SH_ASSIGN(const std::string three, engine.render_messages(Json::array({user_a, assistant_b, user_c}), true));
  const size_t b_in_two = two.rfind(b), b_in_three = three.rfind(b), c_in_three = three.rfind(c);
  if (b_in_two == std::string::npos || b_in_three == std::string::npos || c_in_three == std::string::npos ||
      c_in_three < b_in_three)
    return Error{ErrorKind::unsupported,
                 "the model's chat template does not show where a user turn begins and ends, so no study "
                 "conversation can be "
                 "opened; use another source of reference queries"};
  const std::string close = two.substr(b_in_two + b.size());
  const std::string between = three.substr(b_in_three + b.size(), c_in_three - b_in_three - b.size());
  const std::vector<int32_t> user_close = encode_text(engine, three.substr(c_in_three + c.size()));
  if (between.starts_with(close))
    return TurnTokens{encode_text(engine, close), encode_text(engine, between.substr(close.size())), user_close};
  // The template ends the last turn differently (Phi 3.5, Command R): what closes an open turn is what both have
  // in common.
  const std::vector<int32_t> close_ids = encode_text(engine, close), between_ids = encode_text(engine, between);
  const auto open_begin =
      std::mismatch(close_ids.begin(), close_ids.end(), between_ids.begin(), between_ids.end()).second;
  return TurnTokens{{between_ids.begin(), open_begin}, {open_begin, between_ids.end()}, user_close};
}

}  // namespace sh::engine
