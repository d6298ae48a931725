// SPDX-License-Identifier: MIT
#include "compaction/region_summary.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include "compaction/products.h"

namespace sh::compaction {
namespace {

float longest_row(MatView<const float> values, const kernels::KernelSet& kernels) {
  float longest = 0;
  for (int64_t row = 0; row < values.rows; ++row)
    longest = std::max(longest, kernels.dot(values.row(row), values.row(row), values.cols));
  return std::sqrt(longest);
}

}  // namespace

RegionSummariser::RegionSummariser(std::vector<int64_t> queries, const RegionSoftmax& softmax,
                                   const kernels::KernelSet& kernels)
    : softmax_(softmax), kernels_(kernels) {
  const MatView<const float> values = softmax.values();
  summary_.queries = std::move(queries);
  summary_.lse.reserve(summary_.queries.size());
  summary_.output = Mat<float>(static_cast<int64_t>(summary_.queries.size()), values.cols);
  summary_.n_rows = values.rows;
  summary_.n_finite_rows = softmax.n_finite_rows();
  summary_.longest_value = longest_row(values, kernels);
}

void RegionSummariser::add_tile(std::span<const int64_t> tile) {
  const MatView<const float> values = softmax_.values();
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
  MatView<const float> weights = softmax_.weights_of_tile(n_tile);
  if (m < n_tile) {
    weights_.resize(static_cast<size_t>(m * values.rows));
    for (int64_t k = 0; k < m; ++k)
      std::copy_n(softmax_.weights(wanted[static_cast<size_t>(k)]), values.rows,
                  weights_.data() + k * values.rows);
    weights = {weights_.data(), m, values.rows};
  }
  multiply_nn(kernels_, weights, values, summary_.output.view().slice(first, m));
  for (int64_t k = 0; k < m; ++k) {
    const float sum = softmax_.sum(wanted[static_cast<size_t>(k)]);
    const float inverse = sum > 0 ? 1.0f / sum : 0.0f;
    float* output = summary_.output.row(first + k);
    for (int64_t c = 0; c < values.cols; ++c) output[c] *= inverse;
  }
}

RegionSummary summarise_region(const HeadProblem& problem, std::vector<int64_t> queries,
                               const kernels::KernelSet& kernels) {
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
