// SPDX-License-Identifier: MIT
#include "engine/scheduler.h"

#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <condition_variable>
#include <deque>
#include <mutex>
#include <thread>
#include <tuple>
#include <utility>

#include "base/aligned.h"
#include "base/log.h"
#include "engine/generate.h"
#include "engine/prompt_allowance.h"
#include "engine/slot.h"
#include "engine/slot_compactions.h"

namespace sh::engine {

namespace {

// A slot whose cache shares less than this part of a prompt is not worth keeping for it: the least recently used
// one is taken instead.
constexpr double kMinSimilarity = 0.1;

// How long the scheduler sleeps at most when no request can go on before a compaction is through: memory that the
// compaction uses on its way may become free without a word.
constexpr auto kBlockedSleep = std::chrono::milliseconds(5);

/// The tokens of one step. Its memory is used again for the next.
struct StepBatch {
  struct Part {
    Slot* slot;
    bool is_prompt;
  };
  std::vector<Conversation::Piece> pieces;
  std::vector<Part> parts;  // one a piece
  int64_t n_tokens = 0, n_prompt = 0;
  bool is_awaited = false;  // by conversations that decode

  void clear() {
    pieces.clear();
    parts.clear();
    n_tokens = n_prompt = 0;
    is_awaited = false;
  }
  void add(Slot& slot, std::span<const int32_t> ids, bool is_prompt, bool wants_logits) {
    pieces.push_back({&slot.conversation, ids, wants_logits});
    parts.push_back({&slot, is_prompt});
    n_tokens += static_cast<int64_t>(ids.size());
    if (is_prompt) n_prompt += static_cast<int64_t>(ids.size());
  }
};

}  // namespace

struct Scheduler::State {
  State(Engine& e, std::function<int64_t()> now)
      : engine(e), clock_us(std::move(now)), allowance(e.options().step_ms * 1e-3, e.options().n_ubatch) {
    for (int32_t id = 0; id < engine.options().n_parallel; ++id)
      slots.push_back(std::make_unique<Slot>(engine, id));
    compactions = std::make_unique<SlotCompactions>(
        engine, slots,
        SlotCompactions::Hooks{
            .on_finished =
                [this] {
                  std::lock_guard lock(mutex);
                  is_compaction_ready = true;
                  wake.notify_all();
                },
            .make_room = [this] { return evict_idle(); },
            .on_settled = [this](Slot& slot, const CompactionJob& job,
                                 const Result<CompactionReport>& result) { on_compacted(slot, job, result); }});
    publish();
    thread = std::thread([this] { loop(); });
  }
  ~State() {
    {
      std::lock_guard lock(mutex);
      stopping = true;
    }
    wake.notify_all();
    thread.join();
  }

  // Shared with callers, under `mutex`.
  std::mutex mutex;
  std::condition_variable wake;
  bool stopping = false;
  std::deque<Task> incoming;
  std::vector<uint64_t> cancellations;
  bool cancels_all = false;
  struct Command {
    int32_t id_slot;
    bool waits_for_idle;
    std::function<void(Slot&)> run;
    std::function<void(const Error&)> refuse;
  };
  std::deque<Command> commands;
  bool is_compaction_ready = false;  // the background has one to hand over
  std::vector<SlotStatus> published_slots;
  std::vector<std::shared_ptr<const CompactionJob>> published_jobs;  // one a slot, or null
  SchedulerTotals published_totals;
  uint64_t next_id = 1;

  // The scheduler thread's own.
  Engine& engine;
  std::vector<std::unique_ptr<Slot>> slots;
  std::unique_ptr<SlotCompactions> compactions;
  std::deque<Task> deferred;
  std::vector<uint64_t> ids_to_cancel;
  SchedulerTotals totals;
  uint64_t clock = 0;
  std::function<int64_t()> clock_us;
  PromptAllowance allowance;
  // Of one step; the next uses their memory again.
  StepBatch batch;
  std::vector<Slot*> decoding, reading, takers;
  AlignedBuffer<float> logits_memory;
  bool has_read_last = false;  // the last forward that could not take all was given to prompts
  std::thread thread;

  // ---- the loop ----

  void loop() {
    bool is_blocked = false;  // requests run, but none can go on before a compaction is through
    bool cancels_all_now = false;
    for (;;) {
      {
        std::unique_lock lock(mutex);
        const auto has_news = [&] {
          return stopping || is_compaction_ready || !incoming.empty() || !cancellations.empty() || cancels_all ||
                 has_ready_command() || can_start();
        };
        if (is_blocked)
          wake.wait_for(lock, kBlockedSleep, has_news);
        else
          wake.wait(lock, [&] { return has_news() || any_running(); });
        if (stopping) break;
        is_compaction_ready = false;
        for (Task& task : incoming) deferred.push_back(std::move(task));
        incoming.clear();
        // Together with what was submitted: an id that is cancelled must have been seen before.
        ids_to_cancel.swap(cancellations);
        cancels_all_now = std::exchange(cancels_all, false);
      }
      run_commands();
      apply_cancellations();
      if (cancels_all_now) end_all();
      compactions->advance();  // before a new prompt makes a conversation wait for its end
      start_tasks();
      is_blocked = any_running() && !step();
      publish();
    }
    compactions->stop();
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
    return std::any_of(commands.begin(), commands.end(),
                       [&](const Command& command) { return is_ready(command); });
  }
  bool is_ready(const Command& command) const {
    return !command.waits_for_idle || !slots[static_cast<size_t>(command.id_slot)]->is_busy();
  }

  void run_commands() {
    std::deque<Command> ready;
    {
      std::lock_guard lock(mutex);
      std::deque<Command> waiting;
      for (Command& command : commands) (is_ready(command) ? ready : waiting).push_back(std::move(command));
      commands = std::move(waiting);
    }
    for (Command& command : ready) command.run(*slots[static_cast<size_t>(command.id_slot)]);
  }

  void apply_cancellations() {
    for (const uint64_t id : ids_to_cancel) {
      compactions->cancel(id);
      for (auto& slot : slots) {
        if (!slot->run || slot->run->task.id != id) continue;
        finish(*slot, StopReason::cancelled);
        if (slot->compaction && slot->compaction->is_automatic && slot->compaction->id_task == id)
          compactions->drop(*slot, "the request that needed it was cancelled");
      }
      for (auto it = deferred.begin(); it != deferred.end();) {
        if (it->id != id) {
          ++it;
          continue;
        }
        end_unstarted(*it, StopReason::cancelled, std::nullopt);
        it = deferred.erase(it);
      }
    }
    ids_to_cancel.clear();
  }

  void end_all() {
    for (auto& slot : slots) {
      if (slot->run) finish(*slot, StopReason::cancelled);
      compactions->drop(*slot, "the server is shutting down");
    }
    for (Task& task : deferred) end_unstarted(task, StopReason::cancelled, std::nullopt);
    deferred.clear();
  }

  // ---- choosing slots ----

  /// The slot that a task would start on now, or null.
  Slot* free_slot_for(const Task& task) const {
    if (task.request.id_slot >= 0) {
      Slot* wanted = slots[static_cast<size_t>(task.request.id_slot)].get();
      return wanted->is_busy() ? nullptr : wanted;
    }
    const bool has_empty = std::any_of(slots.begin(), slots.end(), [](const auto& slot) {
      return !slot->is_busy() && !slot->compaction && slot->conversation.n_tokens() == 0;
    });
    Slot* best = nullptr;
    double best_similarity = kMinSimilarity;
    for (const auto& slot : slots) {
      if (slot->is_busy()) continue;
      const int64_t n_shared = slot->usable_prefix(task.request.prompt);
      const double similarity = static_cast<double>(n_shared) / static_cast<double>(task.request.prompt.size());
      // More would be thrown away than is saved: not while a slot is empty.
      if (has_empty && slot->conversation.n_tokens() > 2 * n_shared) continue;
      if (similarity > best_similarity) {
        best = slot.get();
        best_similarity = similarity;
      }
    }
    if (best != nullptr) return best;
    // One that is being compacted was not given up by its owner: it comes last, as an empty one comes first.
    const auto rank = [](const Slot& slot) {
      return std::tuple(slot.compaction != nullptr, slot.conversation.n_tokens() > 0, slot.last_used);
    };
    for (const auto& slot : slots)
      if (!slot->is_busy() && (best == nullptr || rank(*slot) < rank(*best))) best = slot.get();
    return best;
  }

  /// Says when a prompt would have gone on from a conversation, had less of it been compacted.
  void note_left_conversation(const Slot& chosen, const GenerationRequest& request) const {
    if (!request.cache_prompt) return;
    const auto n_prompt = static_cast<double>(request.prompt.size());
    const Slot* left = nullptr;
    int64_t n_most =
        std::max(chosen.usable_prefix(request.prompt), static_cast<int64_t>(kMinSimilarity * n_prompt));
    for (const auto& slot : slots) {
      const int64_t n_shared = slot->n_shared(request.prompt);
      if (n_shared <= n_most || slot->usable_prefix(request.prompt) > 0) continue;
      left = slot.get();
      n_most = n_shared;
    }
    if (left == nullptr) return;
    log_info(
        "slot {}: a prompt shares {} tokens with its conversation, whose first {} are compacted and cannot be "
        "cut: "
        "it is read again on slot {} (live_suffix_tokens of POST /compact keeps the newest apart)",
        left->id(), n_most, left->conversation.n_compacted_tokens(), chosen.id());
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
        note_left_conversation(*slot, run->task.request);
        slot->start(std::move(run), ++clock);
        compactions->check(*slot);
        tell_progress(*slot);
      }
      it = deferred.erase(it);
    }
  }

  // ---- one step ----

  /// One forward. False when every request that runs waits for a compaction.
  bool step() {
    if (engine.compacts_automatically()) {
      for (auto& slot : slots)
        if (slot->run) compact_if_due(*slot);
      compactions->advance();
    }
    plan_step();
    if (batch.pieces.empty()) return false;
    const int64_t begin_us = clock_us();
    const auto n_logits = std::count_if(batch.pieces.begin(), batch.pieces.end(),
                                        [](const Conversation::Piece& piece) { return piece.wants_logits; });
    const int64_t n_vocab = engine.model().info().n_vocab;
    const MatView<float> logits(logits_memory.grow(static_cast<size_t>(n_logits * n_vocab)), n_logits, n_vocab);
    const auto done = Conversation::append_all(engine, batch.pieces, logits);
    if (!done.ok()) return make_room(done.error());
    account(static_cast<double>(clock_us() - begin_us) * 1e-6);
    // Taking a token may end a request, which publishes all slots: first every slot is brought up to date.
    takers.clear();
    for (size_t i = 0; i < batch.parts.size(); ++i) {
      Slot& slot = *batch.parts[i].slot;
      slot.run->last_step = totals.n_decode_calls;
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
    return true;
  }

  /// One token of every conversation that decodes, then prompt tokens of the others, up to n_ubatch in all, and
  /// beside decodes as many as the allowance says. Where n_ubatch is too few for all, who waited longest comes
  /// first, and prompts have every second forward.
  void plan_step() {
    batch.clear();
    decoding.clear();
    reading.clear();
    for (auto& slot : slots) {
      if (!slot->run || slot->waits_for_compaction()) continue;
      if (slot->run->next) decoding.push_back(slot.get());
      if (!slot->run->is_prompt_done()) reading.push_back(slot.get());
    }
    std::sort(decoding.begin(), decoding.end(), [](const Slot* a, const Slot* b) {
      return std::tuple(a->run->last_step, a->id()) < std::tuple(b->run->last_step, b->id());
    });
    const int64_t n_max = engine.options().n_ubatch;
    const bool is_crowded = std::ssize(decoding) >= n_max && !reading.empty();
    has_read_last = is_crowded && !has_read_last;

    batch.is_awaited = !decoding.empty();
    if (has_read_last) decoding.clear();
    for (Slot* slot : decoding)
      if (batch.n_tokens < n_max) batch.add(*slot, std::span(&*slot->run->next, 1), false, true);
    const int64_t room = n_max - batch.n_tokens;
    add_prompts(batch.is_awaited ? std::min(room, allowance.n_tokens()) : room);
  }

  /// `room` tokens of prompts. Beside decodes they are shared evenly, so that a short prompt does not wait for the
  /// end of a long one; what one does not need goes to those with more to read. Alone the oldest is read first.
  void add_prompts(int64_t room) {
    const auto n_left = [](const Slot* slot) {
      return static_cast<int64_t>(slot->run->task.request.prompt.size()) - slot->run->n_prompt_done;
    };
    const auto n_wanted = [&](const Slot* slot) {
      return engine.compacts_automatically() ? std::min(n_left(slot), slot->conversation.rows_left())
                                             : n_left(slot);
    };
    std::sort(reading.begin(), reading.end(), [&](const Slot* a, const Slot* b) {
      if (!batch.is_awaited) return a->run->task.id < b->run->task.id;
      return std::tuple(a->run->last_step, n_wanted(a), a->id()) <
             std::tuple(b->run->last_step, n_wanted(b), b->id());
    });
    int64_t n_readers = std::ssize(reading);
    for (Slot* slot : reading) {
      const int64_t share = batch.is_awaited ? (room + n_readers - 1) / n_readers : room;
      const int64_t n = std::min(share, n_wanted(slot));
      --n_readers;
      if (n <= 0) continue;
      const auto first = static_cast<size_t>(slot->run->n_prompt_done);
      batch.add(*slot, std::span(slot->run->task.request.prompt).subspan(first, static_cast<size_t>(n)), true,
                n == n_left(slot));
      room -= n;
    }
  }

  void account(double seconds) {
    ++totals.n_decode_calls;
    totals.n_busy_slots_sum += static_cast<int64_t>(batch.parts.size());
    totals.prompt_tokens += batch.n_prompt;
    const double prompt_share = static_cast<double>(batch.n_prompt) / static_cast<double>(batch.n_tokens);
    totals.prompt_seconds += seconds * prompt_share;
    totals.predicted_seconds += seconds * (1 - prompt_share);
    if (batch.is_awaited) allowance.note(batch.n_prompt, seconds);
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
    if (engine.compacts_automatically() || slot.compaction) return false;  // rows become free
    return slot.conversation.rows_left() == 0;
  }

  void compact_if_due(Slot& slot) {
    const Conversation& conversation = slot.conversation;
    if (slot.compaction || !conversation.wants_compaction()) return;
    Run& run = *slot.run;
    const bool is_delayed = conversation.delays_compaction();
    if (is_delayed && (!run.is_prompt_done() || run.n_prompt_cached == 0 || run.has_compacted_turn)) return;
    run.has_compacted_turn = run.has_compacted_turn || is_delayed;
    auto job = std::make_shared<CompactionJob>(engine.options().compact_method, true);
    job->id_task = run.task.id;
    const auto n_prompt = static_cast<int64_t>(run.task.request.prompt.size());
    job->limits = {.n_keep = std::min(run.task.request.n_keep, n_prompt),
                   .turn_begin = is_delayed ? run.n_prompt_cached : -1};
    compactions->order(slot, std::move(job));
  }

  /// Shows the result, and ends a request that has no row left and nothing to wait for.
  void on_compacted(Slot& slot, const CompactionJob& job, const Result<CompactionReport>& result) {
    publish();
    if (!slot.run || slot.conversation.rows_left() > 0) return;
    if (engine.compacts_automatically() && !job.is_automatic) return;  // its own compaction comes next
    if (slot.run->is_prompt_done()) return finish(slot, StopReason::context_full);
    fail(slot, slot.conversation.full_error(
                   result.ok() ? "a compaction freed none" : "could not be compacted: " + result.error().message,
                   slot.run->task.request.n_keep));
  }

  /// Gives up the cache of the idle slot that was used longest ago; false when there is none.
  bool evict_idle() {
    Slot* idle = nullptr;
    for (auto& slot : slots)
      if (!slot->is_busy() && !slot->compaction && slot->conversation.n_tokens() > 0 &&
          (idle == nullptr || slot->last_used < idle->last_used))
        idle = slot.get();
    if (idle == nullptr) return false;
    log_info("slot {}: its conversation of {} tokens is given up for memory", idle->id(),
             idle->conversation.n_tokens());
    idle->clear();
    return true;
  }

  /// The pool is spent: gives up idle conversations, waits for a compaction that uses memory on its way to free
  /// more, or fails the youngest request. False when there is only to wait.
  bool make_room(const Error& error) {
    if (evict_idle()) return true;
    if (compactions->is_running()) return false;
    Slot* youngest = nullptr;
    for (auto& slot : slots)
      if (slot->is_busy() && (youngest == nullptr || slot->last_used > youngest->last_used)) youngest = slot.get();
    fail(*youngest, error);
    return true;
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
    event.n_rebases = slot.conversation.cache().identity().n_rebases;
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
    std::vector<std::shared_ptr<const CompactionJob>> jobs;
    for (const auto& slot : slots) {
      status.push_back(slot->status(engine));
      jobs.push_back(slot->compaction);
    }
    totals.n_compactions = compactions->counts().n_done;
    totals.n_compaction_failures = compactions->counts().n_failed;
    totals.compaction_seconds = compactions->counts().seconds;
    totals.requests_processing =
        std::count_if(slots.begin(), slots.end(), [](const auto& slot) { return slot->is_busy(); });
    std::lock_guard lock(mutex);
    totals.requests_deferred = static_cast<int64_t>(deferred.size() + incoming.size());
    published_slots = std::move(status);
    published_jobs = std::move(jobs);
    published_totals = totals;
  }
};

Scheduler::Scheduler(Engine& engine, std::function<int64_t()> clock_us)
    : state_(std::make_unique<State>(engine, std::move(clock_us))) {}
Scheduler::~Scheduler() = default;

namespace {
Error unknown_slot(int32_t id_slot, size_t n_slots) {
  return {ErrorKind::invalid_argument,
          fmt::format("id_slot: there is no slot {}; this server has slots 0 to {}", id_slot, n_slots - 1)};
}
}  // namespace

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
    return Error{ErrorKind::context_exceeded,
                 fmt::format("the request exceeds the available context size: the prompt has {} tokens, and {}; "
                             "shorten it",
                             n_prompt, engine.length_limit())};
  if (request.id_slot < -1 || request.id_slot >= std::ssize(state_->slots))
    return unknown_slot(request.id_slot, state_->slots.size());
  SH_RETURN_IF_ERROR(sampling::Sampler::create(request.sampling, 0));
  std::lock_guard lock(state_->mutex);
  const uint64_t id = state_->next_id++;
  state_->incoming.push_back({id, std::move(request), std::move(on_event)});
  state_->wake.notify_all();
  return id;
}

void Scheduler::cancel(uint64_t id) {
  std::lock_guard lock(state_->mutex);
  state_->cancellations.push_back(id);
  state_->wake.notify_all();
}

void Scheduler::cancel_compactions() {
  State& s = *state_;
  std::lock_guard lock(s.mutex);
  for (const auto& slot : s.slots)
    s.commands.push_back({slot->id(), false,
                          [&s](Slot& of) {
                            if (of.compaction && !of.compaction->is_automatic)
                              s.compactions->drop(of, "the server is shutting down");
                            s.publish();
                          },
                          [](const Error&) {}});
  s.wake.notify_all();
}

void Scheduler::cancel_all() {
  std::lock_guard lock(state_->mutex);
  state_->cancels_all = true;
  state_->wake.notify_all();
}

uint64_t Scheduler::compact(int32_t id_slot, CompactionRequest request,
                            std::function<void(Result<CompactionReport>)> on_done) {
  State& s = *state_;
  if (id_slot < 0 || id_slot >= static_cast<int32_t>(s.slots.size())) {
    on_done(unknown_slot(id_slot, s.slots.size()));
    return 0;
  }
  auto job = std::make_shared<CompactionJob>(request.method, false);
  job->request = std::move(request);
  job->on_done = on_done;
  std::lock_guard lock(s.mutex);
  job->id = s.next_id++;
  const uint64_t id = job->id;
  s.commands.push_back({id_slot, false,
                        [&s, job = std::move(job)](Slot& slot) {
                          s.compactions->order(slot, job);
                          s.publish();
                        },
                        on_done});
  s.wake.notify_all();
  return id;
}

void Scheduler::cancel_compaction(int32_t id_slot, std::function<void(Result<bool>)> on_done) {
  State& s = *state_;
  if (id_slot < 0 || id_slot >= static_cast<int32_t>(s.slots.size()))
    return on_done(unknown_slot(id_slot, s.slots.size()));
  std::lock_guard lock(s.mutex);
  s.commands.push_back({id_slot, false,
                        [&s, on_done](Slot& slot) {
                          const bool had_one = s.compactions->drop(slot, "it was cancelled");
                          s.publish();
                          on_done(had_one);
                        },
                        on_done});
  s.wake.notify_all();
}

void Scheduler::erase_slot(int32_t id_slot, std::function<void(Result<int64_t>)> on_done) {
  State& s = *state_;
  if (id_slot < 0 || id_slot >= static_cast<int32_t>(s.slots.size()))
    return on_done(unknown_slot(id_slot, s.slots.size()));
  std::lock_guard lock(s.mutex);
  s.commands.push_back({id_slot, true,
                        [&s, on_done](Slot& slot) {
                          const int64_t n_erased = slot.conversation.n_tokens();
                          slot.clear();
                          s.compactions->check(slot);
                          s.publish();
                          on_done(n_erased);
                        },
                        on_done});
  s.wake.notify_all();
}

std::vector<SlotStatus> Scheduler::slots() const {
  std::lock_guard lock(state_->mutex);
  std::vector<SlotStatus> slots = state_->published_slots;
  for (size_t i = 0; i < slots.size(); ++i)
    if (state_->published_jobs[i]) slots[i].compaction = state_->published_jobs[i]->progress();
  return slots;
}

SchedulerTotals Scheduler::totals() const {
  std::lock_guard lock(state_->mutex);
  return state_->published_totals;
}

Engine& Scheduler::engine() {
  return state_->engine;
}

}  // namespace sh::engine
