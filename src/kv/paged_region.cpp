// SPDX-License-Identifier: MIT
#include "kv/paged_region.h"

#include <fmt/format.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <utility>

namespace sh::kv {

Result<PagedRegion> PagedRegion::reserve(int64_t n_bytes) {
  const int64_t page_bytes = sysconf(_SC_PAGESIZE);
  const int64_t rounded = std::max<int64_t>(1, (n_bytes + page_bytes - 1) / page_bytes) * page_bytes;
  void* memory = mmap(nullptr, static_cast<size_t>(rounded), PROT_READ | PROT_WRITE,
                      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (memory == MAP_FAILED)
    return Error{ErrorKind::out_of_memory,
                 fmt::format("KV cache: cannot reserve {} bytes of address space ({}); ask for a smaller cache",
                             rounded, std::strerror(errno))};
  // Huge pages would commit 2 MiB at the first touch and keep it while any block on it lives: memory is counted by
  // small pages here. Tried for large regions, with blocks given back in runs of 2 MiB: decoding behind 4096
  // tokens (26.0 and 25.2 for 29.7 and 24.0 tokens/s, in turn) and a prefill of them were not faster.
  madvise(memory, static_cast<size_t>(rounded), MADV_NOHUGEPAGE);
  return PagedRegion(static_cast<std::byte*>(memory), rounded, page_bytes);
}

PagedRegion::PagedRegion(PagedRegion&& other) noexcept
    : data_(std::exchange(other.data_, nullptr)),
      n_bytes_(other.n_bytes_),
      page_bytes_(other.page_bytes_),
      users_(std::move(other.users_)),
      idle_pages_(std::move(other.idle_pages_)) {}

PagedRegion::~PagedRegion() {
  if (data_ != nullptr) munmap(data_, static_cast<size_t>(n_bytes_));
}

void PagedRegion::retain(int64_t begin, int64_t end) {
  const int64_t last_page = (end - 1) / page_bytes_;
  if (last_page >= static_cast<int64_t>(users_.size())) users_.resize(static_cast<size_t>(last_page) + 1);
  for (int64_t page = begin / page_bytes_; page <= last_page; ++page) ++users_[static_cast<size_t>(page)];
}

void PagedRegion::release(int64_t begin, int64_t end) {
  for (int64_t page = begin / page_bytes_; page <= (end - 1) / page_bytes_; ++page) {
    SH_DCHECK(users_[static_cast<size_t>(page)] > 0);
    if (--users_[static_cast<size_t>(page)] == 0) idle_pages_.push_back(page);
  }
}

void PagedRegion::give_back(std::span<const int64_t> pages) {
  int64_t run_begin = 0, run_end = 0;
  const auto flush = [&] {
    // A failure (memory locked by mlockall) keeps the pages, which is harmless.
    if (run_end > run_begin)
      madvise(data_ + run_begin * page_bytes_, static_cast<size_t>((run_end - run_begin) * page_bytes_),
              MADV_DONTNEED);
  };
  for (const int64_t page : pages) {
    if (users_[static_cast<size_t>(page)] != 0 || page < run_end) continue;
    if (page != run_end) {
      flush();
      run_begin = page;
    }
    run_end = page + 1;
  }
  flush();
}

}  // namespace sh::kv
