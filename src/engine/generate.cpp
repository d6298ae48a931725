// SPDX-License-Identifier: MIT
#include "engine/generate.h"

#include <fmt/format.h>

#define XXH_INLINE_ALL
#include <xxhash.h>

#include <algorithm>

#include "base/cancel.h"
#include "base/clock.h"
#include "chat/stop_matcher.h"
#include "engine/cost.h"

namespace sh::engine {

namespace {

/// One call of generate(): the parts that both halves of the line use.
struct Run {
  Engine& engine;
  Conversation& conversation;
  const GenerateOptions& options;
  const GenerateHooks& hooks;
  sampling::Sampler sampler;
  chat::StopMatcher stop;
  Mat<float> logits;  // [1, n_vocab] of the last token that was run
  GenerateReport report;
  int64_t turn_begin = 0;           // tokens that the conversation had before the prompt
  bool has_compacted_turn = false;  // delayed mode: this turn's attempt was made
};

Result<Run> prepare(Engine& engine, Conversation& conversation, std::span<const int32_t> prompt,
                    const GenerateOptions& options, const GenerateHooks& hooks) {
  if (prompt.empty())
    return Error{ErrorKind::invalid_argument, "the prompt is empty: at least one token is needed"};
  const int64_t n_all = conversation.n_tokens() + static_cast<int64_t>(prompt.size());
  if (n_all >= engine.n_ctx_logical())
    return Error{ErrorKind::context_exceeded,
                 fmt::format("the prompt makes the conversation {} tokens long, and {}; "
                             "shorten it",
                             n_all, engine.length_limit())};
  SH_ASSIGN(sampling::Sampler sampler,
            start_sampler(engine, options.sampling, options.ignore_eos, options.stream, conversation.tokens()));
  for (const int32_t id : prompt) sampler.accept(id);
  return Run{engine,
             conversation,
             options,
             hooks,
             std::move(sampler),
             chat::StopMatcher(options.stop),
             Mat<float>(1, engine.model().info().n_vocab),
             {},
             0,
             false};
}

/// Between two forwards: if the cache is filled to the threshold, makes it smaller. A failure matters only when no
/// row is left. `is_prompt_read`: delayed mode compacts then, once a turn, unless the cache is full.
Result<void> compact_if_due(Run& run, bool is_prompt_read) {
  if (!run.conversation.wants_compaction()) return {};
  const bool is_delayed = run.conversation.delays_compaction();
  if (is_delayed && (!is_prompt_read || run.turn_begin == 0 || run.has_compacted_turn)) return {};
  run.has_compacted_turn = run.has_compacted_turn || is_delayed;
  const AutomaticLimits limits{.n_keep = run.options.n_keep, .turn_begin = is_delayed ? run.turn_begin : -1};
  auto compacted = run.conversation.compact_automatically(limits, run.hooks.cancel, run.hooks.on_compaction);
  if (compacted.ok()) {
    if (run.hooks.on_compacted) run.hooks.on_compacted(*compacted);
    run.report.compactions.push_back(std::move(*compacted));
    return {};
  }
  if (compacted.error().kind == ErrorKind::cancelled) return {};  // seen again where the caller looks for it
  if (run.conversation.rows_left() == 0)
    return run.conversation.full_error("could not be compacted: " + compacted.error().message, run.options.n_keep);
  if (run.conversation.is_news(compacted.error()))
    run.report.compaction_failures.push_back(compacted.error().message);
  return {};
}

/// Prefill: the prompt in pieces of n_ubatch, logits for its last token.
Result<void> read_prompt(Run& run, std::span<const int32_t> prompt) {
  const auto n_prompt = static_cast<int64_t>(prompt.size());
  for (int64_t n_done = 0; n_done < n_prompt;) {
    SH_RETURN_IF_ERROR(compact_if_due(run, false));
    if (is_cancelled(run.hooks.cancel)) {
      run.report.stop_reason = StopReason::cancelled;
      return {};
    }
    const int64_t n =
        std::min({n_prompt - n_done, int64_t{run.engine.options().n_ubatch}, run.conversation.rows_left()});
    if (n == 0)
      return Error{ErrorKind::context_exceeded,
                   fmt::format("the cache of {} rows is full after {} of {} prompt tokens; raise -c",
                               run.engine.n_ctx_slot(), n_done, n_prompt)};
    const Stopwatch watch;
    const bool is_last = n_done + n == n_prompt;
    SH_RETURN_IF_ERROR(run.conversation.append(prompt.subspan(static_cast<size_t>(n_done), static_cast<size_t>(n)),
                                               is_last ? run.logits.view() : run.logits.view().slice(0, 0)));
    run.report.prompt_seconds += watch.seconds();
    run.report.n_prompt = n_done += n;
    if (run.hooks.on_prompt) run.hooks.on_prompt(n_done, n_prompt);
  }
  return {};
}

void emit(Run& run, const std::string& text) {
  if (text.empty()) return;
  run.report.text += text;
  if (run.hooks.on_text) run.hooks.on_text(text);
}

/// Looks at a sampled token: emits its text and says whether the answer ends with it.
StopReason take_token(Run& run, int32_t id) {
  const tokenizer::Tokenizer& tokenizer = run.engine.tokenizer();
  run.sampler.accept(id);
  if (tokenizer.is_end_of_generation(id) && !run.options.ignore_eos) return StopReason::eos;
  ++run.report.n_answer;
  emit(run, run.stop.feed(tokenizer.piece(id, run.options.renders_special)));
  if (run.stop.is_stopped()) return StopReason::word;
  return StopReason::none;
}

/// Decode: sample a token, show it, run it, until something ends the answer.
Result<void> write_answer(Run& run) {
  const int64_t weight_bytes = weight_cost(run.engine.file()).bytes;
  const std::span<const float> logits(run.logits.data);
  while (run.report.stop_reason == StopReason::none) {
    if (run.options.n_predict >= 0 && run.report.n_answer >= run.options.n_predict) {
      run.report.stop_reason = StopReason::limit;
      break;
    }
    Stopwatch watch;
    const int32_t id = run.sampler.sample(logits);
    run.report.stop_reason = take_token(run, id);
    if (run.report.stop_reason == StopReason::eos) break;
    run.report.answer_seconds += watch.seconds();

    SH_RETURN_IF_ERROR(compact_if_due(run, true));
    if (is_cancelled(run.hooks.cancel)) run.report.stop_reason = StopReason::cancelled;
    if (run.conversation.rows_left() == 0 || run.conversation.n_tokens() + 1 > run.engine.n_ctx_logical()) {
      run.report.stop_reason = StopReason::context_full;
      break;
    }
    // A last token is run too: the conversation that goes on must hold all of its answer.
    watch = Stopwatch();
    SH_RETURN_IF_ERROR(run.conversation.append(std::span(&id, 1), run.logits.view()));
    run.report.answer_seconds += watch.seconds();
    run.report.answer_bytes += weight_bytes + kv_bytes_read(run.conversation.cache());
    ++run.report.n_answer_forwards;
  }
  if (run.report.stop_reason != StopReason::word) emit(run, run.stop.finish());
  return {};
}

}  // namespace

Result<sampling::Sampler> start_sampler(const Engine& engine, sampling::SamplingParams sampling, bool ignore_eos,
                                        uint64_t stream, std::span<const int32_t> past) {
  if (ignore_eos)
    for (int32_t id = 0; id < engine.tokenizer().n_vocab(); ++id)
      if (engine.tokenizer().is_end_of_generation(id)) sampling.banned.push_back(id);
  SH_ASSIGN(sampling::Sampler sampler, sampling::Sampler::create(std::move(sampling), stream));
  for (const int32_t id : past) sampler.accept(id);
  return sampler;
}

Result<GenerateReport> generate(Engine& engine, Conversation& conversation, std::span<const int32_t> prompt,
                                const GenerateOptions& options, const GenerateHooks& hooks) {
  SH_ASSIGN(Run run, prepare(engine, conversation, prompt, options, hooks));
  run.turn_begin = conversation.n_tokens();
  if (run.turn_begin == 0) conversation.set_first_prompt(static_cast<int64_t>(prompt.size()));
  SH_RETURN_IF_ERROR(read_prompt(run, prompt));
  if (run.report.stop_reason == StopReason::none) SH_RETURN_IF_ERROR(write_answer(run));
  run.report.logits_hash = XXH3_64bits(run.logits.data.data(), run.logits.data.size() * sizeof(float));
  return std::move(run.report);
}

}  // namespace sh::engine
