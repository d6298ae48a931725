// SPDX-License-Identifier: MIT
// One place of the scheduler: a conversation and the request that runs on it.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "base/clock.h"
#include "chat/stop_matcher.h"
#include "engine/conversation.h"
#include "engine/scheduler.h"
#include "sampling/sampler.h"

namespace sh::engine {

using EventSink = std::function<void(const GenerationEvent&)>;

/// A request that waits or runs.
struct Task {
  uint64_t id = 0;
  GenerationRequest request;
  EventSink on_event;
};

/// A task on its slot.
struct Run {
  Task task;
  sampling::Sampler sampler;
  chat::StopMatcher stop;
  int64_t n_prompt_done = 0;    // prompt tokens that are in the cache
  int64_t n_prompt_cached = 0;  // of them, found there
  std::optional<int32_t> next;  // sampled, not yet fed
  int64_t n_decoded = 0;
  Stopwatch prompt_watch;
  double prompt_seconds = 0;
  Stopwatch decode_watch;
  std::vector<CompactionEvent> compactions;  // not yet told
  bool has_compacted_turn = false;           // delayed mode: this turn's attempt was made
  int64_t last_step = 0;                     // the last forward that had a token of it
  bool is_prompt_done() const { return n_prompt_done == static_cast<int64_t>(task.request.prompt.size()); }
};

class Slot {
 public:
  Slot(Engine& engine, int32_t id);

  int32_t id() const { return id_; }
  bool is_busy() const { return run != nullptr; }
  /// First tokens of `prompt`, without its last, that are those of the conversation.
  int64_t n_shared(const std::vector<int32_t>& prompt) const;
  /// Tokens of `prompt` that this slot's cache can serve: at most all but the last, whose logits are needed, and 0
  /// when the cache would have to be cut back into rows that a compaction wrote.
  int64_t usable_prefix(const std::vector<int32_t>& prompt) const;
  /// Starts a task: cuts the cache back to what the prompt shares with it, or clears it when the shared part was
  /// compacted away.
  void start(std::unique_ptr<Run> new_run, uint64_t clock);
  void clear();
  /// Keeps, tells and logs what came of a compaction of the conversation.
  void note_compaction(const CompactionJob& job, const Result<CompactionReport>& result);
  /// Whether the request that runs cannot go on before the compaction is through.
  bool waits_for_compaction() const { return run && compaction && conversation.rows_left() == 0; }
  SlotStatus status(const Engine& engine) const;

  Conversation conversation;
  std::unique_ptr<Run> run;
  std::shared_ptr<CompactionJob> compaction;                // waits or runs
  std::shared_ptr<const CompactionRecord> last_compaction;  // of this conversation
  std::string compaction_failure;                           // why the last attempt failed; "": it did not
  uint64_t generation = 0;                                  // how many conversations came before this one
  uint64_t last_used = 0;

 private:
  std::vector<CompactionEvent> untold_;  // automatic ones that ended after their request: for the next one
  const Engine& engine_;
  int32_t id_;
};

}  // namespace sh::engine
