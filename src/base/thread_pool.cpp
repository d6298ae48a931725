// SPDX-License-Identifier: MIT
#include "base/thread_pool.h"

#include <sched.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <unistd.h>

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

/// The caller waits only for workers that entered a loop, never for one that the operating system has not run yet: on a busy machine a
/// worker may be away for milliseconds, and a decode step has dozens of loops. (Waiting for all workers cost a factor of 20 there.)
struct ThreadPool::State {
  // The gate: workers inside (low 16 bits), whether the loop takes workers (kOpen), and the loop's number (high 32 bits).
  static constexpr uint64_t kOpen = uint64_t{1} << 16;
  static constexpr uint64_t kInside = kOpen - 1;
  static uint64_t loop_number(uint64_t gate) { return gate >> 32; }

  std::vector<std::thread> threads;
  std::mutex mutex;
  std::condition_variable wake;
  std::atomic<uint64_t> gate{0};
  std::atomic<int> n_sleeping{0};
  std::atomic<bool> stop{false};
  /// How many tasks of a worker's share were taken, below the number of the loop that this is of: nobody has to
  /// clear the counters of all workers before a loop.
  struct alignas(kCacheLine) Share {
    std::atomic<uint64_t> taken{0};
  };
  std::vector<Share> shares;  // one a worker
  // Of the loop that runs: written while the gate is shut and empty, read by workers that entered.
  int64_t n_tasks = 0;
  void (*call)(void*, int64_t, int) = nullptr;
  void* body = nullptr;

  /// The next task of `share`, which has n; n or more if all are taken.
  int64_t take(Share& share, uint64_t number, int64_t n) {
    uint64_t seen = share.taken.load(std::memory_order_relaxed);
    for (;;) {
      const uint64_t taken = loop_number(seen) == number ? seen & 0xFFFFFFFFu : 0;
      if (static_cast<int64_t>(taken) >= n) return n;
      if (share.taken.compare_exchange_weak(seen, number << 32 | (taken + 1), std::memory_order_relaxed))
        return static_cast<int64_t>(taken);
    }
  }

  /// The worker's own share first, then what others have left of theirs. One list for all workers gave 0.93 to
  /// 0.98 of the tokens a second in decoding and as many in prompts (0.6B and 135M, 2 threads, Zen 3; within the
  /// noise).
  void work(int worker, uint64_t number) {
    inside_loop = true;
    const int n_shares = static_cast<int>(shares.size());
    for (int i = 0; i < n_shares; ++i) {
      const int owner = (worker + i) % n_shares;
      const int64_t first = owner * n_tasks / n_shares, n = (owner + 1) * n_tasks / n_shares - first;
      for (int64_t task; (task = take(shares[static_cast<size_t>(owner)], number, n)) < n;)
        call(body, first + task, worker);
    }
    inside_loop = false;
  }

  /// Enters the loop that is open, if it is another than `seen`.
  bool try_enter(uint64_t& seen) {
    uint64_t now = gate.load(std::memory_order_acquire);
    while ((now & kOpen) != 0 && loop_number(now) != seen)
      if (gate.compare_exchange_weak(now, now + 1, std::memory_order_acq_rel)) {
        seen = loop_number(now);
        return true;
      }
    return false;
  }

  void loop(int worker) {
    uint64_t seen = 0;
    while (!stop.load(std::memory_order_relaxed)) {
      int spins = 0;
      while (!try_enter(seen)) {
        if (stop.load(std::memory_order_relaxed)) return;
        if (++spins < kSpinPauses) {
          cpu_pause();
          continue;
        }
        std::unique_lock lock(mutex);
        n_sleeping.fetch_add(1);
        wake.wait(lock, [&] {
          const uint64_t now = gate.load();
          return stop.load() || ((now & kOpen) != 0 && loop_number(now) != seen);
        });
        n_sleeping.fetch_sub(1);
        spins = 0;
      }
      work(worker, seen);
      gate.fetch_sub(1, std::memory_order_release);
    }
  }
};

namespace {
// Beside a thread of normal priority that never sleeps, one of niceness 10 gets about a tenth of its core, one of 19 a
// sixtieth. Three conversations of scribe that decode on both cores, time between tokens while a fourth is compacted
// to without: at 10 p99 8.4 times (0.5 to 4.5 ms) and the compaction 4.5 times as long as alone, at 19 p99 1.2 times
// and the compaction 24 times as long. What others feel is how long the core is away at a stretch.
constexpr int kBackgroundNiceness = 19;
constexpr uint64_t kBackgroundSliceNs = 100'000;  // the least that Linux 6.12 and later grant

/// The kernel's struct sched_attr in its first version; the C library has no declaration of it.
struct SchedulingAttributes {
  uint32_t size = 48;
  uint32_t policy = SCHED_OTHER;
  uint64_t flags = 0;
  int32_t niceness = kBackgroundNiceness;
  uint32_t priority = 0;
  uint64_t slice_ns = kBackgroundSliceNs;
  uint64_t deadline = 0, period = 0;
};
static_assert(sizeof(SchedulingAttributes) == 48);
}  // namespace

void enter_background_priority() {
  // Linux counts niceness by thread. Refused or not known elsewhere, the thread is merely not polite.
  const SchedulingAttributes attributes;
  if (syscall(SYS_sched_setattr, 0, &attributes, 0) == 0) return;
  setpriority(PRIO_PROCESS, static_cast<id_t>(syscall(SYS_gettid)), kBackgroundNiceness);
}

ThreadPool::ThreadPool(int n_threads, ThreadPriority priority) : state_(std::make_unique<State>()) {
  SH_CHECK(n_threads >= 1, "a thread pool needs at least the calling thread");
  state_->shares = std::vector<State::Share>(static_cast<size_t>(n_threads));
  for (int worker = 1; worker < n_threads; ++worker)
    state_->threads.emplace_back([state = state_.get(), worker, priority] {
      if (priority == ThreadPriority::background) enter_background_priority();
      state->loop(worker);
    });
}

ThreadPool::~ThreadPool() {
  {
    std::lock_guard lock(state_->mutex);
    state_->stop.store(true);
  }
  state_->wake.notify_all();
  for (std::thread& thread : state_->threads) thread.join();
}

int ThreadPool::n_threads() const {
  return static_cast<int>(state_->shares.size());
}

void ThreadPool::run_erased(int64_t n_tasks, void (*call)(void*, int64_t, int), void* body) {
  if (n_tasks <= 0) return;
  SH_CHECK(n_tasks < int64_t{1} << 32, "a loop has more tasks than a share can count");
  if (state_->threads.empty() || n_tasks == 1 || inside_loop) {
    for (int64_t task = 0; task < n_tasks; ++task) call(body, task, 0);
    return;
  }
  State& s = *state_;
  s.call = call;
  s.body = body;
  s.n_tasks = n_tasks;
  const uint64_t number = (State::loop_number(s.gate.load(std::memory_order_relaxed)) + 1) & 0xFFFFFFFFu;
  s.gate.store(number << 32 | State::kOpen);
  if (s.n_sleeping.load() > 0) {
    std::lock_guard lock(s.mutex);  // a worker between its check and its sleep would miss the call
    s.wake.notify_all();
  }
  s.work(0, number);
  s.gate.fetch_and(~State::kOpen, std::memory_order_acq_rel);
  for (int spins = 0; (s.gate.load(std::memory_order_acquire) & State::kInside) != 0;) {
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
