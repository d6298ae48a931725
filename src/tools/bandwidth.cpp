// SPDX-License-Identifier: MIT
#include "tools/bandwidth.h"

#include <sys/mman.h>

#include <algorithm>
#include <atomic>
#include <cstring>

#include "base/clock.h"
#include "base/machine.h"

namespace sh::tools {

namespace {

constexpr int64_t kPiece = int64_t{4} << 20;  // one task; long enough that handing it out costs nothing
constexpr int kPasses = 3;

}  // namespace

uint64_t read_words(const uint64_t* words, int64_t n_words) {
  uint64_t sums[8] = {};  // independent chains, so that the loads and not the additions are what it waits for
  for (int64_t i = 0; i + 8 <= n_words; i += 8)
    for (int64_t j = 0; j < 8; ++j) sums[j] += words[i + j];
  uint64_t sum = 0;
  for (const uint64_t part : sums) sum += part;
  return sum;
}

bool fits_last_level_cache(double bytes) {
  static const auto cache = static_cast<double>(last_level_cache_bytes());  // some dozen files of the system
  return bytes <= cache;
}

int64_t bandwidth_buffer_bytes() {
  const int64_t bytes = std::clamp<int64_t>(2 * last_level_cache_bytes(), int64_t{256} << 20, int64_t{1} << 30);
  return bytes / kPiece * kPiece;
}

double measure_read_bandwidth(ThreadPool& pool) {
  const int64_t n_bytes = bandwidth_buffer_bytes();
  void* memory = mmap(nullptr, static_cast<size_t>(n_bytes), PROT_READ | PROT_WRITE,
                      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (memory == MAP_FAILED) return 0;
  madvise(memory, static_cast<size_t>(n_bytes), MADV_HUGEPAGE);
  auto* bytes = static_cast<std::byte*>(memory);
  const int64_t n_pieces = n_bytes / kPiece;
  pool.run(n_pieces, [&](int64_t piece, int) {
    std::memset(bytes + piece * kPiece, static_cast<int>(piece) | 1, static_cast<size_t>(kPiece));
  });
  std::atomic<uint64_t> sum{0};  // keeps the reads
  double best = 0;
  for (int pass = 0; pass < kPasses; ++pass) {
    const Stopwatch watch;
    pool.run(n_pieces, [&](int64_t piece, int) {
      sum.fetch_add(read_words(reinterpret_cast<const uint64_t*>(bytes + piece * kPiece), kPiece / 8),
                    std::memory_order_relaxed);
    });
    best = std::max(best, static_cast<double>(n_bytes) / std::max(watch.seconds(), 1e-9));
  }
  munmap(memory, static_cast<size_t>(n_bytes));
  return sum.load() == 0 ? 0 : best;
}

}  // namespace sh::tools
