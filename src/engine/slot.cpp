// SPDX-License-Identifier: MIT
#include "engine/slot.h"

#include <algorithm>

namespace sh::engine {

Slot::Slot(Engine& engine, int32_t id) : cache(engine.block_pool()), id_(id) {
  if (engine.options().capture_bytes > 0)
    capture = std::make_unique<QueryCapture>(engine.model(), engine.kv_layout(), engine.options().capture_bytes);
}

int64_t Slot::usable_prefix(const std::vector<int32_t>& prompt) const {
  if (prompt.empty()) return 0;
  const auto n = static_cast<std::ptrdiff_t>(std::min(prompt.size() - 1, tokens.size()));
  const int64_t n_common = std::mismatch(prompt.begin(), prompt.begin() + n, tokens.begin()).first - prompt.begin();
  return n_common < n_logical() && kv::Pos(n_common) < cache.compacted_end() ? 0 : n_common;
}

void Slot::start(std::unique_ptr<Run> new_run, uint64_t clock) {
  run = std::move(new_run);
  last_used = clock;
  const auto& prompt = run->task.request.prompt;
  int64_t n_shared = run->task.request.cache_prompt ? usable_prefix(prompt) : 0;
  if (n_shared < n_logical()) {
    if (n_shared > 0 && cache.truncate(kv::Pos(n_shared)).ok()) {
      tokens.resize(static_cast<size_t>(n_shared));
      if (capture) capture->truncate(kv::Pos(n_shared));
      recount();
    } else {
      clear();
      n_shared = 0;
    }
  }
  run->n_prompt_done = run->n_prompt_cached = n_shared;
}

void Slot::clear() {
  cache.clear();
  tokens.clear();
  if (capture) capture->clear();
  last_compaction.reset();
  recount();
}

void Slot::recount() {
  physical_base_ = cache.usage().n_physical;
  logical_base_ = n_logical();
}

SlotStatus Slot::status(const Engine& engine) const {
  SlotStatus s{.id = id_, .is_processing = is_busy(), .n_ctx = engine.n_ctx_logical(), .n_logical = n_logical(), .last_compaction = last_compaction};
  if (run) {
    s.id_task = run->task.id;
    s.n_prompt = static_cast<int64_t>(run->task.request.prompt.size());
    s.n_prompt_processed = run->n_prompt_done - run->n_prompt_cached;
    s.n_prompt_cache = run->n_prompt_cached;
    s.n_decoded = run->n_decoded;
    if (run->task.request.n_predict >= 0) s.n_remain = run->task.request.n_predict - run->n_decoded;
  }
  s.usage = cache.usage();
  return s;
}

}  // namespace sh::engine
