// SPDX-License-Identifier: MIT
// Address space whose pages cost memory only while somebody uses them. Internal to the room.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <utility>
#include <vector>

#include "base/result.h"

namespace sh::kv {

/// A reserved range of addresses. Users say which byte ranges they use; ranges need not be page multiples, and a
/// page goes back to the operating system when the last range on it is released.
/// Threads: one at a time; the bytes themselves need no lock.
class PagedRegion {
 public:
  /// Errors: out_of_memory when the address space is refused.
  static Result<PagedRegion> reserve(int64_t n_bytes);
  PagedRegion(PagedRegion&& other) noexcept;
  PagedRegion& operator=(PagedRegion&&) = delete;
  ~PagedRegion();

  std::byte* data() const { return data_; }
  int64_t n_bytes() const { return n_bytes_; }
  void retain(int64_t begin, int64_t end);
  /// Pages left without a user wait for take_idle() and give_back(), so that a bulk release makes one system call
  /// a run of pages.
  void release(int64_t begin, int64_t end);
  bool has_idle() const { return !idle_pages_.empty(); }
  /// The pages that lost their last user since the last call, in no order.
  std::vector<int64_t> take_idle() { return std::exchange(idle_pages_, {}); }
  /// Gives back those of the pages that found no new user meanwhile.
  /// Needs: `pages` came from take_idle() and are sorted.
  void give_back(std::span<const int64_t> pages);

 private:
  PagedRegion(std::byte* data, int64_t n_bytes, int64_t page_bytes)
      : data_(data), n_bytes_(n_bytes), page_bytes_(page_bytes) {}
  std::byte* data_ = nullptr;
  int64_t n_bytes_ = 0;
  int64_t page_bytes_ = 0;
  std::vector<uint32_t> users_;      // [pages up to the highest ever used]
  std::vector<int64_t> idle_pages_;  // released since the last take_idle()
};

}  // namespace sh::kv
