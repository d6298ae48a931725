// SPDX-License-Identifier: MIT
#pragma once

#include <cstdint>

#include "base/thread_pool.h"

namespace sh::tools {

/// How fast this machine's memory can be read by these threads: the best of several passes over a buffer larger
/// than the last-level cache.
/// Units: bytes a second.
/// Cost: some tenths of a second.
double measure_read_bandwidth(ThreadPool& pool);

/// The buffer that it reads: twice the last-level cache, from 256 MiB to 1 GiB.
int64_t bandwidth_buffer_bytes();

}  // namespace sh::tools
