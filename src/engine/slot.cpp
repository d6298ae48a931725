// SPDX-License-Identifier: MIT
#include "engine/slot.h"

#include <algorithm>

#include "base/log.h"
#include "engine/background_compaction.h"

namespace sh::engine {

namespace {

constexpr size_t kMaxSpans = 100;
constexpr size_t kMaxExcerptCharacters = 80;

bool continues_character(char c) {
  return (static_cast<unsigned char>(c) & 0xC0) == 0x80;
}

/// The first whole characters of a span's text.
std::string excerpt(const tokenizer::Tokenizer& tokenizer, std::span<const int32_t> ids) {
  // A character has four bytes at most, so that this much text is enough for the count below.
  std::string text;
  for (const int32_t id : ids) {
    if (text.size() > 4 * kMaxExcerptCharacters) break;
    text += tokenizer.piece(id, true);
  }
  size_t begin = 0;
  while (begin < text.size() && continues_character(text[begin])) ++begin;
  size_t n_characters = 0, end = begin;
  for (; end < text.size(); ++end)
    if (!continues_character(text[end]) && ++n_characters > kMaxExcerptCharacters) break;
  return text.substr(begin, end - begin);
}

std::vector<CompactionRecord::Excerpt> excerpts(const tokenizer::Tokenizer& tokenizer,
                                                std::span<const int32_t> tokens, const std::vector<Span>& spans) {
  std::vector<CompactionRecord::Excerpt> out;
  for (const Span& span : spans) {
    if (out.size() == kMaxSpans) break;
    const auto end = static_cast<size_t>(std::clamp<int64_t>(span.end, 0, std::ssize(tokens)));
    const auto begin = std::min(end, static_cast<size_t>(std::max<int64_t>(span.begin, 0)));
    out.push_back({span, excerpt(tokenizer, tokens.subspan(begin, end - begin))});
  }
  return out;
}

}  // namespace

Slot::Slot(Engine& engine, int32_t id) : conversation(engine, true), engine_(engine), id_(id) {}

int64_t Slot::n_shared(const std::vector<int32_t>& prompt) const {
  if (prompt.empty()) return 0;
  const std::vector<int32_t>& tokens = conversation.tokens();
  const auto n = static_cast<std::ptrdiff_t>(std::min(prompt.size() - 1, tokens.size()));
  return std::mismatch(prompt.begin(), prompt.begin() + n, tokens.begin()).first - prompt.begin();
}

int64_t Slot::usable_prefix(const std::vector<int32_t>& prompt) const {
  const int64_t n_common = n_shared(prompt);
  const bool cuts_compacted_rows =
      n_common < conversation.n_tokens() && n_common < conversation.n_compacted_tokens();
  return cuts_compacted_rows ? 0 : n_common;
}

void Slot::start(std::unique_ptr<Run> new_run, uint64_t clock) {
  run = std::move(new_run);
  last_used = clock;
  int64_t n_shared = run->task.request.cache_prompt ? usable_prefix(run->task.request.prompt) : 0;
  if (n_shared == 0 || !conversation.truncate(n_shared).ok()) {
    clear();
    n_shared = 0;
  }
  if (n_shared == 0) conversation.set_first_prompt(static_cast<int64_t>(run->task.request.prompt.size()));
  run->compactions.swap(untold_);
  conversation.forget_last_attempt();
  run->n_prompt_done = run->n_prompt_cached = n_shared;
}

void Slot::clear() {
  conversation.clear();
  last_compaction.reset();
  compaction_failure.clear();
  untold_.clear();
  ++generation;
}

void Slot::note_compaction(const CompactionJob& job, const Result<CompactionReport>& result) {
  if (job.is_automatic) conversation.note_attempt();
  if (!result.ok()) {
    compaction_failure = result.error().message;
    if (job.is_automatic && conversation.is_news(result.error()))
      log_warning("slot {}: not compacted: {}", id_, compaction_failure);
    return;
  }
  compaction_failure.clear();
  const tokenizer::Tokenizer& tokenizer = engine_.tokenizer();
  last_compaction = std::make_shared<const CompactionRecord>(
      CompactionRecord{.report = *result,
                       .is_automatic = job.is_automatic,
                       .kept = excerpts(tokenizer, conversation.tokens(), result->kept_verbatim),
                       .condensed = excerpts(tokenizer, conversation.tokens(), result->condensed)});
  if (run)
    run->compactions.push_back({.report = *result, .is_automatic = job.is_automatic});
  else if (job.is_automatic)
    untold_.push_back({.report = *result, .is_automatic = true});
  log_info(
      "slot {}: compacted {} tokens, {:.0f} -> {:.0f} rows a head{} ({:.2f}x of all bytes) by {} in {:.2f} s, "
      "held-out error {:.4f} (unfitted {:.4f})",
      id_, result->n_logical, result->rows_before, result->rows_after, shortfall_text(*result), result->real_ratio,
      result->method, result->total_seconds, result->heldout_fitted, result->heldout_plain);
}

SlotStatus Slot::status(const Engine& engine) const {
  SlotStatus s{.id = id_,
               .is_processing = is_busy(),
               .n_ctx = engine.n_ctx_logical(),
               .n_logical = conversation.n_tokens(),
               .last_compaction = last_compaction,
               .compaction_failure = compaction_failure};
  if (run) {
    s.id_task = run->task.id;
    s.n_prompt = static_cast<int64_t>(run->task.request.prompt.size());
    s.n_prompt_processed = run->n_prompt_done - run->n_prompt_cached;
    s.n_prompt_cache = run->n_prompt_cached;
    s.n_decoded = run->n_decoded;
    if (run->task.request.n_predict >= 0) s.n_remain = run->task.request.n_predict - run->n_decoded;
  }
  s.usage = conversation.cache().usage();
  return s;
}

}  // namespace sh::engine
