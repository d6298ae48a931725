// SPDX-License-Identifier: MIT
// Several conversations in one batch: slots, prefix reuse, continuous batching, automatic compaction. Runs on a
// thread of its own; all public members may be called from any thread. Callbacks run on the scheduler's thread and
// must return quickly.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "base/result.h"
#include "engine/compact_sequence.h"
#include "engine/engine.h"
#include "engine/stop_reason.h"
#include "sampling/sampler.h"

namespace sh::engine {

struct GenerationRequest {
  std::vector<int32_t> prompt;  // token ids, special tokens included
  sampling::SamplingParams sampling;
  int64_t n_predict = -1;  // -1: until the end of the turn or of the context
  std::vector<std::string> stop;
  bool ignore_eos = false;
  bool cache_prompt = true;
  int32_t id_slot = -1;  // -1: best match
  int32_t n_probs = 0;   // log-probabilities of that many alternatives for each token
  int64_t n_keep =
      0;  // prompt tokens at the start that an automatic compaction leaves alone; -1: the whole prompt
  bool renders_special = false;  // control tokens appear in the text
};

struct TokenProbs {
  int32_t id;
  float logprob;                               // of the token that was taken, full vocabulary
  std::vector<std::pair<int32_t, float>> top;  // the n_probs largest: id, log-probability
};

struct Timings {
  int64_t cache_n = 0;   // prompt tokens that were in the cache already
  int64_t prompt_n = 0;  // prompt tokens evaluated
  double prompt_ms = 0;
  int64_t predicted_n = 0;
  double predicted_ms = 0;
};

/// A compaction that happened while a request ran; part of the response.
struct CompactionEvent {
  CompactionReport report;
  bool is_automatic = true;
};

/// One piece of a generation, in order. The last has is_final.
struct GenerationEvent {
  std::string text;                 // complete UTF-8, stop strings held back; may be empty
  std::vector<int32_t> ids;         // tokens that this piece covers
  std::vector<TokenProbs> probs;    // one an id when asked
  bool is_prompt_progress = false;  // only n_prompt_done / n_prompt mean something
  int64_t n_prompt = 0, n_prompt_done = 0;
  int32_t id_slot = -1;
  bool is_final = false;
  StopReason stop_reason = StopReason::none;
  std::string stopping_word;
  std::optional<Error> error;  // with StopReason::failed
  Timings timings;
  bool is_truncated = false;  // tokens were dropped (never by a compaction)
  int64_t n_logical = 0;      // of the conversation, after this piece
  double n_physical = 0;
  int64_t kv_bytes = 0;
  std::vector<CompactionEvent> compactions;  // since the last piece
};

struct SlotStatus {
  int32_t id = 0;
  bool is_processing = false;
  uint64_t id_task = 0;
  int64_t n_ctx = 0;
  int64_t n_prompt = 0, n_prompt_processed = 0, n_prompt_cache = 0, n_decoded = 0, n_remain = -1;
  int64_t n_logical = 0;
  kv::CacheUsage usage;
  std::optional<CompactionReport> last_compaction;
};

struct SchedulerTotals {
  int64_t prompt_tokens = 0, predicted_tokens = 0, n_decode_calls = 0, n_busy_slots_sum = 0;
  double prompt_seconds = 0, predicted_seconds = 0;
  int64_t n_compactions = 0, n_compaction_failures = 0;
  double compaction_seconds = 0;
  int64_t n_tokens_max = 0;
  int64_t requests_processing = 0, requests_deferred = 0;
};

class Scheduler {
 public:
  explicit Scheduler(Engine& engine);
  ~Scheduler();  // cancels what runs

  /// Queues a generation; an id_slot behind the last slot wraps round, as in llama.cpp. Errors before anything
  /// runs: invalid_argument (bad parameters), context_exceeded (the prompt does not fit; see n_prompt and n_ctx in
  /// the message).
  Result<uint64_t> submit(GenerationRequest request, std::function<void(const GenerationEvent&)> on_event);
  /// The request ends with StopReason::cancelled before its next token. Unknown ids are ignored.
  void cancel(uint64_t id_task);
  /// Compacts a slot between two steps; waits while the slot is busy generating. Errors arrive through the
  /// callback: not_found (slot), invalid_argument (empty slot, ratio), cancelled (the scheduler ends first), what
  /// compact_sequence() says.
  void compact(int32_t id_slot, CompactionRequest request, std::function<void(Result<CompactionReport>)> on_done);
  void erase_slot(int32_t id_slot, std::function<void(Result<int64_t>)> on_done);

  std::vector<SlotStatus> slots() const;  // a snapshot of the last step
  SchedulerTotals totals() const;
  Engine& engine();

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace sh::engine
