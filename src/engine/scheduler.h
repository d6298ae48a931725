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

#include "base/clock.h"
#include "base/result.h"
#include "engine/background_compaction.h"
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
  // Prompt tokens at the start that an automatic compaction leaves alone; -1: the conversation's first prompt.
  int64_t n_keep = 0;
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
  int64_t n_rebases = 0;                     // how often its positions were given anew
  std::vector<CompactionEvent> compactions;  // since the last piece
};

/// What a compaction did to a conversation, with the text that it is about.
struct CompactionRecord {
  struct Excerpt {
    Span span;
    std::string text;  // its beginning, 80 characters at most
  };
  CompactionReport report;
  bool is_automatic = false;
  std::vector<Excerpt> kept, condensed;  // the first 100 spans of the report
};

struct SlotStatus {
  int32_t id = 0;
  bool is_processing = false;
  uint64_t id_task = 0;
  int64_t n_ctx = 0;
  int64_t n_prompt = 0, n_prompt_processed = 0, n_prompt_cache = 0, n_decoded = 0, n_remain = -1;
  int64_t n_logical = 0;
  kv::CacheUsage usage;
  std::optional<CompactionProgressStatus> compaction;       // while one waits or runs; as of now
  std::shared_ptr<const CompactionRecord> last_compaction;  // of this conversation, or null
  std::string compaction_failure;                           // of the last attempt; "": it did not fail
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
  /// `clock_us`: what steps are timed by, microseconds; for tests.
  explicit Scheduler(Engine& engine, std::function<int64_t()> clock_us = now_us);
  ~Scheduler();  // cancels what runs

  /// Queues a generation. Errors before anything runs: invalid_argument (bad parameters, no such slot),
  /// context_exceeded (the prompt does not fit; see n_prompt and n_ctx in the message).
  Result<uint64_t> submit(GenerationRequest request, std::function<void(const GenerationEvent&)> on_event);
  /// Ends a request with StopReason::cancelled before its next token, together with the automatic compaction that
  /// it began, or a compaction. Unknown ids are ignored.
  void cancel(uint64_t id);
  /// The same with everything that was submitted or ordered so far: the program is about to end.
  void cancel_all();
  /// The same with compactions alone that were ordered by compact(): requests that run go on.
  void cancel_compactions();
  /// Compacts what a slot holds, in the background: all conversations go on, this one too, and what it says
  /// meanwhile stays as it is. One compaction runs at a time, others wait; one of a conversation that is being
  /// read waits for the end of its prompt. Gives an id for cancel(); 0 when it was refused at once. Errors arrive
  /// through the callback: invalid_argument (slot, empty slot, ratio), busy (the slot is already being
  /// compacted), cancelled (by someone, by the end of the scheduler, or because the conversation that was
  /// compacted is gone), what compact_sequence() says. Nothing has changed then.
  uint64_t compact(int32_t id_slot, CompactionRequest request,
                   std::function<void(Result<CompactionReport>)> on_done);
  /// Ends a slot's compaction, whoever asked for it; gives whether there was one. Errors: invalid_argument (slot),
  /// cancelled.
  void cancel_compaction(int32_t id_slot, std::function<void(Result<bool>)> on_done);
  void erase_slot(int32_t id_slot, std::function<void(Result<int64_t>)> on_done);

  std::vector<SlotStatus> slots() const;  // as of the last step; compactions as of now
  SchedulerTotals totals() const;
  Engine& engine();

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace sh::engine
