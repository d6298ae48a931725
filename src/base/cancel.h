// SPDX-License-Identifier: MIT
#pragma once

#include <atomic>

namespace sh {

/// Whether a caller has asked to stop; a null flag never does.
inline bool is_cancelled(const std::atomic<bool>* cancel) {
  return cancel != nullptr && cancel->load(std::memory_order_relaxed);
}

}  // namespace sh
