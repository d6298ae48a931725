// SPDX-License-Identifier: MIT
// Replaces the global operator new by one that counts, on all threads. To be included in one file of a program.
#pragma once

#include <atomic>
#include <cstdint>
#include <cstdlib>
#include <new>

namespace sh {

inline std::atomic<int64_t> n_allocations{0};

inline void* counted(std::size_t n_bytes, std::size_t alignment) noexcept {
  n_allocations.fetch_add(1, std::memory_order_relaxed);
  const std::size_t n = (n_bytes + alignment - 1) / alignment * alignment;
  return std::aligned_alloc(alignment, n == 0 ? alignment : n);
}
inline void* counted_or_throw(std::size_t n_bytes, std::size_t alignment) {
  void* memory = counted(n_bytes, alignment);
  if (memory == nullptr) throw std::bad_alloc();
  return memory;
}

}  // namespace sh

// The forms for arrays call these.
void* operator new(std::size_t n) {
  return sh::counted_or_throw(n, __STDCPP_DEFAULT_NEW_ALIGNMENT__);
}
void* operator new(std::size_t n, const std::nothrow_t&) noexcept {
  return sh::counted(n, __STDCPP_DEFAULT_NEW_ALIGNMENT__);
}
void* operator new(std::size_t n, std::align_val_t alignment) {
  return sh::counted_or_throw(n, static_cast<std::size_t>(alignment));
}
void operator delete(void* memory) noexcept {
  std::free(memory);
}
void operator delete(void* memory, std::size_t) noexcept {
  std::free(memory);
}
void operator delete(void* memory, const std::nothrow_t&) noexcept {
  std::free(memory);
}
void operator delete(void* memory, std::align_val_t) noexcept {
  std::free(memory);
}
void operator delete(void* memory, std::size_t, std::align_val_t) noexcept {
  std::free(memory);
}
