// SPDX-License-Identifier: MIT
#include "base/pages.h"

#include <sys/mman.h>
#include <unistd.h>

#include <cstdint>

namespace sh {

namespace {

void advise_whole_pages(const void* begin, size_t n_bytes, int advice) {
  static const auto page_bytes = static_cast<uintptr_t>(sysconf(_SC_PAGESIZE));
  const auto address = reinterpret_cast<uintptr_t>(begin);
  const uintptr_t first = (address + page_bytes - 1) / page_bytes * page_bytes;
  const uintptr_t last = (address + n_bytes) / page_bytes * page_bytes;
  if (last > first) madvise(reinterpret_cast<void*>(first), last - first, advice);
}

}  // namespace

void commit_pages(const void* begin, size_t n_bytes) {
  advise_whole_pages(begin, n_bytes, MADV_POPULATE_WRITE);
}

void drop_pages(const void* begin, size_t n_bytes) {
  advise_whole_pages(begin, n_bytes, MADV_DONTNEED);
}

}  // namespace sh
