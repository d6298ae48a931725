// SPDX-License-Identifier: MIT
// What the tests of the kernel sets share: the sets that this CPU runs as a test parameter, and random numbers.
#pragma once

#include <gtest/gtest.h>

#include <cmath>
#include <string>
#include <vector>

#include "base/rng.h"
#include "kernels/kernel_set.h"

namespace sh::kernels {

constexpr double kEps = 0x1.0p-24;  // largest relative error of one rounding to f32

inline const KernelSet& generic_set() {
  return *choose_kernels("generic").value();
}

inline std::vector<const KernelSet*> supported_sets() {
  std::vector<const KernelSet*> sets;
  for (const KernelSet* set : kernel_sets())
    if (set->supported()) sets.push_back(set);
  return sets;
}

/// A test that runs once for every set that this CPU supports.
class EverySet : public testing::TestWithParam<const KernelSet*> {
 protected:
  const KernelSet& set() const { return *GetParam(); }
};
inline std::string name_of_set(const testing::TestParamInfo<const KernelSet*>& info) {
  return info.param->name;
}
#define SH_FOR_EVERY_SET(suite) \
  INSTANTIATE_TEST_SUITE_P(Sets, suite, testing::ValuesIn(supported_sets()), name_of_set)

inline std::vector<float> random_floats(int64_t n, uint64_t seed, float scale = 1.0f) {
  Rng rng(seed);
  std::vector<float> x(static_cast<size_t>(n));
  for (float& v : x) v = scale * static_cast<float>(rng.next_normal());
  return x;
}

/// Around the vector widths, primes, and sizes of real rows.
inline std::vector<int64_t> edge_sizes() {
  return {0, 1, 2, 3, 7, 8, 9, 15, 16, 17, 31, 32, 33, 63, 64, 65, 101, 127, 257, 1031};
}

}  // namespace sh::kernels
