// SPDX-License-Identifier: MIT
#include "engine/slot.h"

#include <algorithm>

namespace sh::engine {

Slot::Slot(Engine& engine, int32_t id) : conversation(engine, true), id_(id) {}

int64_t Slot::usable_prefix(const std::vector<int32_t>& prompt) const {
  if (prompt.empty()) return 0;
  const std::vector<int32_t>& tokens = conversation.tokens();
  const auto n = static_cast<std::ptrdiff_t>(std::min(prompt.size() - 1, tokens.size()));
  const int64_t n_common =
      std::mismatch(prompt.begin(), prompt.begin() + n, tokens.begin()).first - prompt.begin();
  const bool cuts_compacted_rows =
      n_common < conversation.n_tokens() && kv::Pos(n_common) < conversation.cache().compacted_end();
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
  conversation.forget_last_attempt();
  run->n_prompt_done = run->n_prompt_cached = n_shared;
}

void Slot::clear() {
  conversation.clear();
  last_compaction.reset();
}

SlotStatus Slot::status(const Engine& engine) const {
  SlotStatus s{.id = id_,
               .is_processing = is_busy(),
               .n_ctx = engine.n_ctx_logical(),
               .n_logical = conversation.n_tokens(),
               .last_compaction = last_compaction};
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
