// SPDX-License-Identifier: MIT
// What this machine can do at most: reading memory, float multiply-adds, byte dot products; with one and with two
// threads. The loops are those that `shorthand bench` takes its shares of. The other benchmarks are read against
// these figures. SHORTHAND_KERNELS picks the set whose vectors are used.
#include <benchmark/benchmark.h>

#include <cstring>

#include "base/aligned.h"
#include "base/env.h"
#include "kernels/kernel_set.h"
#include "tools/arithmetic.h"
#include "tools/bandwidth.h"

namespace sh {
namespace {

AlignedBuffer<uint64_t>& read_buffer() {
  static AlignedBuffer<uint64_t> buffer = [] {
    AlignedBuffer<uint64_t> memory(static_cast<size_t>(tools::bandwidth_buffer_bytes()) / sizeof(uint64_t));
    std::memset(static_cast<void*>(memory.data()), 0, memory.n() * sizeof(uint64_t));
    return memory;
  }();
  return buffer;
}

std::string_view active_kernels() {
  return kernels::choose_kernels(env::kernels().value_or("")).value()->name;
}

void peak(benchmark::State& state, const char* unit, const std::optional<tools::PeakLoop>& loop) {
  if (!loop) return state.SkipWithError("no loop is written for the kernels of this machine");
  for (auto _ : state) loop->run();
  const double operations = static_cast<double>(state.iterations()) * loop->operations;
  state.counters[unit] = benchmark::Counter(operations * 1e-9, benchmark::Counter::kIsRate);
  state.SetLabel(loop->instructions);
}
void BM_fma_peak(benchmark::State& state) {
  peak(state, "GFLOP/s", tools::multiply_add_loop(active_kernels()));
}
void BM_byte_dot_peak(benchmark::State& state) {
  peak(state, "Gop/s", tools::byte_product_loop(active_kernels()));
}
BENCHMARK(BM_fma_peak)->Threads(1)->Threads(2)->UseRealTime();
BENCHMARK(BM_byte_dot_peak)->Threads(1)->Threads(2)->UseRealTime();

/// Every thread reads its own part of the buffer.
void BM_read_memory(benchmark::State& state) {
  const int64_t n = static_cast<int64_t>(read_buffer().n()) / state.threads();
  const uint64_t* part = read_buffer().data() + n * state.thread_index();
  for (auto _ : state) benchmark::DoNotOptimize(tools::read_words(part, n));
  state.SetBytesProcessed(state.iterations() * n * static_cast<int64_t>(sizeof(uint64_t)));
}
BENCHMARK(BM_read_memory)->Threads(1)->Threads(2)->UseRealTime();

}  // namespace
}  // namespace sh
