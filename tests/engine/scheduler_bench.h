// SPDX-License-Identifier: MIT
// A scheduler with the scribe model, and clients that wait for what it says: what its tests run on.
#pragma once

#include <chrono>
#include <condition_variable>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "base/log.h"
#include "engine/scheduler.h"
#include "engine/scribe.h"

namespace sh::engine {

inline constexpr auto kPatience = std::chrono::seconds(120);  // far above any test's work, also under a sanitizer

/// The events of one request.
class Client {
 public:
  std::function<void(const GenerationEvent&)> sink() {
    return [this](const GenerationEvent& event) {
      if (on_event) on_event(event);
      std::lock_guard lock(mutex_);
      EXPECT_FALSE(is_final_) << "an event behind the final one";
      events_.push_back(event);
      is_final_ = is_final_ || event.is_final;
      changed_.notify_all();
    };
  }
  /// Waits for the end.
  const GenerationEvent& last() {
    std::unique_lock lock(mutex_);
    EXPECT_TRUE(changed_.wait_for(lock, kPatience, [&] { return is_final_; })) << "the request does not end";
    return events_.back();
  }
  std::vector<int32_t> ids() {
    last();
    std::vector<int32_t> ids;
    for (const GenerationEvent& event : events_) ids.insert(ids.end(), event.ids.begin(), event.ids.end());
    return ids;
  }
  std::string text() {
    last();
    std::string text;
    for (const GenerationEvent& event : events_) text += event.text;
    return text;
  }
  std::vector<CompactionEvent> compactions() {
    last();
    std::vector<CompactionEvent> all;
    for (const GenerationEvent& event : events_) {
      EXPECT_TRUE(!event.is_prompt_progress || event.compactions.empty());
      all.insert(all.end(), event.compactions.begin(), event.compactions.end());
    }
    return all;
  }
  const std::vector<GenerationEvent>& events() {
    last();
    return events_;
  }

  std::function<void(const GenerationEvent&)> on_event;  // on the scheduler's thread

 private:
  std::mutex mutex_;
  std::condition_variable changed_;
  std::vector<GenerationEvent> events_;
  bool is_final_ = false;
};

/// The answer of a command.
template <typename T>
class Answer {
 public:
  std::function<void(Result<T>)> sink() {
    return [this](Result<T> result) {
      std::lock_guard lock(mutex_);
      EXPECT_FALSE(result_.has_value()) << "answered twice";
      result_ = std::move(result);
      changed_.notify_all();
    };
  }
  const Result<T>& wait() {
    std::unique_lock lock(mutex_);
    EXPECT_TRUE(changed_.wait_for(lock, kPatience, [&] { return result_.has_value(); }))
        << "the command is not answered";
    return *result_;
  }
  bool is_there() {
    std::lock_guard lock(mutex_);
    return result_.has_value();
  }

 private:
  std::mutex mutex_;
  std::condition_variable changed_;
  std::optional<Result<T>> result_;
};

/// A scheduler with one document and its questions.
class Bench {
 public:
  explicit Bench(EngineOptions options = {}, size_t i_document = 0)
      : engine(open_scribe(std::move(options))),
        document(read_document("512", i_document)),
        ids(document_ids(*engine, document)) {
    set_log_level(LogLevel::error);  // compactions log a line each
    scheduler = std::make_unique<Scheduler>(*engine);
  }
  GenerationRequest greedy(std::vector<int32_t> prompt, int64_t n_predict = 24) const {
    GenerationRequest request{.prompt = std::move(prompt), .n_predict = n_predict};
    request.sampling.temperature = 0;
    return request;
  }
  GenerationRequest asking(size_t i_question) const {
    return greedy(joined(ids, question_ids(*engine, document.questions[i_question].text)));
  }
  uint64_t submit(GenerationRequest request, Client& client) {
    const auto id = scheduler->submit(std::move(request), client.sink());
    EXPECT_TRUE(id.ok()) << (id.ok() ? "" : id.error().message);
    return id.ok() ? *id : 0;
  }
  /// Runs one request to its end.
  std::vector<int32_t> run(GenerationRequest request, GenerationEvent* last = nullptr) {
    Client client;
    submit(std::move(request), client);
    if (last != nullptr) *last = client.last();
    return client.ids();
  }
  std::string run_text(GenerationRequest request, GenerationEvent* last = nullptr) {
    Client client;
    submit(std::move(request), client);
    if (last != nullptr) *last = client.last();
    return trimmed(client.text());
  }
  Result<CompactionReport> compact(CompactionRequest request, int32_t id_slot = 0) {
    Answer<CompactionReport> answer;
    scheduler->compact(id_slot, std::move(request), answer.sink());
    return answer.wait();
  }
  /// Waits until `is_true(status of the slot)`.
  bool wait_for(int32_t id_slot, const std::function<bool(const SlotStatus&)>& is_true) const {
    const auto end = std::chrono::steady_clock::now() + kPatience;
    while (std::chrono::steady_clock::now() < end) {
      if (is_true(scheduler->slots()[static_cast<size_t>(id_slot)])) return true;
      std::this_thread::sleep_for(std::chrono::microseconds(200));
    }
    ADD_FAILURE() << "slot " << id_slot << " does not get there";
    return false;
  }
  /// Reads a document into a slot, without an answer.
  void read(std::vector<int32_t> prompt, int32_t id_slot) {
    GenerationRequest request = greedy(std::move(prompt), 0);
    request.id_slot = id_slot;
    run(std::move(request));
  }
  /// What the conversation holds after `prompt` was answered with `generated`: the last token was never fed.
  static std::vector<int32_t> conversation(const std::vector<int32_t>& prompt,
                                           const std::vector<int32_t>& generated) {
    std::vector<int32_t> all = joined(prompt, generated);
    all.pop_back();
    return all;
  }

  std::unique_ptr<Engine> engine;
  Document document;
  std::vector<int32_t> ids;
  std::unique_ptr<Scheduler> scheduler;  // ends before the engine
};

inline CompactionRequest small_request(const std::string& method, double ratio = 4) {
  return {.method = method,
          .ratio = ratio,
          .self_study = {.n_conversations = 32, .max_question_tokens = 24, .max_answer_tokens = 8}};
}
/// Runs for seconds, until it is cancelled: far longer than a test needs to meet it.
inline CompactionRequest slow_request() {
  return {.method = "self_study", .ratio = 4, .self_study = {.n_conversations = 20000, .coverage_tolerance = 0}};
}

}  // namespace sh::engine
