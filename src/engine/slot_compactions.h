// SPDX-License-Identifier: MIT
// Compactions of slots: ordered one behind the other, run in the background, swapped in between two steps.
#pragma once

#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <span>
#include <string>

#include "engine/background_compaction.h"
#include "engine/slot.h"

namespace sh::engine {

/// Threads: the scheduler's; `on_finished` is called on the worker's.
class SlotCompactions {
 public:
  struct Hooks {
    std::function<void()> on_finished;  // advance() has something to do
    /// Gives up the cache of an idle slot; false when there is none.
    std::function<bool()> make_room;
    /// A compaction of the slot's present conversation ended; the slot knows it already.
    std::function<void(Slot&, const CompactionJob&, const Result<CompactionReport>&)> on_settled;
  };
  SlotCompactions(Engine& engine, std::span<const std::unique_ptr<Slot>> slots, Hooks hooks);

  /// Queues a compaction of the conversation that the slot holds now. A slot that is being compacted refuses.
  void order(Slot& slot, std::shared_ptr<CompactionJob> job);
  /// Swaps in what is ready and starts what can start.
  void advance();
  /// After the slot's conversation was cut back or replaced: a compaction that no longer fits is dropped.
  void check(Slot& slot);
  /// The slot's compaction, if there is one, ends with ErrorKind::cancelled for this reason.
  bool drop(Slot& slot, const std::string& reason);
  bool cancel(uint64_t id_job);
  bool is_running() const { return running_ != nullptr; }
  struct Counts {
    int64_t n_done = 0, n_failed = 0;  // what was cancelled or dropped has failed
    double seconds = 0;                // of those done
  };
  const Counts& counts() const { return counts_; }
  /// Ends the worker; all compactions end with ErrorKind::cancelled.
  void stop();

 private:
  Slot& slot_of(const CompactionJob& job) const { return *slots_[static_cast<size_t>(job.id_slot)]; }
  /// Takes the snapshot. Errors: nothing can be compacted.
  Result<void> prepare(Slot& slot, CompactionJob& job);
  void settle(std::shared_ptr<CompactionJob> job);
  Result<CompactionReport> swap_in(Slot& slot, CompactionJob& job, CompactionReport report);
  void count(const Result<CompactionReport>& result);
  void end(Slot& slot, const std::shared_ptr<CompactionJob>& job, Result<CompactionReport> result);

  Engine& engine_;
  std::span<const std::unique_ptr<Slot>> slots_;
  Hooks hooks_;
  std::deque<std::shared_ptr<CompactionJob>> queue_;
  std::shared_ptr<CompactionJob> running_;
  Counts counts_;
  BackgroundCompactor compactor_;
};

}  // namespace sh::engine
