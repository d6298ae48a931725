// SPDX-License-Identifier: MIT
#pragma once

#include <cstdint>
#include <memory>
#include <type_traits>

namespace sh {

/// Background threads run where others leave a core idle.
enum class ThreadPriority { normal, background };
/// Lowers the calling thread for good.
void enter_background_priority();

/// A fixed set of threads that run one parallel loop at a time. The calling thread is worker 0.
/// Threads: one caller at a time; loops do not nest (a nested call runs on the calling worker alone).
class ThreadPool {
 public:
  /// `n_threads` counts the caller, whose own priority stays as it is; 1 makes every loop run in place.
  explicit ThreadPool(int n_threads, ThreadPriority priority = ThreadPriority::normal);
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  int n_threads() const;

  /// Calls fn(task, worker) for every task in [0, n_tasks). Worker i of n begins with tasks [i·n_tasks/n,
  /// (i+1)·n_tasks/n), in order, so that loops over the same rows meet the same caches and memory; who is done
  /// takes over tasks of others. What a task computes must not depend on the worker; `worker` in [0, n_threads)
  /// only picks scratch memory.
  template <typename Fn>
  void run(int64_t n_tasks, Fn&& fn) {
    using Body = std::remove_reference_t<Fn>;
    run_erased(
        n_tasks, [](void* body, int64_t task, int worker) { (*static_cast<Body*>(body))(task, worker); },
        const_cast<void*>(static_cast<const void*>(std::addressof(fn))));
  }

 private:
  void run_erased(int64_t n_tasks, void (*call)(void*, int64_t, int), void* body);
  struct State;
  std::unique_ptr<State> state_;
};

/// Cores that this process may run on, at least 1.
int hardware_threads();

}  // namespace sh
