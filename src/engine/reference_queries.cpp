// SPDX-License-Identifier: MIT
#include "engine/reference_queries.h"

#include <fmt/format.h>

#include <algorithm>
#include <set>

#include "base/clock.h"
#include "engine/token_batch.h"
#include "sampling/sampler.h"

namespace sh::engine {

namespace {

using kv::Pos;
using kv::SequenceCache;

constexpr const char* kRepeatInstruction = "Repeat the text above.";
// A piece of the repeated text is read from a fresh fork, so that its positions stay near the end of the context; it starts a few tokens early,
// because the first tokens of a piece cannot know where in the text they are (as KVzip does, arXiv 2505.23416).
constexpr int64_t kRepeatPiece = 1024;
constexpr int64_t kRepeatLeadIn = 8;

std::vector<int32_t> encode(const Engine& engine, const std::string& text) {
  return engine.tokenizer().encode(text, {.add_special = false, .parse_special = true});
}

Result<std::string> render(const Engine& engine, Json messages, bool add_generation_prompt) {
  const tokenizer::Tokenizer& tokenizer = engine.tokenizer();
  chat::PromptInput input;
  input.messages = std::move(messages);
  input.add_generation_prompt = add_generation_prompt;
  if (tokenizer.data().bos != tokenizer::kNoToken) input.bos_token = tokenizer.piece(tokenizer.data().bos, true);
  if (tokenizer.data().eos != tokenizer::kNoToken) input.eos_token = tokenizer.piece(tokenizer.data().eos, true);
  return engine.chat_template().apply(input);
}

bool ends_turn(const Engine& engine, std::span<const int32_t> ids) {
  return !ids.empty() && (engine.tokenizer().is_end_of_generation(ids.back()) || engine.tokenizer().is_control(ids.back()));
}

/// Tokens that lead from the end of the conversation into an open user turn.
std::vector<int32_t> opening_tokens(const Engine& engine, const TurnTokens& turn, std::span<const int32_t> ids) {
  std::vector<int32_t> opening;
  if (!ends_turn(engine, ids)) opening = turn.close_turn;
  opening.insert(opening.end(), turn.user_open.begin(), turn.user_open.end());
  return opening;
}

bool is_cancelled(const std::atomic<bool>* cancel) { return cancel != nullptr && cancel->load(std::memory_order_relaxed); }
Error cancelled_error() { return {ErrorKind::cancelled, "the compaction was cancelled while it gathered reference queries; nothing has changed"}; }

/// Runs one batch of tokens of several sequences, with every token's queries captured; logits of the last token of each sequence.
struct StepItem {
  SequenceCache* sequence;
  std::span<const int32_t> ids;
};
Result<Mat<float>> run_step(Engine& engine, std::span<const StepItem> items, QueryCapture& capture) {
  TokenBatch batch;
  for (const StepItem& item : items) batch.add(*item.sequence, item.ids, true);
  Mat<float> logits(static_cast<int64_t>(items.size()), engine.model().info().n_vocab);
  capture.begin_batch(batch.pos);
  SH_RETURN_IF_ERROR(engine.forward(batch.view(), logits.view(), &capture));
  return logits;
}

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
struct Conversation {
  SequenceCache cache;
  sampling::Sampler sampler;
  std::vector<int32_t> question;
  std::vector<int32_t> next;  // tokens to feed in the next step
  int32_t n_answer = 0;
  bool is_answering = false;
  bool is_done = false;
};

}  // namespace

Result<TurnTokens> turn_tokens(const Engine& engine) {
  const std::string a = "First question?", b = "First answer.", c = "Second question?";
  const Json user_a = {{"role", "user"}, {"content", a}}, assistant_b = {{"role", "assistant"}, {"content", b}}, user_c = {{"role", "user"}, {"content", c}};
  SH_ASSIGN(const std::string two, render(engine, Json::array({user_a, assistant_b}), false));
  SH_ASSIGN(const std::string three, render(engine, Json::array({user_a, assistant_b, user_c}), true));
  const size_t b_in_two = two.rfind(b), b_in_three = three.rfind(b), c_in_three = three.rfind(c);
  if (b_in_two == std::string::npos || b_in_three == std::string::npos || c_in_three == std::string::npos || c_in_three < b_in_three)
    return Error{ErrorKind::unsupported, "the model's chat template does not show where a user turn begins and ends, so no study conversation can be "
                                         "opened; use another source of reference queries"};
  const std::string close = two.substr(b_in_two + b.size());
  const std::string between = three.substr(b_in_three + b.size(), c_in_three - b_in_three - b.size());
  const std::vector<int32_t> user_close = encode(engine, three.substr(c_in_three + c.size()));
  if (between.starts_with(close)) return TurnTokens{encode(engine, close), encode(engine, between.substr(close.size())), user_close};
  // The template ends the last turn differently (Phi 3.5, Command R): what closes an open turn is what both have in common.
  const std::vector<int32_t> close_ids = encode(engine, close), between_ids = encode(engine, between);
  const auto open_begin = std::mismatch(close_ids.begin(), close_ids.end(), between_ids.begin(), between_ids.end()).second;
  return TurnTokens{{between_ids.begin(), open_begin}, {open_begin, between_ids.end()}, user_close};
}

Result<QuerySets> repeat_prefill(Engine& engine, const SequenceCache& sequence, std::span<const int32_t> ids, int64_t max_bytes,
                                 const std::atomic<bool>* cancel, StudyStats* stats) {
  const Stopwatch watch;
  SH_ASSIGN(const TurnTokens turn, turn_tokens(engine));
  std::vector<int32_t> opening = opening_tokens(engine, turn, ids);
  const std::vector<int32_t> instruction = encode(engine, kRepeatInstruction);
  opening.insert(opening.end(), instruction.begin(), instruction.end());
  opening.insert(opening.end(), turn.user_close.begin(), turn.user_close.end());

  QueryCapture capture(engine.model(), engine.kv_layout(), max_bytes);
  SequenceCache base = sequence.fork();
  SH_RETURN_IF_ERROR(engine.prefill(base, opening));
  int64_t n_fed = static_cast<int64_t>(opening.size());
  const auto n = static_cast<int64_t>(ids.size());
  const int64_t n_ubatch = engine.options().n_ubatch;
  for (int64_t piece = 0; piece < n; piece += kRepeatPiece) {
    SequenceCache fork = base.fork();
    const int64_t end = std::min(n, piece + kRepeatPiece);
    for (int64_t at = std::max<int64_t>(0, piece - kRepeatLeadIn); at < end; at += n_ubatch) {
      if (is_cancelled(cancel)) return cancelled_error();
      const int64_t n_step = std::min(n_ubatch, end - at);
      const StepItem item{&fork, ids.subspan(static_cast<size_t>(at), static_cast<size_t>(n_step))};
      SH_RETURN_IF_ERROR(run_step(engine, std::span(&item, 1), capture));
      n_fed += n_step;
    }
  }
  if (stats != nullptr) {
    stats->n_tokens = n_fed;
    stats->seconds = watch.seconds();
  }
  return capture.take();
}

namespace {

/// Takes the sampled token of a conversation and decides what it does next.
void advance(Engine& engine, Conversation& c, std::span<const float> logits, const TurnTokens& turn, const SelfStudyOptions& options,
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

Result<QuerySets> self_study(Engine& engine, const SequenceCache& sequence, std::span<const int32_t> ids, const SelfStudyOptions& options,
                             int64_t max_bytes, const std::atomic<bool>* cancel, const std::function<void(double)>& on_progress,
                             StudyStats* stats) {
  const Stopwatch watch;
  SH_RETURN_IF_ERROR(check_study(options));
  SH_ASSIGN(const TurnTokens turn, turn_tokens(engine));
  QueryCapture capture(engine.model(), engine.kv_layout(), max_bytes);
  SequenceCache base = sequence.fork();
  const std::vector<int32_t> opening = opening_tokens(engine, turn, ids);
  SH_ASSIGN(const Mat<float> first_logits, engine.prefill(base, opening));

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
    std::vector<Conversation> wave;
    for (int64_t i = 0; i < width; ++i) {
      SH_ASSIGN(sampling::Sampler sampler, sampling::Sampler::create(sampling, static_cast<uint64_t>(n_started + i)));
      wave.push_back({.cache = base.fork(), .sampler = std::move(sampler)});
      advance(engine, wave.back(), std::span(first_logits.row(0), static_cast<size_t>(first_logits.cols)), turn, options, asked);
    }
    for (;;) {
      if (is_cancelled(cancel)) return cancelled_error();
      std::vector<StepItem> items;
      std::vector<Conversation*> stepping;
      int64_t n_step = 0;
      for (Conversation& c : wave) {
        const bool is_too_much = !items.empty() && n_step + static_cast<int64_t>(c.next.size()) > engine.options().n_ubatch;
        if (c.is_done || is_too_much) continue;
        n_step += static_cast<int64_t>(c.next.size());
        items.push_back({&c.cache, c.next});
        stepping.push_back(&c);
      }
      if (items.empty()) break;
      SH_ASSIGN(const Mat<float> logits, run_step(engine, items, capture));
      n_tokens += n_step;
      for (size_t i = 0; i < stepping.size(); ++i)
        advance(engine, *stepping[i], std::span(logits.row(static_cast<int64_t>(i)), static_cast<size_t>(logits.cols)), turn, options, asked);
    }
    if (stats != nullptr)
      for (const Conversation& c : wave) {
        std::string& question = stats->questions.emplace_back();
        for (const int32_t id : c.question) question += engine.tokenizer().piece(id, false);
      }
    n_started += static_cast<int32_t>(width);
    if (on_progress) on_progress(static_cast<double>(n_started) / options.n_conversations);
  }
  if (stats != nullptr) {
    stats->n_conversations = n_started;
    stats->n_tokens = n_tokens;
    stats->seconds = watch.seconds();
  }
  return capture.take();
}

}  // namespace sh::engine
