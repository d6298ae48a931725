// SPDX-License-Identifier: MIT
#include "compaction/region_summary.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include "base/aligned.h"
#include "base/check.h"

namespace sh::compaction {
namespace {

// [wanted of the tile, stretch], when not all of the tile is wanted. It stays with its thread: given back for
// every head it was a tenth of a score pass in page faults.
thread_local AlignedBuffer<float> wanted_weights;

float longest_row(MatView<const float> values, const kernels::KernelSet& kernels) {
  float longest = 0;
  for (int64_t row = 0; row < values.rows; ++row)
    longest = std::max(longest, kernels.dot(values.row(row), values.row(row), values.cols));
  return std::sqrt(longest);
}

}  // namespace

RegionSummariser::RegionSummariser(std::vector<int64_t> queries, RegionSoftmax& softmax,
                                   const kernels::KernelSet& kernels)
    : softmax_(softmax), kernels_(kernels) {
  const HeadProblem& problem = softmax.problem();
  summary_.queries = std::move(queries);
  summary_.lse.reserve(summary_.queries.size());
  summary_.output = Mat<float>(static_cast<int64_t>(summary_.queries.size()), problem.values.cols);
  summary_.n_rows = problem.values.rows;
}

RegionSummary RegionSummariser::take() {
  summary_.n_finite_rows = softmax_.n_finite_rows();
  return std::move(summary_);
}

void RegionSummariser::add_tile(std::span<const int64_t> tile) {
  const auto first = static_cast<int64_t>(summary_.lse.size()), n_tile = static_cast<int64_t>(tile.size());
  std::vector<int64_t> wanted;  // places in the tile
  for (int64_t i = 0; i < n_tile; ++i) {
    if (summary_.lse.size() == summary_.queries.size()) break;
    if (tile[static_cast<size_t>(i)] != summary_.queries[summary_.lse.size()]) continue;
    wanted.push_back(i);
    summary_.lse.push_back(softmax_.lse(i));
  }
  const auto m = static_cast<int64_t>(wanted.size());
  if (m == 0) return;
  MatView<float> output = summary_.output.view().slice(first, m);
  for_stretches(softmax_.problem(), [&](int64_t begin, int64_t end) {
    const MatView<const float> values = softmax_.values(begin, end);
    if (first == 0) summary_.longest_value = std::max(summary_.longest_value, longest_row(values, kernels_));
    const MatView<const float> all = softmax_.weights_of_tile(n_tile);
    MatView<const float> weights(all.data + begin, m, end - begin, all.stride);
    if (m < n_tile) {
      float* copy = wanted_weights.grow(static_cast<size_t>(m * weights.cols));
      for (int64_t k = 0; k < m; ++k)
        std::copy_n(all.row(wanted[static_cast<size_t>(k)]) + begin, weights.cols, copy + k * weights.cols);
      weights = {copy, m, weights.cols};
    }
    kernels_.gemm_nn({.m = m,
                      .n = values.cols,
                      .k = weights.cols,
                      .a = weights.data,
                      .a_stride = weights.stride,
                      .b = values.data,
                      .b_stride = values.stride,
                      .c = output.data,
                      .c_stride = output.stride,
                      .accumulate = true});
  });
  for (int64_t k = 0; k < m; ++k) {
    const float sum = softmax_.sum(wanted[static_cast<size_t>(k)]);
    const float inverse = sum > 0 ? 1.0f / sum : 0.0f;
    for (int64_t c = 0; c < output.cols; ++c) output(k, c) *= inverse;
  }
}

RegionSummary summarise_region(const HeadProblem& problem, std::vector<int64_t> queries,
                               const kernels::KernelSet& kernels) {
  SH_CHECK(problem.reader == nullptr, "rows that a reader gives may turn out late not to be finite");
  RegionSoftmax softmax(problem, kernels);
  RegionSummariser summariser(queries, softmax, kernels);
  const auto n = static_cast<int64_t>(queries.size());
  for (int64_t begin = 0; begin < n; begin += softmax.max_tile()) {
    const auto tile = std::span<const int64_t>(queries).subspan(
        static_cast<size_t>(begin), static_cast<size_t>(std::min(softmax.max_tile(), n - begin)));
    softmax.compute(tile);
    summariser.add_tile(tile);
  }
  return summariser.take();
}

}  // namespace sh::compaction
