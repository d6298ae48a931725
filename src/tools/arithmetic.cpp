// SPDX-License-Identifier: MIT
#include "tools/arithmetic.h"

#include <algorithm>
#include <cstdint>

#include "base/clock.h"

namespace sh::tools {

namespace {

constexpr int64_t kRunsOfThread = 100;  // of a pass
constexpr int kPasses = 3;

#if defined(__x86_64__)

constexpr int64_t kSteps = 1 << 16;
constexpr int kChains = 12;  // more than latency times throughput of any of the instructions

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
// Upper halves that are left in use would slow down what is compiled for SSE.
#define SH_LOOP(name, op)                                                            \
  void name() {                                                                      \
    asm volatile("vzeroall" ::: SH_CLOBBERS);                                        \
    for (int64_t i = 0; i < kSteps; ++i) asm volatile(SH_TWELVE(op)::: SH_CLOBBERS); \
    asm volatile("vzeroupper" ::: SH_CLOBBERS);                                      \
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

/// `lanes`: products that one step of a chain adds up.
constexpr PeakLoop peak_loop(void (*run)(), int64_t lanes, const char* instructions) {
  return {run, 2.0 * static_cast<double>(kSteps * kChains * lanes), instructions};
}

#endif

double measure(ThreadPool& pool, const std::optional<PeakLoop>& loop) {
  if (!loop) return 0;
  const int64_t n_runs = kRunsOfThread * pool.n_threads();
  double best = 0;
  for (int pass = 0; pass < kPasses; ++pass) {
    const Stopwatch watch;
    pool.run(n_runs, [&](int64_t, int) { loop->run(); });
    best = std::max(best, static_cast<double>(n_runs) * loop->operations / std::max(watch.seconds(), 1e-9));
  }
  return best;
}

}  // namespace

#if defined(__x86_64__)
std::optional<PeakLoop> multiply_add_loop(std::string_view kernels) {
  if (kernels == "avx512") return peak_loop(fma_512, 16, "avx512");
  if (kernels == "avx2") return peak_loop(fma_256, 8, "avx2");
  return std::nullopt;
}
std::optional<PeakLoop> byte_product_loop(std::string_view kernels) {
  if (kernels == "avx512") return peak_loop(dot_512, 64, "avx512 vnni");
  if (kernels == "avx2") return peak_loop(dot_256, 32, "avx2");
  return std::nullopt;
}
#else
std::optional<PeakLoop> multiply_add_loop(std::string_view) {
  return std::nullopt;
}
std::optional<PeakLoop> byte_product_loop(std::string_view) {
  return std::nullopt;
}
#endif

ArithmeticPeaks measure_arithmetic(ThreadPool& pool, std::string_view kernels) {
  return {measure(pool, multiply_add_loop(kernels)), measure(pool, byte_product_loop(kernels))};
}

}  // namespace sh::tools
