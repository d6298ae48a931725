// SPDX-License-Identifier: MIT
#pragma once

#include <optional>
#include <string_view>

#include "base/thread_pool.h"

namespace sh::tools {

/// A loop of one kind of instruction without waits, for the processor's peak.
struct PeakLoop {
  void (*run)();      // some tenths of a millisecond
  double operations;  // multiplications and additions of a run
  const char* instructions;
};
/// Float multiply-adds in the vectors of a kernel set; nothing for sets that no loop is written for (generic, neon).
std::optional<PeakLoop> multiply_add_loop(std::string_view kernels);
/// Products of bytes into sums of 32 bits, likewise: one instruction with VNNI, three with AVX2 (where codes of few bits
/// can do with fewer: several of their products fit into 16 bits).
std::optional<PeakLoop> byte_product_loop(std::string_view kernels);

/// Operations a second of all threads together; 0: not measured.
struct ArithmeticPeaks {
  double multiply_adds = 0, byte_products = 0;
};
/// The best of several passes.
/// Cost: some tenths of a second.
ArithmeticPeaks measure_arithmetic(ThreadPool& pool, std::string_view kernels);

}  // namespace sh::tools
