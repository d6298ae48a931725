// SPDX-License-Identifier: MIT
#pragma once

#include <cstddef>

namespace sh::kernels {

/// Memory of the calling thread for one kernel call, aligned to 64 bytes; the next call of thread_scratch may move
/// it. Bounded by the kernels' panel sizes (below 1 MiB), whatever the matrices.
std::byte* thread_scratch(size_t n_bytes);

}  // namespace sh::kernels
