// SPDX-License-Identifier: MIT
#include "engine/scheduler.h"

#include <fmt/format.h>

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <deque>
#include <mutex>
#include <thread>

#include "base/log.h"
#include "engine/generate.h"
#include "engine/slot.h"

namespace sh::engine {

namespace {

// A slot whose cache shares less than this part of a prompt is not worth keeping for it: the least recently used
// one is taken instead.
constexpr double kMinSimilarity = 0.1;

/// The tokens of one step.
struct StepBatch {
  struct Part {
    Slot* slot;
    bool is_prompt;
  };
  std::vector<Conversation::Piece> pieces;
  std::vector<Part> parts;  // one a piece
  int64_t n_tokens = 0, n_prompt = 0;

  void add(Slot& slot, std::span<const int32_t> ids, bool is_prompt, bool wants_logits) {
    pieces.push_back({&slot.conversation, ids, wants_logits});
    parts.push_back({&slot, is_prompt});
    n_tokens += static_cast<int64_t>(ids.size());
    if (is_prompt) n_prompt += static_cast<int64_t>(ids.size());
  }
};

}  // namespace

struct Scheduler::State {
  explicit State(Engine& e) : engine(e) {
    for (int32_t id = 0; id < engine.options().n_parallel; ++id)
      slots.push_back(std::make_unique<Slot>(engine, id));
    publish();
    thread = std::thread([this] { loop(); });
  }
  ~State() {
    {
      std::lock_guard lock(mutex);
      stopping = true;
    }
    cancel_compaction.store(true);
    wake.notify_all();
    thread.join();
  }

  // Shared with callers, under `mutex`.
  std::mutex mutex;
  std::condition_variable wake;
  bool stopping = false;
  std::deque<Task> incoming;
  std::vector<uint64_t> cancellations;
  struct Command {
    int32_t id_slot;
    std::function<void(Slot&)> run;
    std::function<void(const Error&)> refuse;
  };
  std::deque<Command> commands;
  std::vector<SlotStatus> published_slots;
  SchedulerTotals published_totals;
  uint64_t next_id = 1;
  uint64_t compacting_task = 0;  // whose automatic compaction runs; 0: none

  // The scheduler thread's own.
  Engine& engine;
  std::vector<std::unique_ptr<Slot>> slots;
  std::deque<Task> deferred;
  SchedulerTotals totals;
  uint64_t clock = 0;
  std::atomic<bool> cancel_compaction{false};
  std::thread thread;

  // ---- the loop ----

  void loop() {
    for (;;) {
      {
        std::unique_lock lock(mutex);
        wake.wait(lock, [&] {
          return stopping || !incoming.empty() || !cancellations.empty() || has_ready_command() || any_running() ||
                 can_start();
        });
        if (stopping) break;
        for (Task& task : incoming) deferred.push_back(std::move(task));
        incoming.clear();
      }
      run_commands();
      apply_cancellations();
      start_tasks();
      if (any_running()) step();
      publish();
    }
    for (auto& slot : slots)
      if (slot->run) finish(*slot, StopReason::cancelled);
    std::deque<Task> unseen;
    std::deque<Command> unanswered;
    {
      std::lock_guard lock(mutex);
      unseen.swap(incoming);
      unanswered.swap(commands);
    }
    for (Task& task : deferred) end_unstarted(task, StopReason::cancelled, std::nullopt);
    for (Task& task : unseen) end_unstarted(task, StopReason::cancelled, std::nullopt);
    for (Command& command : unanswered)
      command.refuse({ErrorKind::cancelled, "the scheduler is shutting down; nothing has changed"});
  }

  bool any_running() const {
    return std::any_of(slots.begin(), slots.end(), [](const auto& slot) { return slot->is_busy(); });
  }
  bool can_start() const {
    return std::any_of(deferred.begin(), deferred.end(),
                       [&](const Task& task) { return free_slot_for(task) != nullptr; });
  }
  bool has_ready_command() const {
    return std::any_of(commands.begin(), commands.end(), [&](const Command& command) {
      return !slots[static_cast<size_t>(command.id_slot)]->is_busy();
    });
  }

  void run_commands() {
    std::deque<Command> ready;
    {
      std::lock_guard lock(mutex);
      std::deque<Command> waiting;
      for (Command& command : commands)
        (slots[static_cast<size_t>(command.id_slot)]->is_busy() ? waiting : ready).push_back(std::move(command));
      commands = std::move(waiting);
    }
    for (Command& command : ready) command.run(*slots[static_cast<size_t>(command.id_slot)]);
  }

  void apply_cancellations() {
    std::vector<uint64_t> ids;
    {
      std::lock_guard lock(mutex);
      ids.swap(cancellations);
    }
    for (const uint64_t id : ids) {
      for (auto& slot : slots)
        if (slot->run && slot->run->task.id == id) finish(*slot, StopReason::cancelled);
      for (auto it = deferred.begin(); it != deferred.end();) {
        if (it->id != id) {
          ++it;
          continue;
        }
        end_unstarted(*it, StopReason::cancelled, std::nullopt);
        it = deferred.erase(it);
      }
    }
  }

  // ---- choosing slots ----

  /// The slot that a task would start on now, or null.
  Slot* free_slot_for(const Task& task) const {
    const auto n = static_cast<int32_t>(slots.size());
    if (task.request.id_slot >= 0) {
      Slot* wanted = slots[static_cast<size_t>(task.request.id_slot % n)].get();
      return wanted->is_busy() ? nullptr : wanted;
    }
    Slot* best = nullptr;
    double best_similarity = kMinSimilarity;
    for (const auto& slot : slots) {
      if (slot->is_busy()) continue;
      const double similarity = static_cast<double>(slot->usable_prefix(task.request.prompt)) /
                                static_cast<double>(task.request.prompt.size());
      if (similarity > best_similarity) {
        best = slot.get();
        best_similarity = similarity;
      }
    }
    if (best != nullptr) return best;
    for (const auto& slot : slots)
      if (!slot->is_busy() && (best == nullptr || slot->last_used < best->last_used)) best = slot.get();
    return best;
  }

  void start_tasks() {
    for (auto it = deferred.begin(); it != deferred.end();) {
      Slot* slot = free_slot_for(*it);
      if (slot == nullptr) {
        ++it;
        continue;
      }
      const GenerationRequest& request = it->request;
      auto sampler = start_sampler(engine, request.sampling, request.ignore_eos, 0, request.prompt);
      if (!sampler.ok()) {
        end_unstarted(*it, StopReason::failed, sampler.error());
      } else {
        auto run = std::make_unique<Run>(
            Run{.task = std::move(*it), .sampler = std::move(*sampler), .stop = chat::StopMatcher({})});
        run->stop = chat::StopMatcher(run->task.request.stop);
        slot->start(std::move(run), ++clock);
        tell_progress(*slot);
      }
      it = deferred.erase(it);
    }
  }

  // ---- one step ----

  void step() {
    if (engine.compacts_automatically()) {
      for (auto& slot : slots)
        if (slot->run) compact_if_full(*slot);
      apply_cancellations();
    }
    StepBatch batch = plan_step();
    if (batch.pieces.empty()) return;
    const Stopwatch watch;
    const auto n_logits = std::count_if(batch.pieces.begin(), batch.pieces.end(),
                                        [](const Conversation::Piece& piece) { return piece.wants_logits; });
    Mat<float> logits(n_logits, engine.model().info().n_vocab);
    const auto done = Conversation::append_all(engine, batch.pieces, logits.view());
    if (!done.ok()) return make_room(done.error());
    account(batch, watch.seconds());
    // Taking a token may end a request, which publishes all slots: first every slot is brought up to date.
    std::vector<Slot*> takers;
    for (size_t i = 0; i < batch.parts.size(); ++i) {
      Slot& slot = *batch.parts[i].slot;
      if (batch.pieces[i].wants_logits) takers.push_back(&slot);
      if (batch.parts[i].is_prompt) {
        slot.run->n_prompt_done += static_cast<int64_t>(batch.pieces[i].ids.size());
        tell_progress(slot);
      } else {
        slot.run->next.reset();
      }
    }
    for (size_t i = 0; i < takers.size(); ++i)
      take_token(*takers[i], std::span(logits.row(static_cast<int64_t>(i)), static_cast<size_t>(logits.cols)));
  }

  /// One token of every conversation that decodes, then prompt tokens of the others, up to n_ubatch in all.
  StepBatch plan_step() {
    StepBatch batch;
    const int64_t n_max = engine.options().n_ubatch;
    for (auto& slot : slots)
      if (slot->run && slot->run->next && batch.n_tokens < n_max)
        batch.add(*slot, std::span(&*slot->run->next, 1), false, true);
    for (auto& slot : slots) {
      if (!slot->run || slot->run->is_prompt_done()) continue;
      const auto& prompt = slot->run->task.request.prompt;
      int64_t room = n_max - batch.n_tokens;
      if (engine.compacts_automatically()) room = std::min(room, slot->conversation.rows_left());
      const int64_t n_left = static_cast<int64_t>(prompt.size()) - slot->run->n_prompt_done;
      const int64_t n = std::min(room, n_left);
      if (n <= 0) continue;
      const auto first = static_cast<size_t>(slot->run->n_prompt_done);
      batch.add(*slot, std::span(prompt).subspan(first, static_cast<size_t>(n)), true, n == n_left);
    }
    return batch;
  }

  void account(const StepBatch& batch, double seconds) {
    ++totals.n_decode_calls;
    totals.n_busy_slots_sum += static_cast<int64_t>(batch.parts.size());
    totals.prompt_tokens += batch.n_prompt;
    const double prompt_share = static_cast<double>(batch.n_prompt) / static_cast<double>(batch.n_tokens);
    totals.prompt_seconds += seconds * prompt_share;
    totals.predicted_seconds += seconds * (1 - prompt_share);
  }

  void take_token(Slot& slot, std::span<const float> logits) {
    Run& run = *slot.run;
    const GenerationRequest& request = run.task.request;
    const tokenizer::Tokenizer& tokenizer = engine.tokenizer();
    if (run.n_decoded == 0) {
      run.prompt_seconds = run.prompt_watch.seconds();
      run.decode_watch = Stopwatch();
    }
    if (request.n_predict == 0) return finish(slot, StopReason::limit);
    const int32_t id = run.sampler.sample(logits);
    run.sampler.accept(id);
    ++run.n_decoded;
    ++totals.predicted_tokens;
    totals.n_tokens_max = std::max(totals.n_tokens_max, slot.conversation.n_tokens() + 1);

    GenerationEvent event = event_of(slot);
    event.ids.push_back(id);
    if (request.n_probs > 0) event.probs.push_back(probs_of(logits, id, request.n_probs));
    if (tokenizer.is_end_of_generation(id) && !request.ignore_eos)
      return finish(slot, StopReason::eos, std::move(event));
    event.text = run.stop.feed(tokenizer.piece(id, request.renders_special));
    if (run.stop.is_stopped()) {
      event.stopping_word = request.stop[static_cast<size_t>(run.stop.matched())];
      return finish(slot, StopReason::word, std::move(event));
    }
    if (request.n_predict >= 0 && run.n_decoded >= request.n_predict)
      return finish(slot, StopReason::limit, std::move(event));
    if (is_context_full(slot)) return finish(slot, StopReason::context_full, std::move(event));
    run.next = id;
    event.compactions.swap(run.compactions);
    run.task.on_event(event);
  }

  static TokenProbs probs_of(std::span<const float> logits, int32_t id, int32_t n) {
    TokenProbs probs{.id = id, .logprob = 0, .top = {}};
    const auto top = sampling::top_log_probs(logits, n);
    for (const auto& entry : top) probs.top.emplace_back(entry.id, entry.logprob);
    probs.logprob = sampling::log_prob(logits, id);
    return probs;
  }

  // ---- limits and compaction ----

  bool is_context_full(const Slot& slot) const {
    if (slot.conversation.n_tokens() + 1 > engine.n_ctx_logical()) return true;
    if (engine.compacts_automatically()) return false;  // the next step compacts first
    return slot.conversation.rows_left() == 0;
  }

  void compact_if_full(Slot& slot) {
    if (!slot.conversation.wants_compaction()) return;
    const auto report = compact_for_task(slot);
    if (!report.ok() && report.error().kind == ErrorKind::cancelled) return;
    if (report.ok())
      slot.run->compactions.push_back({.report = *report, .is_automatic = true});
    else
      log_warning("slot {}: automatic compaction failed: {}", slot.id(), report.error().message);
    if (slot.conversation.rows_left() > 0) return;
    if (slot.run->is_prompt_done()) return finish(slot, StopReason::context_full);
    fail(slot, Error{ErrorKind::context_exceeded,
                     fmt::format("the conversation fills its {} rows and {}", engine.n_ctx_slot(),
                                 report.ok() ? "a compaction freed none; raise -c or --compact-ratio"
                                             : "could not be compacted: " + report.error().message)});
  }

  /// The automatic compaction of the request that runs on the slot; cancel() of the request stops it.
  Result<CompactionReport> compact_for_task(Slot& slot) {
    {
      std::lock_guard lock(mutex);
      compacting_task = slot.run->task.id;
    }
    apply_cancellations();
    Result<CompactionReport> report =
        Error{ErrorKind::cancelled, "the request was cancelled before its compaction began"};
    if (slot.run) {
      // The whole prompt is meant also while it is still being read.
      const GenerationRequest& request = slot.run->task.request;
      const auto n_prompt = static_cast<int64_t>(request.prompt.size());
      const int64_t n_keep = request.n_keep < 0 ? n_prompt : std::min(request.n_keep, n_prompt);
      report = slot.conversation.compact_automatically(n_keep, &cancel_compaction);
      note_compaction(slot, report);
    }
    std::lock_guard lock(mutex);
    compacting_task = 0;
    if (!stopping) cancel_compaction.store(false);
    return report;
  }

  /// Counts, logs and keeps what came of a compaction.
  void note_compaction(Slot& slot, const Result<CompactionReport>& report) {
    if (!report.ok()) {
      ++totals.n_compaction_failures;
      return;
    }
    ++totals.n_compactions;
    totals.compaction_seconds += report->total_seconds;
    slot.last_compaction = *report;
    log_info(
        "slot {}: compacted {} tokens, {:.0f} -> {:.0f} rows a head ({:.2f}x of all bytes) by {} in {:.2f} s, "
        "held-out error {:.4f} (unfitted {:.4f})",
        slot.id(), report->n_logical, report->rows_before, report->rows_after, report->real_ratio, report->method,
        report->total_seconds, report->heldout_fitted, report->heldout_plain);
  }

  /// The pool is spent: gives up the cache of the idle slot that was used longest ago, or, when none is left, the
  /// youngest request.
  void make_room(const Error& error) {
    Slot* idle = nullptr;
    Slot* youngest = nullptr;
    for (auto& slot : slots) {
      if (!slot->is_busy() && slot->conversation.n_tokens() > 0 &&
          (idle == nullptr || slot->last_used < idle->last_used))
        idle = slot.get();
      if (slot->is_busy() && (youngest == nullptr || slot->last_used > youngest->last_used)) youngest = slot.get();
    }
    if (idle != nullptr)
      idle->clear();
    else
      fail(*youngest, error);
  }

  // ---- telling ----

  GenerationEvent event_of(Slot& slot) {
    Run& run = *slot.run;
    GenerationEvent event;
    event.id_slot = slot.id();
    event.n_prompt = static_cast<int64_t>(run.task.request.prompt.size());
    event.n_prompt_done = run.n_prompt_done;
    event.n_logical = slot.conversation.n_tokens();
    event.n_physical = slot.conversation.n_physical();
    event.kv_bytes = static_cast<int64_t>(slot.conversation.n_physical() *
                                          static_cast<double>(engine.kv_layout().bytes_per_token()));
    event.timings = {.cache_n = run.n_prompt_cached,
                     .prompt_n = run.n_prompt_done - run.n_prompt_cached,
                     .prompt_ms = (run.n_decoded > 0 ? run.prompt_seconds : run.prompt_watch.seconds()) * 1e3,
                     .predicted_n = run.n_decoded,
                     .predicted_ms = run.n_decoded > 0 ? run.decode_watch.seconds() * 1e3 : 0};
    return event;
  }

  void tell_progress(Slot& slot) {
    GenerationEvent event = event_of(slot);
    event.is_prompt_progress = true;
    slot.run->task.on_event(event);
  }

  void finish(Slot& slot, StopReason reason) { finish(slot, reason, event_of(slot)); }
  void finish(Slot& slot, StopReason reason, GenerationEvent event) {
    if (reason != StopReason::word) event.text += slot.run->stop.finish();
    event.is_final = true;
    event.stop_reason = reason;
    event.compactions.swap(slot.run->compactions);
    event.is_truncated = reason == StopReason::context_full;
    event.kv_bytes = slot.conversation.cache().usage().bytes;
    const std::unique_ptr<Run> run = std::move(slot.run);
    slot.last_used = ++clock;
    publish();
    run->task.on_event(event);
  }
  void fail(Slot& slot, const Error& error) {
    GenerationEvent event = event_of(slot);
    event.error = error;
    finish(slot, StopReason::failed, std::move(event));
  }
  static void end_unstarted(Task& task, StopReason reason, std::optional<Error> error) {
    GenerationEvent event;
    event.is_final = true;
    event.stop_reason = reason;
    event.error = std::move(error);
    event.n_prompt = static_cast<int64_t>(task.request.prompt.size());
    task.on_event(event);
  }

  void publish() {
    std::vector<SlotStatus> status;
    for (const auto& slot : slots) status.push_back(slot->status(engine));
    totals.requests_processing =
        std::count_if(slots.begin(), slots.end(), [](const auto& slot) { return slot->is_busy(); });
    std::lock_guard lock(mutex);
    totals.requests_deferred = static_cast<int64_t>(deferred.size() + incoming.size());
    published_slots = std::move(status);
    published_totals = totals;
  }
};

Scheduler::Scheduler(Engine& engine) : state_(std::make_unique<State>(engine)) {}
Scheduler::~Scheduler() = default;

Result<uint64_t> Scheduler::submit(GenerationRequest request,
                                   std::function<void(const GenerationEvent&)> on_event) {
  const Engine& engine = state_->engine;
  const auto n_prompt = static_cast<int64_t>(request.prompt.size());
  if (n_prompt == 0)
    return Error{ErrorKind::invalid_argument, "the prompt is empty: at least one token is needed"};
  const int32_t n_vocab = engine.model().info().n_vocab;
  for (const int32_t id : request.prompt)
    if (id < 0 || id >= n_vocab)
      return Error{ErrorKind::invalid_argument,
                   fmt::format("prompt: token id {} is outside the vocabulary of {}", id, n_vocab)};
  if (n_prompt >= engine.n_ctx_logical())
    return Error{
        ErrorKind::context_exceeded,
        fmt::format("the request exceeds the available context size: the prompt has {} tokens, the context {}; "
                    "shorten it or raise -c{}",
                    n_prompt, engine.n_ctx_logical(),
                    engine.compacts_automatically() ? "" : " (or let the server compact: --compact-threshold)")};
  SH_RETURN_IF_ERROR(sampling::Sampler::create(request.sampling, 0));
  std::lock_guard lock(state_->mutex);
  const uint64_t id = state_->next_id++;
  state_->incoming.push_back({id, std::move(request), std::move(on_event)});
  state_->wake.notify_all();
  return id;
}

void Scheduler::cancel(uint64_t id_task) {
  std::lock_guard lock(state_->mutex);
  state_->cancellations.push_back(id_task);
  if (id_task == state_->compacting_task) state_->cancel_compaction.store(true);
  state_->wake.notify_all();
}

namespace {
Error unknown_slot(int32_t id_slot, size_t n_slots) {
  return {ErrorKind::not_found,
          fmt::format("id_slot: there is no slot {}; this server has slots 0 to {}", id_slot, n_slots - 1)};
}
}  // namespace

void Scheduler::compact(int32_t id_slot, CompactionRequest request,
                        std::function<void(Result<CompactionReport>)> on_done) {
  State& s = *state_;
  if (id_slot < 0 || id_slot >= static_cast<int32_t>(s.slots.size()))
    return on_done(unknown_slot(id_slot, s.slots.size()));
  std::lock_guard lock(s.mutex);
  s.commands.push_back({id_slot,
                        [&s, request = std::move(request), on_done](Slot& slot) {
                          auto report = slot.conversation.compact(request, &s.cancel_compaction);
                          s.note_compaction(slot, report);
                          s.publish();
                          on_done(std::move(report));
                        },
                        on_done});
  s.wake.notify_all();
}

void Scheduler::erase_slot(int32_t id_slot, std::function<void(Result<int64_t>)> on_done) {
  State& s = *state_;
  if (id_slot < 0 || id_slot >= static_cast<int32_t>(s.slots.size()))
    return on_done(unknown_slot(id_slot, s.slots.size()));
  std::lock_guard lock(s.mutex);
  s.commands.push_back({id_slot,
                        [&s, on_done](Slot& slot) {
                          const int64_t n_erased = slot.conversation.n_tokens();
                          slot.clear();
                          s.publish();
                          on_done(n_erased);
                        },
                        on_done});
  s.wake.notify_all();
}

std::vector<SlotStatus> Scheduler::slots() const {
  std::lock_guard lock(state_->mutex);
  return state_->published_slots;
}

SchedulerTotals Scheduler::totals() const {
  std::lock_guard lock(state_->mutex);
  return state_->published_totals;
}

Engine& Scheduler::engine() {
  return state_->engine;
}

}  // namespace sh::engine
