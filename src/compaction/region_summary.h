// SPDX-License-Identifier: MIT
// What a pass over a whole region leaves for a fit, so that the fit reads the kept rows only.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "base/mat_view.h"
#include "compaction/problem.h"
#include "compaction/region.h"
#include "kernels/kernel_set.h"

namespace sh::compaction {

/// Of the region as it was before any row is left out.
struct RegionSummary {
  std::vector<int64_t> queries;  // [n] indices into the problem, increasing
  std::vector<float> lse;        // [n] as RegionSoftmax::lse()
  Mat<float> output;             // [n, dv] the region's own output, normalised; 0 for a query without weights
  int64_t n_rows = 0, n_finite_rows = 0;
  float longest_value = 0;  // the highest norm of a finite row's value
};

/// Fills a summary beside a pass that somebody else makes over tiles of queries.
class RegionSummariser {
 public:
  /// `queries` are increasing; others may be computed too.
  RegionSummariser(std::vector<int64_t> queries, RegionSoftmax& softmax, const kernels::KernelSet& kernels);
  /// Takes the wanted among the queries that the softmax has computed last: `tile`, increasing from call to call.
  /// Cost: T·dv products a wanted query.
  void add_tile(std::span<const int64_t> tile);
  RegionSummary take();

 private:
  RegionSoftmax& softmax_;
  const kernels::KernelSet& kernels_;
  RegionSummary summary_;
};

/// The summary by a pass of its own.
/// Cost: n·T·(d + dv) products and n·T exponentials.
RegionSummary summarise_region(const HeadProblem& problem, std::vector<int64_t> queries,
                               const kernels::KernelSet& kernels);

/// Floats that a summary of n queries holds.
constexpr int64_t summary_floats(int64_t n, int64_t value_width) {
  return n * (value_width + 3);
}

}  // namespace sh::compaction
