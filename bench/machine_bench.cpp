// SPDX-License-Identifier: MIT
// What this machine can do at most: reading memory, float multiply-adds, byte dot products; with one and with two
// threads. The other benchmarks are read against these figures.
#include <benchmark/benchmark.h>

#include <cstring>
#include <vector>

#include "base/aligned.h"
#include "kernels/kernel_set.h"
#include "kernels/target_region.h"

namespace sh {
namespace {

constexpr size_t kReadBytes = size_t{256} << 20;  // far beyond the last cache

AlignedBuffer<float>& read_buffer() {
  static AlignedBuffer<float> buffer = [] {
    AlignedBuffer<float> memory(kReadBytes / sizeof(float));
    std::memset(static_cast<void*>(memory.data()), 0, kReadBytes);
    return memory;
  }();
  return buffer;
}

#if defined(__x86_64__)
SH_TARGET_BEGIN("avx2,fma,f16c,avx512f,avx512bw,avx512vl,avx512dq,avx512vnni")

float read_avx512(const float* p, size_t n) {
  __m512 sums[8];
  for (auto& sum : sums) sum = _mm512_setzero_ps();
  for (size_t i = 0; i < n; i += 128)
    for (size_t j = 0; j < 8; ++j) sums[j] = _mm512_add_ps(sums[j], _mm512_load_ps(p + i + 16 * j));
  for (size_t j = 1; j < 8; ++j) sums[0] = _mm512_add_ps(sums[0], sums[j]);
  return _mm512_reduce_add_ps(sums[0]);
}

SH_TARGET_END

constexpr int kChains = 12;  // more than latency times throughput of any of the instructions
constexpr int64_t kSteps = 1 << 16;

// In assembly: compilers merge equal chains, copy accumulators or keep them in memory, and then measure that.
#define SH_TWELVE(op) op("0") op("1") op("2") op("3") op("4") op("5") op("6") op("7") op("8") op("9") op("10") op("11")
#define SH_CLOBBERS                                                                                              \
  "xmm0", "xmm1", "xmm2", "xmm3", "xmm4", "xmm5", "xmm6", "xmm7", "xmm8", "xmm9", "xmm10", "xmm11", "xmm12", "xmm13", \
      "xmm14", "xmm15"
#define SH_FMA_512(to) "vfmadd231ps %%zmm12, %%zmm13, %%zmm" to "\n"
#define SH_DOT_512(to) "vpdpbusd %%zmm12, %%zmm13, %%zmm" to "\n"
#define SH_FMA_256(to) "vfmadd231ps %%ymm12, %%ymm13, %%ymm" to "\n"
#define SH_DOT_256(to)                           \
  "vpmaddubsw %%ymm12, %%ymm13, %%ymm14\n"       \
  "vpmaddwd %%ymm14, %%ymm15, %%ymm14\n"         \
  "vpaddd %%ymm14, %%ymm" to ", %%ymm" to "\n"
#define SH_LOOP(name, op)                                                            \
  void name() {                                                                      \
    asm volatile("vzeroall" ::: SH_CLOBBERS);                                        \
    for (int64_t i = 0; i < kSteps; ++i) asm volatile(SH_TWELVE(op)::: SH_CLOBBERS); \
  }
SH_LOOP(fma_512, SH_FMA_512)
SH_LOOP(dot_512, SH_DOT_512)
SH_LOOP(fma_256, SH_FMA_256)
SH_LOOP(dot_256, SH_DOT_256)
#undef SH_TWELVE
#undef SH_CLOBBERS
#undef SH_FMA_512
#undef SH_DOT_512
#undef SH_FMA_256
#undef SH_DOT_256
#undef SH_LOOP

bool can_run(const char* set) {
  return kernels::choose_kernels(set).ok();
}
bool has_avx512() {
  return can_run("avx512");
}

struct Loop {
  void (*run)();
  int64_t ops;  // of a chain's step
  const char* label;
};
/// The loop for the widest vectors that the kernels have here.
void peak(benchmark::State& state, const char* unit, const Loop& wide, const Loop& narrow) {
  if (!can_run("avx2")) return state.SkipWithError("needs avx2");
  const Loop& loop = has_avx512() ? wide : narrow;
  for (auto _ : state) loop.run();
  const int64_t n_ops = state.iterations() * kSteps * kChains * loop.ops;
  state.counters[unit] = benchmark::Counter(static_cast<double>(n_ops) * 1e-9, benchmark::Counter::kIsRate);
  state.SetLabel(loop.label);
}
/// Float multiply-adds.
void BM_fma_peak(benchmark::State& state) {
  peak(state, "GFLOP/s", {fma_512, 32, "avx512"}, {fma_256, 16, "avx2"});
}
/// Products of bytes into sums of 32 bits: one instruction with VNNI, three with AVX2.
void BM_byte_dot_peak(benchmark::State& state) {
  peak(state, "Gop/s", {dot_512, 128, "avx512 vnni"}, {dot_256, 64, "avx2"});
}
BENCHMARK(BM_fma_peak)->Threads(1)->Threads(2)->UseRealTime();
BENCHMARK(BM_byte_dot_peak)->Threads(1)->Threads(2)->UseRealTime();
#endif

/// Every thread reads its own part of the buffer.
void BM_read_memory(benchmark::State& state) {
  const size_t n_threads = static_cast<size_t>(state.threads());
  const size_t n = kReadBytes / sizeof(float) / n_threads;
  const float* part = read_buffer().data() + n * static_cast<size_t>(state.thread_index());
#if defined(__x86_64__)
  const bool is_wide = has_avx512();
#else
  const bool is_wide = false;
#endif
  const kernels::KernelSet& set = *kernels::choose_kernels("").value();
  for (auto _ : state) {
#if defined(__x86_64__)
    if (is_wide) {
      benchmark::DoNotOptimize(read_avx512(part, n));
      continue;
    }
#endif
    benchmark::DoNotOptimize(set.max(part, static_cast<int64_t>(n)));
  }
  state.SetBytesProcessed(state.iterations() * static_cast<int64_t>(n * sizeof(float)));
  state.SetLabel(is_wide ? "avx512 loads" : "max()");
}
BENCHMARK(BM_read_memory)->Threads(1)->Threads(2)->UseRealTime();

}  // namespace
}  // namespace sh
