// SPDX-License-Identifier: MIT
#include <fmt/format.h>

#include <algorithm>
#include <set>

#include "base/clock.h"
#include "engine/reference_steps.h"
#include "sampling/sampler.h"

namespace sh::engine {

namespace {

using kv::SequenceCache;

/// How many study conversations may run side by side: each needs in every head a copy of the tail block and blocks for its own tokens.
int64_t conversations_that_fit(const Engine& engine, const kv::BlockPool& pool, int64_t tokens_each) {
  int64_t bytes_each = 0;
  for (size_t l = 0; l < engine.kv_layout().layers.size(); ++l) {
    const int32_t arena = pool.arena_of_layer(static_cast<int32_t>(l));
    if (arena < 0) continue;
    const int64_t head_bytes = (2 + tokens_each / kv::kBlockRows) * pool.block_bytes(arena) + kv::BlockPool::kAnnotationBytes;
    bytes_each += engine.kv_layout().layers[l].n_heads * head_bytes;
  }
  return pool.bytes_available() / std::max<int64_t>(1, bytes_each);
}

/// One conversation of the study.
struct StudyConversation {
  SequenceCache cache;
  sampling::Sampler sampler;
  std::vector<int32_t> question;
  std::vector<int32_t> next;  // tokens to feed in the next step
  std::vector<int32_t> fed;
  int32_t n_answer = 0;
  bool is_answering = false;
  bool is_done = false;
};

/// Takes the sampled token of a conversation and decides what it does next.
void advance(Engine& engine, StudyConversation& c, std::span<const float> logits, const TurnTokens& turn, const SelfStudyOptions& options,
             std::set<std::vector<int32_t>>& asked) {
  const tokenizer::Tokenizer& tokenizer = engine.tokenizer();
  if (!c.is_answering) {
    const int32_t id = c.sampler.sample(logits);
    const bool is_end = tokenizer.is_end_of_generation(id);
    if (!is_end && static_cast<int32_t>(c.question.size()) < options.max_question_tokens) {
      c.question.push_back(id);
      c.next = {id};
      return;
    }
    // A question that was asked before brings no new queries: its answer is not worth decoding.
    c.is_done = c.question.empty() || !asked.insert(c.question).second;
    c.is_answering = true;
    c.next = turn.user_close;
    return;
  }
  const auto best = static_cast<int32_t>(std::max_element(logits.begin(), logits.end()) - logits.begin());
  c.is_done = tokenizer.is_end_of_generation(best) || ++c.n_answer > options.max_answer_tokens;
  c.next = {best};
}

Result<void> check_study(const SelfStudyOptions& options) {
  const auto check = [](const char* name, int64_t value, int64_t lowest, int64_t highest) -> Result<void> {
    if (value >= lowest && value <= highest) return {};
    return Error{ErrorKind::invalid_argument, fmt::format("self-study: {}: expected {} to {}, got {}", name, lowest, highest, value)};
  };
  SH_RETURN_IF_ERROR(check("n_conversations", options.n_conversations, 1, 65536));
  SH_RETURN_IF_ERROR(check("max_question_tokens", options.max_question_tokens, 1, 4096));
  return check("max_answer_tokens", options.max_answer_tokens, 0, 4096);
}

}  // namespace

Result<QuerySets> self_study(Executor& executor, const SequenceCache& sequence, std::span<const int32_t> ids,
                             const SelfStudyOptions& options, const GatherContext& context, Replay* replay,
                             StudyStats* stats) {
  Engine& engine = executor.engine();
  const Stopwatch watch;
  SH_RETURN_IF_ERROR(check_study(options));
  SH_ASSIGN(const TurnTokens turn, turn_tokens(engine));
  QueryCapture capture(engine.model(), engine.kv_layout(), context.max_query_bytes);
  SequenceCache base = sequence.fork();
  const std::vector<int32_t> opening = opening_tokens(engine, turn, ids);
  SH_ASSIGN(const Mat<float> first_logits, executor.prefill(base, opening));

  if (replay != nullptr) replay->opening = opening;
  std::set<std::vector<int32_t>> asked;
  int64_t n_tokens = static_cast<int64_t>(opening.size());
  const int64_t tokens_each = options.max_question_tokens + options.max_answer_tokens + static_cast<int64_t>(turn.user_close.size());
  const sampling::SamplingParams sampling{.temperature = options.temperature, .top_k = 0, .top_p = 1.0f, .min_p = 0.0f,
                                          .seed = static_cast<uint32_t>(options.seed)};
  int32_t n_started = 0;
  while (n_started < options.n_conversations) {
    const int64_t width = std::min<int64_t>({options.n_conversations - n_started, engine.options().n_ubatch,
                                             conversations_that_fit(engine, engine.block_pool(), tokens_each)});
    if (width < 1)
      return Error{ErrorKind::out_of_memory, "the block pool has no room for even one study conversation beside the cache; raise -c or use a method without self-study"};
    std::vector<StudyConversation> wave;
    for (int64_t i = 0; i < width; ++i) {
      SH_ASSIGN(sampling::Sampler sampler, sampling::Sampler::create(sampling, static_cast<uint64_t>(n_started + i)));
      wave.push_back({.cache = base.fork(), .sampler = std::move(sampler)});
      advance(engine, wave.back(), std::span(first_logits.row(0), static_cast<size_t>(first_logits.cols)), turn, options, asked);
    }
    for (;;) {
      if (is_cancelled(context)) return cancelled_error();
      std::vector<StepItem> items;
      std::vector<StudyConversation*> stepping;
      int64_t n_step = 0;
      for (StudyConversation& c : wave) {
        const bool is_too_much = !items.empty() && n_step + static_cast<int64_t>(c.next.size()) > engine.options().n_ubatch;
        if (c.is_done || is_too_much) continue;
        n_step += static_cast<int64_t>(c.next.size());
        c.fed.insert(c.fed.end(), c.next.begin(), c.next.end());
        items.push_back({&c.cache, c.next});
        stepping.push_back(&c);
      }
      if (items.empty()) break;
      SH_ASSIGN(const Mat<float> logits, run_step(executor, items, capture));
      n_tokens += n_step;
      for (size_t i = 0; i < stepping.size(); ++i)
        advance(engine, *stepping[i], std::span(logits.row(static_cast<int64_t>(i)), static_cast<size_t>(logits.cols)), turn, options, asked);
    }
    for (StudyConversation& c : wave) {
      const auto n_prompt = static_cast<int64_t>(c.question.size() + turn.user_close.size());
      if (replay != nullptr && static_cast<int64_t>(c.fed.size()) > n_prompt)
        replay->parts.push_back({std::move(c.fed), n_prompt});
    }
    if (stats != nullptr)
      for (const StudyConversation& c : wave) {
        std::string& question = stats->questions.emplace_back();
        for (const int32_t id : c.question) question += engine.tokenizer().piece(id, false);
      }
    n_started += static_cast<int32_t>(width);
    if (context.on_progress) context.on_progress(static_cast<double>(n_started) / options.n_conversations);
  }
  if (stats != nullptr) {
    stats->n_conversations = n_started;
    stats->n_tokens = n_tokens;
    stats->seconds = watch.seconds();
  }
  return capture.take();
}

}  // namespace sh::engine
