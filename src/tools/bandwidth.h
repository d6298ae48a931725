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

/// The loop that it reads with; the sum of the words. Needs: n_words a multiple of 8.
uint64_t read_words(const uint64_t* words, int64_t n_words);

/// Whether reading so many bytes over and over is no test of the memory: they stay in the last-level cache.
bool fits_last_level_cache(double bytes);

/// The buffer that it reads: twice the last-level cache, from 256 MiB to 1 GiB.
int64_t bandwidth_buffer_bytes();

}  // namespace sh::tools
