// SPDX-License-Identifier: MIT
#include "engine/background_compaction.h"

#include <algorithm>
#include <array>
#include <string_view>

namespace sh::engine {

namespace {

/// Where a stage lies in the whole. A self-study is most of a compaction that has one, and the fits of one that
/// has none; a stage that is not named here leaves the whole where it is.
struct StageShare {
  std::string_view stage;
  double begin, end;
};
constexpr std::array<StageShare, 5> kStages = {
    {{"queries", 0.0, 0.6}, {"solve", 0.6, 0.9}, {"check", 0.9, 0.99}, {"swap", 0.99, 1.0}, {"done", 1.0, 1.0}}};

}  // namespace

CompactionProgressStatus CompactionJob::progress() const {
  std::lock_guard lock(mutex_);
  return {.method = method_,
          .stage = stage_,
          .stage_fraction = stage_fraction_,
          .fraction = fraction_,
          .seconds = watch_ ? watch_->seconds() : 0,
          .is_automatic = is_automatic};
}

void CompactionJob::begin_progress() {
  std::lock_guard lock(mutex_);
  watch_.emplace();
  stage_ = "snapshot";
}

void CompactionJob::note_progress(const char* stage, double fraction) {
  std::lock_guard lock(mutex_);
  stage_ = stage;
  stage_fraction_ = std::clamp(fraction, 0.0, 1.0);
  for (const StageShare& share : kStages)
    if (share.stage == stage_)
      fraction_ = std::max(fraction_, share.begin + stage_fraction_ * (share.end - share.begin));
}

BackgroundCompactor::BackgroundCompactor(Engine& engine, std::function<void()> on_finished)
    : engine_(engine), on_finished_(std::move(on_finished)), thread_([this] { loop(); }) {}

BackgroundCompactor::~BackgroundCompactor() {
  stop();
}

bool BackgroundCompactor::is_idle() const {
  std::lock_guard lock(mutex_);
  return job_ == nullptr;
}

void BackgroundCompactor::start(std::shared_ptr<CompactionJob> job) {
  std::lock_guard lock(mutex_);
  SH_CHECK(job_ == nullptr && job->snapshot.has_value(), "one compaction at a time");
  job_ = std::move(job);
  wake_.notify_all();
}

std::shared_ptr<CompactionJob> BackgroundCompactor::take_finished() {
  std::lock_guard lock(mutex_);
  if (!is_finished_) return nullptr;
  is_finished_ = false;
  return std::move(job_);
}

void BackgroundCompactor::stop() {
  if (!thread_.joinable()) return;
  {
    std::lock_guard lock(mutex_);
    is_stopping_ = true;
    if (job_) job_->cancel.store(true);
  }
  wake_.notify_all();
  thread_.join();
}

void BackgroundCompactor::loop() {
  enter_background_priority();
  std::unique_ptr<Executor> executor;
  for (;;) {
    CompactionJob* job = nullptr;
    {
      std::unique_lock lock(mutex_);
      wake_.wait(lock, [&] { return is_stopping_ || (job_ && !is_finished_); });
      if (is_stopping_) return;
      job = job_.get();
    }
    if (!executor)
      executor =
          std::make_unique<Executor>(engine_, engine_.thread_pool().n_threads(), ThreadPriority::background);
    Conversation::Snapshot& snapshot = *job->snapshot;
    job->result = compact_sequence(
        *executor, snapshot.cache, snapshot.tokens, snapshot.captured.get(), job->request, &job->cancel,
        [&](const char* stage, double fraction) { job->note_progress(stage, fraction); });
    if (!job->result->ok()) job->snapshot.reset();  // its memory is given back here, not between two steps
    {
      std::lock_guard lock(mutex_);
      is_finished_ = true;
    }
    on_finished_();
  }
}

}  // namespace sh::engine
