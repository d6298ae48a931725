// SPDX-License-Identifier: MIT
#include "engine/slot_compactions.h"

#include <fmt/format.h>

#include <algorithm>

#include "engine/region_plan.h"

namespace sh::engine {

namespace {

void answer(const CompactionJob& job, Result<CompactionReport> result) {
  if (job.on_done) job.on_done(std::move(result));
}

Error dropped(const CompactionJob& job) {
  return {ErrorKind::cancelled, fmt::format("the compaction was dropped: {}", job.drop_reason)};
}

}  // namespace

SlotCompactions::SlotCompactions(Engine& engine, std::span<const std::unique_ptr<Slot>> slots, Hooks hooks)
    : engine_(engine), slots_(slots), hooks_(std::move(hooks)), compactor_(engine, hooks_.on_finished) {}

void SlotCompactions::order(Slot& slot, std::shared_ptr<CompactionJob> job) {
  if (slot.compaction) {
    const CompactionProgressStatus now = slot.compaction->progress();
    return answer(*job,
                  Error{ErrorKind::busy,
                        fmt::format("slot {} is already compacting (by '{}', {}, {:.0f} % done); wait for it "
                                    "or end it with POST /slots/{}?action=cancel-compaction",
                                    slot.id(), now.method, now.stage, now.fraction * 100, slot.id())});
  }
  job->id_slot = slot.id();
  job->slot_generation = slot.generation;
  slot.compaction = job;
  queue_.push_back(std::move(job));
}

Result<void> SlotCompactions::prepare(Slot& slot, CompactionJob& job) {
  Conversation& conversation = slot.conversation;
  if (job.is_automatic) {
    SH_ASSIGN(job.request, conversation.automatic_request(job.limits));
  }
  SH_ASSIGN(const compaction::CompactionMethod method, method_of(job.request));
  SH_ASSIGN(const Region region, plan_region(conversation.cache(), method, job.request));
  job.boundary = conversation.cache().next_pos().value;
  job.region_end = std::max(region.end, conversation.cache().compacted_end()).value;
  job.snapshot.emplace(conversation.snapshot(job.request));
  job.begin_progress();
  return {};
}

void SlotCompactions::advance() {
  if (auto job = compactor_.take_finished()) settle(std::move(job));
  while (!running_) {
    // What was asked of a conversation that is being read is meant for all of it; an automatic compaction cannot
    // wait for the end.
    const auto ready = std::find_if(queue_.begin(), queue_.end(), [&](const auto& job) {
      const Slot& slot = slot_of(*job);
      return job->is_automatic || !slot.run || slot.run->is_prompt_done();
    });
    if (ready == queue_.end()) return;
    const std::shared_ptr<CompactionJob> job = *ready;
    queue_.erase(ready);
    Slot& slot = slot_of(*job);
    if (const auto prepared = prepare(slot, *job); !prepared.ok()) {
      end(slot, job, prepared.error());
      continue;
    }
    running_ = job;
    compactor_.start(job);
  }
}

void SlotCompactions::settle(std::shared_ptr<CompactionJob> job) {
  running_.reset();
  Slot& slot = slot_of(*job);
  if (slot.compaction != job) return answer(*job, dropped(*job));  // counted when it was dropped
  Result<CompactionReport> result = std::move(*job->result);
  if (result.ok()) return end(slot, job, swap_in(slot, *job, std::move(*result)));
  if (result.error().kind == ErrorKind::out_of_memory && hooks_.make_room()) {
    job->result.reset();
    queue_.push_front(std::move(job));
    return;
  }
  end(slot, job, std::move(result));
}

Result<CompactionReport> SlotCompactions::swap_in(Slot& slot, CompactionJob& job, CompactionReport report) {
  kv::SequenceCache& compacted = job.snapshot->cache;
  Result<void> adopted = slot.conversation.adopt(compacted, job.boundary);
  while (!adopted.ok() && adopted.error().kind == ErrorKind::out_of_memory && hooks_.make_room())
    adopted = slot.conversation.adopt(compacted, job.boundary);
  if (!adopted.ok()) return adopted.error();
  return report;
}

void SlotCompactions::end(Slot& slot, const std::shared_ptr<CompactionJob>& job, Result<CompactionReport> result) {
  job->snapshot.reset();
  slot.compaction.reset();
  count(result);
  slot.note_compaction(*job, result);
  hooks_.on_settled(slot, *job, result);
  answer(*job, std::move(result));
}

void SlotCompactions::count(const Result<CompactionReport>& result) {
  if (!result.ok()) {
    ++counts_.n_failed;
    return;
  }
  ++counts_.n_done;
  counts_.seconds += result->total_seconds;
}

void SlotCompactions::check(Slot& slot) {
  if (!slot.compaction) return;
  CompactionJob& job = *slot.compaction;
  if (job.slot_generation != slot.generation) {
    drop(slot, "its slot was cleared or given to another conversation meanwhile");
    return;
  }
  if (&job != running_.get()) return;  // it waits: its snapshot will be of what is there then
  job.boundary = std::min<int64_t>(job.boundary, slot.conversation.cache().next_pos().value);
  if (job.boundary < job.region_end) drop(slot, "the conversation was cut back to before what it compacts");
}

bool SlotCompactions::drop(Slot& slot, const std::string& reason) {
  const std::shared_ptr<CompactionJob> job = std::move(slot.compaction);
  slot.compaction.reset();
  if (!job) return false;
  job->drop_reason = reason;
  job->cancel.store(true);
  const Result<CompactionReport> result = dropped(*job);
  count(result);
  slot.note_compaction(*job, result);
  hooks_.on_settled(slot, *job, result);
  if (job != running_) {
    std::erase(queue_, job);
    answer(*job, result);
  }
  return true;
}

bool SlotCompactions::cancel(uint64_t id_job) {
  for (const auto& slot : slots_)
    if (slot->compaction && slot->compaction->id == id_job)
      return drop(*slot, "the client that asked for it cancelled it or hung up");
  return false;
}

void SlotCompactions::stop() {
  compactor_.stop();
  const auto end_all = Error{ErrorKind::cancelled, "the scheduler is shutting down; nothing has changed"};
  for (const auto& slot : slots_) slot->compaction.reset();
  if (running_) answer(*running_, end_all);
  for (const auto& job : queue_) answer(*job, end_all);
  running_.reset();
  queue_.clear();
}

}  // namespace sh::engine
