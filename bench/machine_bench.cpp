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

constexpr int kChains = 12;  // more than latency times throughput of either instruction

// In assembly: compilers merge equal chains, copy accumulators or keep them in memory, and then measure that.
#define SH_TWELVE(op)                                                                                   \
  op " %%zmm12, %%zmm13, %%zmm0\n" op " %%zmm12, %%zmm13, %%zmm1\n" op " %%zmm12, %%zmm13, %%zmm2\n" op \
     " %%zmm12, %%zmm13, %%zmm3\n" op " %%zmm12, %%zmm13, %%zmm4\n" op " %%zmm12, %%zmm13, %%zmm5\n" op \
     " %%zmm12, %%zmm13, %%zmm6\n" op " %%zmm12, %%zmm13, %%zmm7\n" op " %%zmm12, %%zmm13, %%zmm8\n" op \
     " %%zmm12, %%zmm13, %%zmm9\n" op " %%zmm12, %%zmm13, %%zmm10\n" op " %%zmm12, %%zmm13, %%zmm11\n"
#define SH_CLOBBERS                                                                                          \
  "zmm0", "zmm1", "zmm2", "zmm3", "zmm4", "zmm5", "zmm6", "zmm7", "zmm8", "zmm9", "zmm10", "zmm11", "zmm12", \
      "zmm13"

void fma_avx512(int64_t n) {
  asm volatile("vzeroall" ::: SH_CLOBBERS);
  for (int64_t i = 0; i < n; ++i) asm volatile(SH_TWELVE("vfmadd231ps")::: SH_CLOBBERS);
}
void vnni_avx512(int64_t n) {
  asm volatile("vzeroall" ::: SH_CLOBBERS);
  for (int64_t i = 0; i < n; ++i) asm volatile(SH_TWELVE("vpdpbusd")::: SH_CLOBBERS);
}
#undef SH_TWELVE
#undef SH_CLOBBERS

SH_TARGET_END

bool has_avx512() {
  return kernels::choose_kernels("avx512").ok();
}

void BM_fma_peak(benchmark::State& state) {
  if (!has_avx512()) return state.SkipWithError("needs avx512");
  constexpr int64_t kSteps = 1 << 16;
  for (auto _ : state) fma_avx512(kSteps);
  state.counters["GFLOP/s"] = benchmark::Counter(
      static_cast<double>(state.iterations()) * kSteps * kChains * 32 * 1e-9, benchmark::Counter::kIsRate);
}
void BM_vnni_peak(benchmark::State& state) {
  if (!has_avx512()) return state.SkipWithError("needs avx512 with vnni");
  constexpr int64_t kSteps = 1 << 16;
  for (auto _ : state) vnni_avx512(kSteps);
  state.counters["Gop/s"] = benchmark::Counter(
      static_cast<double>(state.iterations()) * kSteps * kChains * 128 * 1e-9, benchmark::Counter::kIsRate);
}
BENCHMARK(BM_fma_peak)->Threads(1)->Threads(2)->UseRealTime();
BENCHMARK(BM_vnni_peak)->Threads(1)->Threads(2)->UseRealTime();
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
