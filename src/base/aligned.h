// SPDX-License-Identifier: MIT
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <new>
#include <type_traits>

namespace sh {

/// Memory aligned to a cache line, grown on demand and never shrunk: scratch that a step reuses. Content is not kept by grow().
template <typename T>
  requires(std::is_trivial_v<T>)
class AlignedBuffer {
 public:
  AlignedBuffer() = default;
  explicit AlignedBuffer(size_t n) { grow(n); }

  /// At least n elements; the pointer stays valid until the next grow that needs more.
  T* grow(size_t n) {
    if (n > n_) {
      const size_t n_bytes = (n * sizeof(T) + 63) / 64 * 64;
      memory_.reset(static_cast<T*>(::operator new(n_bytes, kAlignment)));
      n_ = n;
    }
    return memory_.get();
  }
  T* data() { return memory_.get(); }
  const T* data() const { return memory_.get(); }
  size_t n() const { return n_; }

 private:
  static constexpr std::align_val_t kAlignment{64};
  struct Free {
    void operator()(T* p) const { ::operator delete(p, kAlignment); }
  };
  std::unique_ptr<T, Free> memory_;
  size_t n_ = 0;
};

}  // namespace sh
