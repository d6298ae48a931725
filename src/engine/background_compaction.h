// SPDX-License-Identifier: MIT
// A compaction beside the conversations: it works on a snapshot, with threads of its own at low priority.
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <thread>

#include "base/clock.h"
#include "engine/conversation.h"

namespace sh::engine {

/// The stage of a compaction that has not begun: another one runs, or the prompt is still being read.
inline constexpr const char* kWaitingStage = "waiting";

/// How far a compaction is, over all its stages.
struct CompactionProgressStatus {
  std::string method;
  std::string stage = kWaitingStage;  // then what compact_sequence() reports
  double stage_fraction = 0;
  double fraction = 0;  // of the whole, never falls; stages count by the time that they usually take
  double seconds = 0;   // since it left the queue
  bool is_automatic = false;
};

/// One compaction from its order to its end. The scheduler's thread owns all of it except while the worker has it:
/// then `cancel` and `progress` serve both sides, and the rest is the worker's.
class CompactionJob {
 public:
  CompactionJob(std::string method, bool automatic) : is_automatic(automatic), method_(std::move(method)) {}

  uint64_t id = 0;
  int32_t id_slot = 0;
  uint64_t slot_generation = 0;  // of the conversation that was meant
  CompactionRequest request;
  std::function<void(Result<CompactionReport>)> on_done;  // empty for automatic ones

  const bool is_automatic;
  // Of automatic ones, whose `request` is made when they leave the queue.
  uint64_t id_task = 0;  // the request that filled the cache
  AutomaticLimits limits;

  // Set when it leaves the queue.
  std::optional<Conversation::Snapshot> snapshot;  // compacted in place by the worker
  int64_t boundary = 0;     // before this position the conversation still is what the snapshot was
  int64_t region_end = 0;   // nothing behind it is compacted
  std::string drop_reason;  // why nobody wants the result any more

  std::optional<Result<CompactionReport>> result;  // set by the worker
  std::atomic<bool> cancel{false};

  /// Threads: any.
  CompactionProgressStatus progress() const;
  void begin_progress();
  void note_progress(const char* stage, double fraction);

 private:
  const std::string method_;
  mutable std::mutex mutex_;
  std::optional<Stopwatch> watch_;
  std::string stage_ = kWaitingStage;
  double stage_fraction_ = 0, fraction_ = 0;
};

/// The thread that compacts snapshots, one at a time. Its executor is made with the first job.
class BackgroundCompactor {
 public:
  /// `on_finished` is called on the worker's thread whenever a job can be taken back.
  BackgroundCompactor(Engine& engine, std::function<void()> on_finished);
  ~BackgroundCompactor();  // cancels the job that runs and waits for it

  /// Neither a job that runs nor one that was not taken back.
  bool is_idle() const;
  /// Needs: is_idle(), and a snapshot in the job.
  void start(std::shared_ptr<CompactionJob> job);
  /// The job that has its result, or null.
  std::shared_ptr<CompactionJob> take_finished();
  /// Ends the thread; a job that ran is to be taken back then.
  void stop();

 private:
  void loop();

  Engine& engine_;
  const std::function<void()> on_finished_;
  mutable std::mutex mutex_;
  std::condition_variable wake_;
  std::shared_ptr<CompactionJob> job_;
  bool is_finished_ = false, is_stopping_ = false;
  std::thread thread_;
};

}  // namespace sh::engine
