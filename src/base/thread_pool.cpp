// SPDX-License-Identifier: MIT
#include "base/thread_pool.h"

#include <sched.h>

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <mutex>
#include <thread>
#include <vector>

#include "base/check.h"
#include "base/platform.h"

namespace sh {

namespace {
// A worker spins this many pauses before it sleeps. Decode starts a loop every few microseconds, and a futex wake costs
// more than a whole small loop; about 50 us of spinning bridges the gap between two steps without burning an idle core.
constexpr int kSpinPauses = 2000;
thread_local bool inside_loop = false;
}  // namespace

struct ThreadPool::State {
  std::vector<std::thread> threads;
  std::mutex mutex;
  std::condition_variable wake;
  std::atomic<uint64_t> generation{0};
  std::atomic<int64_t> next_task{0};
  std::atomic<int> n_busy{0};
  std::atomic<bool> stop{false};
  int64_t n_tasks = 0;
  void (*call)(void*, int64_t, int) = nullptr;
  void* body = nullptr;

  void work(int worker) {
    inside_loop = true;
    for (int64_t task; (task = next_task.fetch_add(1, std::memory_order_relaxed)) < n_tasks;) call(body, task, worker);
    inside_loop = false;
  }

  void loop(int worker) {
    uint64_t seen = 0;
    for (;;) {
      int spins = 0;
      while (generation.load(std::memory_order_acquire) == seen && !stop.load(std::memory_order_relaxed)) {
        if (++spins < kSpinPauses) {
          cpu_pause();
          continue;
        }
        std::unique_lock lock(mutex);
        wake.wait(lock, [&] { return generation.load(std::memory_order_acquire) != seen || stop.load(); });
      }
      if (stop.load()) return;
      seen = generation.load(std::memory_order_acquire);
      work(worker);
      n_busy.fetch_sub(1, std::memory_order_release);
    }
  }
};

ThreadPool::ThreadPool(int n_threads) : state_(std::make_unique<State>()) {
  SH_CHECK(n_threads >= 1, "a thread pool needs at least the calling thread");
  for (int worker = 1; worker < n_threads; ++worker)
    state_->threads.emplace_back([state = state_.get(), worker] { state->loop(worker); });
}

ThreadPool::~ThreadPool() {
  {
    std::lock_guard lock(state_->mutex);
    state_->stop.store(true);
  }
  state_->wake.notify_all();
  for (std::thread& thread : state_->threads) thread.join();
}

int ThreadPool::n_threads() const { return static_cast<int>(state_->threads.size()) + 1; }

void ThreadPool::run_erased(int64_t n_tasks, void (*call)(void*, int64_t, int), void* body) {
  if (n_tasks <= 0) return;
  if (state_->threads.empty() || n_tasks == 1 || inside_loop) {
    for (int64_t task = 0; task < n_tasks; ++task) call(body, task, 0);
    return;
  }
  State& s = *state_;
  s.call = call;
  s.body = body;
  s.n_tasks = n_tasks;
  s.next_task.store(0, std::memory_order_relaxed);
  s.n_busy.store(static_cast<int>(s.threads.size()), std::memory_order_relaxed);
  {
    std::lock_guard lock(s.mutex);
    s.generation.fetch_add(1, std::memory_order_release);
  }
  s.wake.notify_all();
  s.work(0);
  for (int spins = 0; s.n_busy.load(std::memory_order_acquire) != 0;) {
    if (++spins < kSpinPauses)
      cpu_pause();
    else
      std::this_thread::yield();
  }
}

int hardware_threads() {
  cpu_set_t set;
  CPU_ZERO(&set);
  if (sched_getaffinity(0, sizeof set, &set) == 0) return std::max(1, CPU_COUNT(&set));
  return std::max(1, static_cast<int>(std::thread::hardware_concurrency()));
}

}  // namespace sh
