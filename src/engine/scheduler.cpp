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
#include "engine/slot.h"

namespace sh::engine {

namespace {

using kv::Pos;

// A slot whose cache shares less than this part of a prompt is not worth keeping for it: the least recently used one is taken instead.
constexpr double kMinSimilarity = 0.1;
// Part of its rows that a conversation gains between two attempts of an automatic compaction.
constexpr double kCompactionGap = 1.0 / 16;

/// Hands each slot's rows of a batch to the slot's own capture.
class SlotTap : public ops::AttentionTap {
 public:
  struct Part {
    QueryCapture* capture;
    int64_t first_row, n_rows;
  };
  std::vector<Part> parts;

  void on_attention(int32_t layer, MatView<const float> queries, MatView<const float> lse, MatView<const float> out) override {
    for (const Part& part : parts)
      if (part.capture->wants_layer(layer))
        part.capture->on_attention(layer, queries.slice(part.first_row, part.n_rows), lse.slice(part.first_row, part.n_rows),
                                   out.slice(part.first_row, part.n_rows));
  }
  bool wants_layer(int32_t layer) const override {
    return std::any_of(parts.begin(), parts.end(), [&](const Part& part) { return part.capture->wants_layer(layer); });
  }
};

/// The tokens of one step.
struct StepBatch {
  std::vector<int32_t> ids;
  std::vector<Pos> pos;
  std::vector<kv::SequenceCache*> sequences;
  std::vector<int32_t> logit_rows;
  std::vector<Slot*> logit_slots;  // one a logit row
  struct Part {
    Slot* slot;
    int64_t first_row, n_rows;
    bool is_prompt;
  };
  std::vector<Part> parts;
};

CompactionRequest automatic_request(const Engine& engine, const GenerationRequest& request) {
  CompactionRequest compaction;
  compaction.method = engine.options().compact_method;
  compaction.ratio = engine.options().compact_ratio;
  const auto n_prompt = static_cast<int64_t>(request.prompt.size());
  compaction.n_protected_prefix = request.n_keep < 0 ? n_prompt : std::min(request.n_keep, n_prompt);
  compaction.n_live_suffix = engine.n_ctx_slot() / 16;
  return compaction;
}

}  // namespace

struct Scheduler::State {
  explicit State(Engine& e) : engine(e) {
    for (int32_t id = 0; id < engine.options().n_parallel; ++id) slots.push_back(std::make_unique<Slot>(engine, id));
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
        wake.wait(lock, [&] { return stopping || !incoming.empty() || !cancellations.empty() || has_ready_command() || any_running() || can_start(); });
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
    for (Command& command : unanswered) command.refuse({ErrorKind::cancelled, "the scheduler is shutting down; nothing has changed"});
  }

  bool any_running() const {
    return std::any_of(slots.begin(), slots.end(), [](const auto& slot) { return slot->is_busy(); });
  }
  bool can_start() const {
    return std::any_of(deferred.begin(), deferred.end(), [&](const Task& task) { return free_slot_for(task) != nullptr; });
  }
  bool has_ready_command() const {
    return std::any_of(commands.begin(), commands.end(), [&](const Command& command) { return !slots[static_cast<size_t>(command.id_slot)]->is_busy(); });
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
      const double similarity = static_cast<double>(slot->usable_prefix(task.request.prompt)) / static_cast<double>(task.request.prompt.size());
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
      if (it->request.ignore_eos) ban_end_of_generation(it->request.sampling);
      auto sampler = sampling::Sampler::create(it->request.sampling, 0);
      if (!sampler.ok()) {
        end_unstarted(*it, StopReason::failed, sampler.error());
      } else {
        auto run = std::make_unique<Run>(Run{.task = std::move(*it), .sampler = std::move(*sampler), .stop = chat::StopMatcher({})});
        run->stop = chat::StopMatcher(run->task.request.stop);
        for (const int32_t id : run->task.request.prompt) run->sampler.accept(id);
        slot->start(std::move(run), ++clock);
        tell_progress(*slot);
      }
      it = deferred.erase(it);
    }
  }

  void ban_end_of_generation(sampling::SamplingParams& sampling) const {
    for (int32_t id = 0; id < engine.model().info().n_vocab; ++id)
      if (engine.tokenizer().is_end_of_generation(id)) sampling.banned.push_back(id);
  }

  // ---- one step ----

  void step() {
    if (engine.compacts_automatically()) {
      for (auto& slot : slots)
        if (slot->run) compact_if_full(*slot);
      apply_cancellations();
    }
    StepBatch batch = plan_step();
    if (batch.ids.empty()) return;
    const Stopwatch watch;
    Mat<float> logits(static_cast<int64_t>(batch.logit_rows.size()), engine.model().info().n_vocab);
    SlotTap tap;
    for (const StepBatch::Part& part : batch.parts)
      if (part.slot->capture) {
        part.slot->capture->begin_batch(std::span(batch.pos).subspan(static_cast<size_t>(part.first_row), static_cast<size_t>(part.n_rows)));
        tap.parts.push_back({part.slot->capture.get(), part.first_row, part.n_rows});
      }
    const auto done = engine.forward({batch.ids, batch.pos, batch.sequences, batch.logit_rows}, logits.view(), tap.parts.empty() ? nullptr : &tap);
    if (!done.ok()) {
      for (const SlotTap::Part& part : tap.parts) part.capture->abort_batch();
      make_room(done.error());
      return;
    }
    account(batch, watch.seconds());
    for (const StepBatch::Part& part : batch.parts) {
      Slot& slot = *part.slot;
      const auto first = batch.ids.begin() + part.first_row;
      slot.tokens.insert(slot.tokens.end(), first, first + part.n_rows);
      if (part.is_prompt) {
        slot.run->n_prompt_done += part.n_rows;
        tell_progress(slot);
      } else {
        slot.run->next.reset();
      }
    }
    for (size_t i = 0; i < batch.logit_slots.size(); ++i)
      take_token(*batch.logit_slots[i], std::span(logits.row(static_cast<int64_t>(i)), static_cast<size_t>(logits.cols)));
  }

  /// One token of every conversation that decodes, then prompt tokens of the others, up to n_ubatch in all.
  StepBatch plan_step() {
    StepBatch batch;
    const int64_t n_max = engine.options().n_ubatch;
    const auto add_part = [&](Slot& slot, std::span<const int32_t> ids, bool is_prompt, bool wants_logits) {
      batch.parts.push_back({&slot, static_cast<int64_t>(batch.ids.size()), static_cast<int64_t>(ids.size()), is_prompt});
      for (size_t i = 0; i < ids.size(); ++i) {
        batch.ids.push_back(ids[i]);
        batch.pos.push_back(slot.cache.next_pos() + static_cast<int64_t>(i));
        batch.sequences.push_back(&slot.cache);
      }
      if (wants_logits) {
        batch.logit_rows.push_back(static_cast<int32_t>(batch.ids.size()) - 1);
        batch.logit_slots.push_back(&slot);
      }
    };
    for (auto& slot : slots)
      if (slot->run && slot->run->next && static_cast<int64_t>(batch.ids.size()) < n_max) add_part(*slot, std::span(&*slot->run->next, 1), false, true);
    for (auto& slot : slots) {
      if (!slot->run || slot->run->is_prompt_done()) continue;
      const auto& prompt = slot->run->task.request.prompt;
      int64_t room = n_max - static_cast<int64_t>(batch.ids.size());
      if (engine.compacts_automatically()) room = std::min(room, rows_until_full(*slot));
      const int64_t n = std::min(room, static_cast<int64_t>(prompt.size()) - slot->run->n_prompt_done);
      if (n <= 0) continue;
      add_part(*slot, std::span(prompt).subspan(static_cast<size_t>(slot->run->n_prompt_done), static_cast<size_t>(n)), true,
               slot->run->n_prompt_done + n == static_cast<int64_t>(prompt.size()));
    }
    return batch;
  }

  void account(const StepBatch& batch, double seconds) {
    ++totals.n_decode_calls;
    totals.n_busy_slots_sum += static_cast<int64_t>(batch.parts.size());
    int64_t n_prompt = 0;
    for (const auto& part : batch.parts) n_prompt += part.is_prompt ? part.n_rows : 0;
    const auto n_all = static_cast<int64_t>(batch.ids.size());
    totals.prompt_tokens += n_prompt;
    totals.prompt_seconds += seconds * static_cast<double>(n_prompt) / static_cast<double>(n_all);
    totals.predicted_seconds += seconds * static_cast<double>(n_all - n_prompt) / static_cast<double>(n_all);
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
    totals.n_tokens_max = std::max(totals.n_tokens_max, slot.n_logical() + 1);

    GenerationEvent event = event_of(slot);
    event.ids.push_back(id);
    if (request.n_probs > 0) event.probs.push_back(probs_of(logits, id, request.n_probs));
    if (tokenizer.is_end_of_generation(id) && !request.ignore_eos) return finish(slot, StopReason::eos, std::move(event));
    event.text = run.stop.feed(tokenizer.piece(id, request.renders_special));
    if (run.stop.is_stopped()) {
      event.stopping_word = request.stop[static_cast<size_t>(run.stop.matched())];
      return finish(slot, StopReason::word, std::move(event));
    }
    if (request.n_predict >= 0 && run.n_decoded >= request.n_predict) return finish(slot, StopReason::limit, std::move(event));
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

  int64_t rows_until_full(const Slot& slot) const {
    return std::max<int64_t>(0, static_cast<int64_t>(static_cast<double>(engine.n_ctx_slot()) - slot.n_physical()));
  }
  bool is_context_full(const Slot& slot) const {
    if (slot.n_logical() + 1 > engine.n_ctx_logical()) return true;
    return !engine.compacts_automatically() && rows_until_full(slot) < 1;  // else the next step compacts first
  }

  void compact_if_full(Slot& slot) {
    const auto n_ctx_slot = static_cast<double>(engine.n_ctx_slot());
    const double n_rows = slot.n_physical();
    const bool is_due = n_rows >= engine.options().compact_threshold * n_ctx_slot && n_rows >= slot.run->compact_again_at;
    if (!is_due && rows_until_full(slot) >= 1) return;
    const auto report = compact_for_task(slot);
    if (!report.ok() && report.error().kind == ErrorKind::cancelled) return;
    // Neither a failure nor a compaction that freed little is repeated for every token.
    slot.run->compact_again_at = slot.n_physical() + n_ctx_slot * kCompactionGap;
    if (report.ok())
      slot.run->compactions.push_back({.report = *report, .is_automatic = true});
    else
      log_warning("slot {}: automatic compaction failed: {}", slot.id(), report.error().message);
    if (rows_until_full(slot) >= 1) return;
    if (slot.run->is_prompt_done()) return finish(slot, StopReason::context_full);
    fail(slot, Error{ErrorKind::context_exceeded,
                     fmt::format("the conversation fills its {} rows and {}", engine.n_ctx_slot(),
                                 report.ok() ? "a compaction freed none; raise -c or --compact-ratio" : "could not be compacted: " + report.error().message)});
  }

  /// The automatic compaction of the request that runs on the slot; cancel() of the request stops it.
  Result<CompactionReport> compact_for_task(Slot& slot) {
    {
      std::lock_guard lock(mutex);
      compacting_task = slot.run->task.id;
    }
    apply_cancellations();
    Result<CompactionReport> report = Error{ErrorKind::cancelled, "the request was cancelled before its compaction began"};
    if (slot.run) report = compact_slot(slot, automatic_request(engine, slot.run->task.request));
    std::lock_guard lock(mutex);
    compacting_task = 0;
    if (!stopping) cancel_compaction.store(false);
    return report;
  }

  Result<CompactionReport> compact_slot(Slot& slot, const CompactionRequest& request) {
    auto report = compact_sequence(engine, slot.cache, slot.tokens, slot.capture.get(), request, &cancel_compaction);
    if (!report.ok()) {
      ++totals.n_compaction_failures;
      return report;
    }
    ++totals.n_compactions;
    totals.compaction_seconds += report->total_seconds;
    slot.recount();
    slot.last_compaction = *report;
    log_info("slot {}: compacted {} tokens, {:.0f} -> {:.0f} rows a head ({:.2f}x of all bytes) by {} in {:.2f} s, held-out error {:.4f} (unfitted {:.4f})",
             slot.id(), report->n_logical, report->rows_before, report->rows_after, report->real_ratio, report->method, report->total_seconds,
             report->heldout_fitted, report->heldout_plain);
    return report;
  }

  /// The pool is spent: gives up the cache of the idle slot that was used longest ago, or, when none is left, the youngest request.
  void make_room(const Error& error) {
    Slot* idle = nullptr;
    Slot* youngest = nullptr;
    for (auto& slot : slots) {
      if (!slot->is_busy() && slot->n_logical() > 0 && (idle == nullptr || slot->last_used < idle->last_used)) idle = slot.get();
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
    event.n_logical = slot.n_logical();
    event.n_physical = slot.n_physical();
    event.kv_bytes = static_cast<int64_t>(slot.n_physical() * static_cast<double>(engine.kv_layout().bytes_per_token()));
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
    event.kv_bytes = slot.cache.usage().bytes;
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
    totals.requests_processing = std::count_if(slots.begin(), slots.end(), [](const auto& slot) { return slot->is_busy(); });
    std::lock_guard lock(mutex);
    totals.requests_deferred = static_cast<int64_t>(deferred.size() + incoming.size());
    published_slots = std::move(status);
    published_totals = totals;
  }
};

Scheduler::Scheduler(Engine& engine) : state_(std::make_unique<State>(engine)) {}
Scheduler::~Scheduler() = default;

Result<uint64_t> Scheduler::submit(GenerationRequest request, std::function<void(const GenerationEvent&)> on_event) {
  const Engine& engine = state_->engine;
  const auto n_prompt = static_cast<int64_t>(request.prompt.size());
  if (n_prompt == 0) return Error{ErrorKind::invalid_argument, "the prompt is empty: at least one token is needed"};
  const int32_t n_vocab = engine.model().info().n_vocab;
  for (const int32_t id : request.prompt)
    if (id < 0 || id >= n_vocab) return Error{ErrorKind::invalid_argument, fmt::format("prompt: token id {} is outside the vocabulary of {}", id, n_vocab)};
  if (n_prompt >= engine.n_ctx_logical())
    return Error{ErrorKind::context_exceeded,
                 fmt::format("the request exceeds the available context size: the prompt has {} tokens, the context {}; shorten it or raise -c{}", n_prompt,
                             engine.n_ctx_logical(), engine.compacts_automatically() ? "" : " (or let the server compact: --compact-threshold)")};
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
  return {ErrorKind::not_found, fmt::format("id_slot: there is no slot {}; this server has slots 0 to {}", id_slot, n_slots - 1)};
}
}  // namespace

void Scheduler::compact(int32_t id_slot, CompactionRequest request, std::function<void(Result<CompactionReport>)> on_done) {
  State& s = *state_;
  if (id_slot < 0 || id_slot >= static_cast<int32_t>(s.slots.size())) return on_done(unknown_slot(id_slot, s.slots.size()));
  std::lock_guard lock(s.mutex);
  s.commands.push_back({id_slot,
                        [&s, request = std::move(request), on_done](Slot& slot) {
                          auto report = s.compact_slot(slot, request);
                          s.publish();
                          on_done(std::move(report));
                        },
                        on_done});
  s.wake.notify_all();
}

void Scheduler::erase_slot(int32_t id_slot, std::function<void(Result<int64_t>)> on_done) {
  State& s = *state_;
  if (id_slot < 0 || id_slot >= static_cast<int32_t>(s.slots.size())) return on_done(unknown_slot(id_slot, s.slots.size()));
  std::lock_guard lock(s.mutex);
  s.commands.push_back({id_slot,
                        [&s, on_done](Slot& slot) {
                          const int64_t n_erased = slot.n_logical();
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

Engine& Scheduler::engine() { return state_->engine; }

}  // namespace sh::engine
