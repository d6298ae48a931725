// SPDX-License-Identifier: MIT
// Time between tokens of conversations that decode, while another one is compacted in the background and while
// none is, in turn. Prints a table and one line of JSON.
//   latency_bench MODEL.gguf TEXT [N_CONTEXT=8192] [ROUNDS=5] [METHOD=self_study] [CONVERSATIONS=3] [THREADS=0]
//                 [STEP_MS]
// TEXT is a plain file, or a .jsonl whose first line has a "context". With the METHOD "prompt" the other
// conversation's prompt of N_CONTEXT tokens is read in place of a compaction, in steps of STEP_MS (--step-ms).
#include <fmt/format.h>

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <cstdlib>
#include <mutex>
#include <numeric>
#include <string>
#include <thread>
#include <vector>

#include "base/clock.h"
#include "base/json.h"
#include "base/log.h"
#include "base/mapped_file.h"
#include "engine/scheduler.h"

namespace {

using namespace sh;

constexpr int64_t kAnswerTokens =
    512;  // then a conversation begins its answer anew, so that none grows all the time

[[noreturn]] void give_up(const std::string& message) {
  fmt::print(stderr, "error: {}\n", message);
  std::exit(1);
}

std::string read_text(const std::string& path) {
  auto text = read_file(path);
  if (!text.ok()) give_up(text.error().message);
  if (!path.ends_with(".jsonl")) return *text;
  const auto json = parse_json(std::string_view(*text).substr(0, text->find('\n')));
  if (!json.ok() || !json->contains("context")) give_up(path + ": the first line has no \"context\"");
  return (*json)["context"].get<std::string>();
}

/// Gaps between tokens, in milliseconds, sorted into two piles.
class Gaps {
 public:
  void set_disturbed(bool is_disturbed) {
    std::lock_guard lock(mutex_);
    is_disturbed_ = is_disturbed;
    ++window_;
  }
  uint64_t window() {
    std::lock_guard lock(mutex_);
    return window_;
  }
  /// `window`: in which the gap began; one that spans two belongs to neither.
  void add(double ms, uint64_t window) {
    std::lock_guard lock(mutex_);
    if (window == window_ && is_recording_) (is_disturbed_ ? with : without).push_back(ms);
  }
  void record(bool is_on) {
    std::lock_guard lock(mutex_);
    is_recording_ = is_on;
    ++window_;
  }
  std::vector<double> with, without;  // read when nothing runs any more

 private:
  std::mutex mutex_;
  bool is_disturbed_ = false, is_recording_ = false;
  uint64_t window_ = 0;
};

/// A conversation that answers again and again. Its callbacks run on the scheduler's thread.
class Talker {
 public:
  Talker(engine::Scheduler& scheduler, std::vector<int32_t> prompt, int32_t id_slot, Gaps& gaps)
      : scheduler_(scheduler), gaps_(gaps) {
    request_.prompt = std::move(prompt);
    request_.sampling.temperature = 0;
    request_.n_predict = kAnswerTokens;
    request_.ignore_eos = true;
    request_.id_slot = id_slot;
    submit();
  }
  void stop() { is_stopping_ = true; }
  bool has_ended() const { return has_ended_; }
  int64_t n_tokens() const { return n_tokens_; }

 private:
  void submit() {
    last_us_ = 0;
    const auto id = scheduler_.submit(request_, [this](const engine::GenerationEvent& event) { on_event(event); });
    if (!id.ok()) give_up(id.error().message);
  }
  void on_event(const engine::GenerationEvent& event) {
    if (event.error) give_up(event.error->message);
    if (!event.ids.empty()) {
      const int64_t now = now_us();
      if (last_us_ != 0) gaps_.add(static_cast<double>(now - last_us_) * 1e-3, window_);
      last_us_ = now;
      window_ = gaps_.window();
      ++n_tokens_;
    }
    if (!event.is_final) return;
    if (is_stopping_ || event.stop_reason == engine::StopReason::cancelled)
      has_ended_ = true;
    else
      submit();
  }

  engine::Scheduler& scheduler_;
  Gaps& gaps_;
  engine::GenerationRequest request_;
  int64_t last_us_ = 0;
  uint64_t window_ = 0;
  std::atomic<int64_t> n_tokens_{0};
  std::atomic<bool> is_stopping_{false}, has_ended_{false};
};

/// Waits for a callback.
template <typename T>
class Answer {
 public:
  void set(T value) {
    std::lock_guard lock(mutex_);
    value_ = std::move(value);
    changed_.notify_all();
  }
  T wait() {
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [&] { return value_.has_value(); });
    return std::move(*value_);
  }

 private:
  std::mutex mutex_;
  std::condition_variable changed_;
  std::optional<T> value_;
};

void erase(engine::Scheduler& scheduler, int32_t id_slot) {
  Answer<bool> erased;
  scheduler.erase_slot(id_slot, [&](const Result<int64_t>&) { erased.set(true); });
  erased.wait();
}

/// Needs: the slot is empty.
void read_context(engine::Scheduler& scheduler, const std::vector<int32_t>& ids, int32_t id_slot) {
  Answer<bool> read;
  engine::GenerationRequest request{.prompt = ids, .n_predict = 0, .id_slot = id_slot};
  const auto id = scheduler.submit(request, [&](const engine::GenerationEvent& event) {
    if (event.error) give_up(event.error->message);
    if (event.is_final) read.set(true);
  });
  if (!id.ok()) give_up(id.error().message);
  read.wait();
}

double quantile(std::vector<double>& values, double q) {
  if (values.empty()) return 0;
  const auto at = std::min(values.size() - 1, static_cast<size_t>(q * static_cast<double>(values.size())));
  std::nth_element(values.begin(), values.begin() + static_cast<std::ptrdiff_t>(at), values.end());
  return values[at];
}

Json summary(std::vector<double>& gaps) {
  const double mean =
      std::accumulate(gaps.begin(), gaps.end(), 0.0) / static_cast<double>(std::max<size_t>(1, gaps.size()));
  return {{"n", gaps.size()},
          {"mean_ms", mean},
          {"p50_ms", quantile(gaps, 0.5)},
          {"p90_ms", quantile(gaps, 0.9)},
          {"p99_ms", quantile(gaps, 0.99)},
          {"max_ms", quantile(gaps, 1.0)}};
}

}  // namespace

int main(int argc, char** argv) {
  if (argc < 3) {
    fmt::print(stderr,
               "usage: latency_bench MODEL.gguf TEXT [N_CONTEXT] [ROUNDS] [METHOD] [CONVERSATIONS] [THREADS] "
               "[STEP_MS]\n");
    return 1;
  }
  const auto argument = [&](int index, int64_t otherwise) {
    return argc > index ? std::atoll(argv[index]) : otherwise;
  };
  const int64_t n_context = argument(3, 8192), n_rounds = argument(4, 5);
  const std::string method = argc > 5 ? argv[5] : "self_study";
  const bool is_prompt = method == "prompt";
  const auto n_talkers = static_cast<int32_t>(argument(6, 3));
  set_log_level(LogLevel::warning);

  auto opened =
      engine::Engine::open({.model_path = argv[1],
                            .n_ctx = n_context + 2048 * n_talkers,
                            .n_parallel = n_talkers + 1,
                            .step_ms = static_cast<int32_t>(argument(8, engine::EngineOptions{}.step_ms)),
                            .n_threads = static_cast<int32_t>(argument(7, 0))});
  if (!opened.ok()) give_up(opened.error().message);
  engine::Engine& engine = **opened;
  std::vector<int32_t> ids = engine::encode_opening(engine, read_text(argv[2]));
  for (size_t i = 1; std::ssize(ids) < n_context; ++i) ids.push_back(ids[i]);  // a short text is repeated
  ids.resize(static_cast<size_t>(n_context));

  Gaps gaps;
  std::vector<double> seconds;
  double seconds_alone = 0, rows_before = 0, rows_after = 0;
  {
    engine::Scheduler scheduler(engine);
    const auto compact = [&] {
      Answer<Result<engine::CompactionReport>> answer;
      engine::CompactionRequest request{.method = method, .ratio = 8};
      scheduler.compact(n_talkers, request,
                        [&](Result<engine::CompactionReport> report) { answer.set(std::move(report)); });
      const Result<engine::CompactionReport> report = answer.wait();
      if (!report.ok()) give_up(report.error().message);
      rows_before = report->rows_before;
      rows_after = report->rows_after;
    };
    const auto disturb = [&] {
      erase(scheduler, n_talkers);
      if (!is_prompt) read_context(scheduler, ids, n_talkers);
      gaps.set_disturbed(true);
      gaps.record(true);
      const Stopwatch watch;
      is_prompt ? read_context(scheduler, ids, n_talkers) : compact();
      gaps.record(false);
      gaps.set_disturbed(false);
      return watch.seconds();
    };
    seconds_alone = disturb();

    std::vector<std::unique_ptr<Talker>> talkers;
    for (int32_t i = 0; i < n_talkers; ++i) {
      const auto first = ids.begin() + 200 * i;
      talkers.push_back(std::make_unique<Talker>(scheduler, std::vector<int32_t>(first, first + 200), i, gaps));
    }
    for (const auto& talker : talkers)
      while (talker->n_tokens() == 0) std::this_thread::sleep_for(std::chrono::milliseconds(1));
    for (int64_t round = 0; round < n_rounds; ++round) {
      seconds.push_back(disturb());
      gaps.record(true);
      std::this_thread::sleep_for(std::chrono::duration<double>(seconds.back()));
      gaps.record(false);
    }
    for (const auto& talker : talkers) talker->stop();
    for (const auto& talker : talkers)
      while (!talker->has_ended()) std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }

  const Json without = summary(gaps.without), with = summary(gaps.with);
  const auto ratio = [&](const char* name) {
    return with[name].get<double>() / std::max(1e-9, without[name].get<double>());
  };
  fmt::print("| between tokens, ms | n | mean | p50 | p90 | p99 | max |\n|---|---|---|---|---|---|---|\n");
  for (const auto& [name, row] :
       {std::pair("undisturbed", &without),
        std::pair(is_prompt ? "while a prompt is read" : "while one is compacted", &with)})
    fmt::print("| {} | {} | {:.3f} | {:.3f} | {:.3f} | {:.3f} | {:.3f} |\n", name, (*row)["n"].get<int64_t>(),
               (*row)["mean_ms"].get<double>(), (*row)["p50_ms"].get<double>(), (*row)["p90_ms"].get<double>(),
               (*row)["p99_ms"].get<double>(), (*row)["max_ms"].get<double>());
  fmt::print("| ratio | | {:.2f} | {:.2f} | {:.2f} | {:.2f} | {:.2f} |\n\n", ratio("mean_ms"), ratio("p50_ms"),
             ratio("p90_ms"), ratio("p99_ms"), ratio("max_ms"));
  const double mean_seconds =
      std::accumulate(seconds.begin(), seconds.end(), 0.0) / static_cast<double>(seconds.size());
  Json line{{"bench", "latency"},
            {"model", engine.alias()},
            {"threads", engine.thread_pool().n_threads()},
            {"kernels", engine.kernels().name},
            {"n_context", n_context},
            {"n_conversations", n_talkers},
            {"method", method},
            {"rounds", n_rounds}};
  if (is_prompt) {
    const auto n_prompt = static_cast<double>(n_context);
    fmt::print("prompt: {:.1f} tokens/s alone, {:.1f} beside the others\n\n", n_prompt / seconds_alone,
               n_prompt / mean_seconds);
    line.update({{"step_ms", engine.options().step_ms},
                 {"n_ubatch", engine.options().n_ubatch},
                 {"prompt_tokens_per_second_alone", n_prompt / seconds_alone},
                 {"prompt_tokens_per_second", n_prompt / mean_seconds}});
  } else {
    line.update({{"rows_before", rows_before},
                 {"rows_after", rows_after},
                 {"compaction_seconds_alone", seconds_alone},
                 {"compaction_seconds", mean_seconds}});
  }
  line.update(
      {{"without", without}, {"with", with}, {"p50_ratio", ratio("p50_ms")}, {"p99_ratio", ratio("p99_ms")}});
  fmt::print("{}\n", dump_json(line));
  return 0;
}
