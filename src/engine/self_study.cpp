// SPDX-License-Identifier: MIT
#include <fmt/format.h>

#include <algorithm>
#include <set>

#include "base/cancel.h"
#include "base/clock.h"
#include "engine/reference_steps.h"
#include "engine/row_coverage.h"
#include "engine/spread_sampler.h"

namespace sh::engine {

namespace {

using kv::SequenceCache;

// Openings whose question is known. Their answers go through much of the text, where the model's own questions go
// to single facts.
constexpr const char* kStudyPrompts[] = {
    "Repeat the first sentences of the text above word for word.",
    "Summarise the text above.",
    "List the names, numbers and other facts in the text above.",
    "Restructure the text above as JSON with a key for every subject.",
    "Write questions about the text above, each followed by its answer.",
};

// Labels of a conversation's tokens in the capture: odd, so that every thinning takes from every conversation a
// different part, and more than a conversation has tokens.
constexpr int64_t kLabelsEach = 16411;
constexpr int32_t kMaxTurnTokens = 4096;

Result<void> check_study(const SelfStudyOptions& options) {
  const auto check = [](const char* name, int64_t value, int64_t lowest, int64_t highest) -> Result<void> {
    if (value >= lowest && value <= highest) return {};
    return Error{ErrorKind::invalid_argument,
                 fmt::format("self-study: {}: expected {} to {}, got {}", name, lowest, highest, value)};
  };
  SH_RETURN_IF_ERROR(check("n_conversations", options.n_conversations, 1, 65536));
  SH_RETURN_IF_ERROR(check("round_conversations", options.round_conversations, 1, 65536));
  SH_RETURN_IF_ERROR(check("max_question_tokens", options.max_question_tokens, 1, kMaxTurnTokens));
  SH_RETURN_IF_ERROR(check("max_answer_tokens", options.max_answer_tokens, 0, kMaxTurnTokens));
  SH_RETURN_IF_ERROR(check("max_prompt_answer_tokens", options.max_prompt_answer_tokens, 0, kMaxTurnTokens));
  const auto refuse = [](const char* what, double value) {
    return Error{ErrorKind::invalid_argument, fmt::format("self-study: {}, got {}", what, value)};
  };
  if (!(options.temperature >= 1e-3f && options.temperature <= 100.0f))
    return refuse("temperature: expected 0.001 to 100", options.temperature);
  if (!(options.coverage_tolerance >= 0 && options.coverage_tolerance <= 1))
    return refuse("coverage_tolerance: expected a share from 0 to 1", options.coverage_tolerance);
  if (!(options.time_limit_seconds >= 0))
    return refuse("time_limit_seconds: expected at least 0", options.time_limit_seconds);
  return {};
}

/// One conversation of the study.
struct StudyConversation {
  SequenceCache cache;
  SpreadSampler sampler;
  int64_t next_label = 0;
  int32_t max_answer_tokens = 0;
  std::vector<int32_t> question;
  std::vector<int32_t> next;  // tokens to feed before there is something to decide again
  std::vector<int32_t> fed;
  int32_t n_answer = 0;
  bool is_answering = false;
  bool is_done = false;
};

// Tried on scribe and not worth it, at equal numbers of conversations: adding 1 to 4 to the logits of rare tokens
// of one stretch of the text for each conversation, all stretches in turn or the half that no query had touched
// yet (110 to 112 of 120 answers kept at 8x, without it 115); higher temperatures.
class Study {
 public:
  Study(Executor& executor, const SequenceCache& base, std::span<const float> first_logits, const TurnTokens& turn,
        const SelfStudyOptions& options, const GatherContext& context)
      : executor_(executor),
        engine_(executor.engine()),
        base_(base),
        first_logits_(first_logits),
        turn_(turn),
        options_(options),
        context_(context),
        capture_(engine_.model(), engine_.kv_layout(), context.max_query_bytes),
        round_size_(study_round(options, static_cast<int64_t>(base.usage().n_physical))) {
    for (const char* prompt : kStudyPrompts)
      if (options.uses_prompts) prompts_.push_back(encode_text(engine_, prompt));
  }

  /// Rounds until there is nothing more to learn, or a limit is reached.
  Result<void> run(const Stopwatch& watch, Replay* replay) {
    while (n_started_ < options_.n_conversations) {
      const int32_t n_end = std::min(options_.n_conversations, n_started_ + round_size_);
      while (n_started_ < n_end) {
        SH_RETURN_IF_ERROR(run_wave(n_end - n_started_, replay));
        report_progress(static_cast<double>(n_started_) / options_.n_conversations);
      }
      ++stats_.n_rounds;
      if (is_covered()) break;
      stats_.hit_time_limit = options_.time_limit_seconds > 0 && watch.seconds() >= options_.time_limit_seconds;
      if (stats_.hit_time_limit) break;
    }
    report_progress(1);
    stats_.n_conversations = n_started_;
    return {};
  }

  const StudyStats& stats() const { return stats_; }
  const QueryCapture& capture() const { return capture_; }

 private:
  void report_progress(double fraction) const {
    if (context_.on_progress) context_.on_progress(fraction);
  }

  /// Measures what the round has changed.
  bool is_covered() {
    if (context_.coverage == nullptr) return false;
    const int64_t n_rows = context_.coverage->n_rows();
    const int64_t n_kept = options_.coverage_rows > 0 ? options_.coverage_rows : (n_rows + 7) / 8;
    stats_.last_round_change = context_.coverage->end_round(n_kept);
    return options_.coverage_tolerance > 0 && stats_.last_round_change <= options_.coverage_tolerance;
  }

  /// As many conversations as fit, at most n_wanted, side by side until the last is done.
  Result<void> run_wave(int64_t n_wanted, Replay* replay) {
    int64_t tokens_each = options_.max_question_tokens + options_.max_answer_tokens;
    for (const auto& prompt : prompts_)
      tokens_each = std::max(tokens_each, static_cast<int64_t>(prompt.size()) + options_.max_prompt_answer_tokens);
    tokens_each += static_cast<int64_t>(turn_.user_close.size());
    const int64_t width = std::min<int64_t>({n_wanted, engine_.options().n_ubatch,
                                             kv::forks_that_fit(engine_.block_pool(), tokens_each)});
    if (width < 1)
      return Error{
          ErrorKind::out_of_memory,
          "the block pool has no room for even one study conversation beside the cache; raise -c or use a "
          "method without self-study"};
    std::vector<StudyConversation> wave;
    std::vector<StudyConversation*> deciding;
    Mat<float> logits(width, static_cast<int64_t>(first_logits_.size()));
    for (int64_t i = 0; i < width; ++i) wave.push_back(begin_conversation(n_started_++));
    for (StudyConversation& c : wave) {
      if (c.is_answering) continue;
      std::copy(first_logits_.begin(), first_logits_.end(), logits.row(static_cast<int64_t>(deciding.size())));
      deciding.push_back(&c);
    }
    decide(deciding, logits.view());
    for (;;) {
      if (is_cancelled(context_.cancel)) return cancelled_error();
      SH_ASSIGN(const bool has_stepped, step(wave));
      if (!has_stepped) break;
    }
    for (StudyConversation& c : wave) {
      std::string& question = stats_.questions.emplace_back();
      for (const int32_t id : c.question) question += engine_.tokenizer().piece(id, false);
      const auto n_prompt = static_cast<int64_t>(c.question.size() + turn_.user_close.size());
      if (replay != nullptr && static_cast<int64_t>(c.fed.size()) > n_prompt)
        replay->parts.push_back({std::move(c.fed), n_prompt});
    }
    return {};
  }

  StudyConversation begin_conversation(int32_t index) {
    StudyConversation c{.cache = base_.fork(),
                        .sampler = SpreadSampler(options_.seed, static_cast<uint64_t>(index)),
                        .next_label = (index + int64_t{1}) * kLabelsEach,
                        .max_answer_tokens = options_.max_answer_tokens};
    if (index < static_cast<int32_t>(prompts_.size())) {
      c.question = c.next = prompts_[static_cast<size_t>(index)];
      c.next.insert(c.next.end(), turn_.user_close.begin(), turn_.user_close.end());
      c.max_answer_tokens = options_.max_prompt_answer_tokens;
      c.is_answering = true;
      asked_.insert(c.question);
    }
    return c;
  }

  /// Feeds what fits a forward of n_ubatch tokens, first conversations first; false when none has anything to
  /// feed.
  Result<bool> step(std::vector<StudyConversation>& wave) {
    std::vector<StepItem> items;
    std::vector<StudyConversation*> stepping;
    int64_t room = engine_.options().n_ubatch;
    for (StudyConversation& c : wave) {
      if (c.is_done) continue;
      if (room == 0) break;
      const size_t n = std::min(c.next.size(), static_cast<size_t>(room));
      room -= static_cast<int64_t>(n);
      items.push_back({&c.cache, std::span(c.next).first(n), c.next_label});
      stepping.push_back(&c);
    }
    if (items.empty()) return false;
    SH_ASSIGN(Mat<float> logits, run_step(executor_, items, capture_, context_.coverage));
    std::vector<StudyConversation*> deciding;
    for (size_t i = 0; i < items.size(); ++i) {
      StudyConversation& c = *stepping[i];
      const auto n = static_cast<std::ptrdiff_t>(items[i].ids.size());
      c.fed.insert(c.fed.end(), c.next.begin(), c.next.begin() + n);
      c.next.erase(c.next.begin(), c.next.begin() + n);
      c.next_label += n;
      stats_.n_tokens += n;
      if (!c.next.empty()) continue;  // the prompt was longer than the forward
      const auto row = static_cast<int64_t>(deciding.size());
      if (row != static_cast<int64_t>(i))
        std::copy_n(logits.row(static_cast<int64_t>(i)), logits.cols, logits.row(row));
      deciding.push_back(&c);
    }
    decide(deciding, logits.view());
    return true;
  }

  /// What each conversation says next. Shapes: logits [at least conversations, n_vocab], overwritten.
  void decide(std::span<StudyConversation* const> conversations, MatView<float> logits) {
    std::vector<int32_t> ids(conversations.size());
    executor_.thread_pool().run(static_cast<int64_t>(ids.size()), [&](int64_t i, int) {
      StudyConversation& c = *conversations[static_cast<size_t>(i)];
      const std::span<float> row(logits.row(i), static_cast<size_t>(logits.cols));
      ids[static_cast<size_t>(i)] =
          c.is_answering ? static_cast<int32_t>(std::max_element(row.begin(), row.end()) - row.begin())
                         : c.sampler.sample(executor_.kernels(), row, options_.temperature);
    });
    for (size_t i = 0; i < ids.size(); ++i) advance(*conversations[i], ids[i]);
  }

  void advance(StudyConversation& c, int32_t id) {
    const bool is_end = engine_.tokenizer().is_end_of_generation(id);
    if (c.is_answering) {
      c.is_done = is_end || ++c.n_answer > c.max_answer_tokens;
      c.next = {id};
      return;
    }
    if (!is_end && static_cast<int32_t>(c.question.size()) < options_.max_question_tokens) {
      c.question.push_back(id);
      c.next = {id};
      return;
    }
    // A question that was asked before brings no new queries: its answer is not worth decoding. Of two that are
    // equal the later one is dropped, in whichever steps they end: the first one is never behind.
    const bool is_new = !c.question.empty() && asked_.insert(c.question).second;
    if (!is_new && !c.question.empty()) ++stats_.n_repeated;
    c.is_done = !is_new;
    c.is_answering = true;
    c.next = turn_.user_close;
  }

  Executor& executor_;
  Engine& engine_;
  const SequenceCache& base_;
  std::span<const float> first_logits_;
  const TurnTokens& turn_;
  const SelfStudyOptions& options_;
  const GatherContext& context_;
  QueryCapture capture_;
  std::vector<std::vector<int32_t>> prompts_;
  std::set<std::vector<int32_t>> asked_;
  int32_t round_size_;
  int32_t n_started_ = 0;
  StudyStats stats_;
};

}  // namespace

int32_t study_round(const SelfStudyOptions& options, int64_t n_rows) {
  constexpr int64_t kRoundRows = 4096;
  const int64_t n_times = std::max<int64_t>(1, (n_rows + kRoundRows / 2) / kRoundRows);
  return static_cast<int32_t>(std::min<int64_t>(options.n_conversations, options.round_conversations * n_times));
}

Result<QuerySets> self_study(Executor& executor, const SequenceCache& sequence, std::span<const int32_t> ids,
                             const SelfStudyOptions& options, const GatherContext& context, Replay* replay,
                             StudyStats* stats) {
  const Stopwatch watch;
  SH_RETURN_IF_ERROR(check_study(options));
  SH_ASSIGN(const TurnTokens turn, turn_tokens(executor.engine()));
  const double coverage_before = context.coverage == nullptr ? 0 : context.coverage->seconds();
  SequenceCache base = sequence.fork();
  const std::vector<int32_t> opening = opening_tokens(executor.engine(), turn, ids);
  SH_ASSIGN(const Mat<float> first_logits, executor.prefill(base, opening));
  if (replay != nullptr) replay->opening = opening;
  Study study(executor, base, std::span(first_logits.row(0), static_cast<size_t>(first_logits.cols)), turn,
              options, context);
  SH_RETURN_IF_ERROR(study.run(watch, replay));
  if (study.stats().n_tokens == 0)
    return Error{ErrorKind::unsupported,
                 "self-study: the model ended every question before its first word, so there is nothing to learn "
                 "from; allow study prompts or use another source of reference queries"};
  QuerySets sets = study.capture().take(executor.thread_pool(), kLabelsEach);
  if (stats != nullptr) {
    const double seconds = stats->seconds + watch.seconds();
    const int64_t n_tokens = stats->n_tokens + static_cast<int64_t>(opening.size()) + study.stats().n_tokens;
    *stats = study.stats();
    stats->seconds = seconds;
    stats->n_tokens = n_tokens;
    if (context.coverage != nullptr) stats->coverage_seconds = context.coverage->seconds() - coverage_before;
  }
  return sets;
}

}  // namespace sh::engine
