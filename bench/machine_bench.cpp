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

constexpr int kChains =
    24;  // independent sums, as a product's register tile has; started apart, or they would be one

/// One operand comes from memory in every step, so that nothing can be moved out of the loop.
float fma_avx512(const std::byte* operands, int64_t n) {
  __m512 sums[kChains];
#pragma GCC unroll 24
  for (int j = 0; j < kChains; ++j) sums[j] = _mm512_set1_ps(static_cast<float>(j));
  const __m512 a = _mm512_set1_ps(0.5f);
  for (int64_t i = 0; i < n; ++i) {
    const __m512 b = _mm512_loadu_ps(operands + 64 * (i & 1));
#pragma GCC unroll 24
    for (int j = 0; j < kChains; ++j) sums[j] = _mm512_fmadd_ps(a, b, sums[j]);
  }
  for (int j = 1; j < kChains; ++j) sums[0] = _mm512_add_ps(sums[0], sums[j]);
  return _mm512_reduce_add_ps(sums[0]);
}

int vnni_avx512(const std::byte* operands, int64_t n) {
  __m512i sums[kChains];
#pragma GCC unroll 24
  for (int j = 0; j < kChains; ++j) sums[j] = _mm512_set1_epi32(j);
  const __m512i a = _mm512_set1_epi8(3);
  for (int64_t i = 0; i < n; ++i) {
    const __m512i b = _mm512_loadu_si512(operands + 64 * (i & 1));
#pragma GCC unroll 24
    for (int j = 0; j < kChains; ++j) sums[j] = _mm512_dpbusd_epi32(sums[j], a, b);
  }
  for (int j = 1; j < kChains; ++j) sums[0] = _mm512_add_epi32(sums[0], sums[j]);
  return _mm512_reduce_add_epi32(sums[0]);
}

SH_TARGET_END

std::byte operands_of_peak[128] = {};  // not const: the compiler must not know them

bool has_avx512() {
  return kernels::choose_kernels("avx512").ok();
}

void BM_fma_peak(benchmark::State& state) {
  if (!has_avx512()) return state.SkipWithError("needs avx512");
  constexpr int64_t kSteps = 1 << 16;
  for (auto _ : state) benchmark::DoNotOptimize(fma_avx512(operands_of_peak, kSteps));
  state.counters["GFLOP/s"] = benchmark::Counter(
      static_cast<double>(state.iterations()) * kSteps * kChains * 32 * 1e-9, benchmark::Counter::kIsRate);
}
void BM_vnni_peak(benchmark::State& state) {
  if (!has_avx512()) return state.SkipWithError("needs avx512 with vnni");
  constexpr int64_t kSteps = 1 << 16;
  for (auto _ : state) benchmark::DoNotOptimize(vnni_avx512(operands_of_peak, kSteps));
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
