// SPDX-License-Identifier: MIT
#include "compaction/gram.h"

#include <algorithm>
#include <vector>

namespace sh::compaction {
namespace {

constexpr int64_t kTileRows = 256;
constexpr int64_t kStripeColumns = 64;  // a stripe of the upper triangle; narrower wastes less below the diagonal

void copy_weighted(MatView<const float> from, std::span<const float> row_weight, int64_t begin, int64_t n,
                   float* to) {
  for (int64_t i = 0; i < n; ++i) {
    const float weight = row_weight[static_cast<size_t>(begin + i)];
    const float* row = from.row(begin + i);
    for (int64_t c = 0; c < from.cols; ++c) to[i * from.cols + c] = weight * row[c];
  }
}

}  // namespace

NormalEquations normal_equations(MatView<const float> rows, std::span<const float> row_weight,
                                 MatView<const float> targets, const kernels::KernelSet& kernels) {
  const int64_t t = rows.cols, n_targets = targets.cols;
  NormalEquations result{Mat<double>(t, t), Mat<double>(t, n_targets)};
  std::vector<float> tile(static_cast<size_t>(kTileRows * t)),
      target_tile(static_cast<size_t>(kTileRows * n_targets));
  std::vector<float> product(static_cast<size_t>(std::max(kStripeColumns, int64_t{1}) * std::max(t, n_targets)));
  for (int64_t begin = 0; begin < rows.rows; begin += kTileRows) {
    const int64_t m = std::min(kTileRows, rows.rows - begin);
    copy_weighted(rows, row_weight, begin, m, tile.data());
    copy_weighted(targets, row_weight, begin, m, target_tile.data());
    for (int64_t first = 0; first < t; first += kStripeColumns) {
      const int64_t width = std::min(kStripeColumns, t - first), n_right = t - first;
      kernels.gemm_tn({.m = width,
                       .n = n_right,
                       .k = m,
                       .a = tile.data() + first,
                       .a_stride = t,
                       .b = tile.data() + first,
                       .b_stride = t,
                       .c = product.data(),
                       .c_stride = n_right});
      for (int64_t i = 0; i < width; ++i)
        for (int64_t j = i; j < n_right; ++j)
          result.gram(first + i, first + j) += product[static_cast<size_t>(i * n_right + j)];
      kernels.gemm_tn({.m = width,
                       .n = n_targets,
                       .k = m,
                       .a = tile.data() + first,
                       .a_stride = t,
                       .b = target_tile.data(),
                       .b_stride = n_targets,
                       .c = product.data(),
                       .c_stride = n_targets});
      for (int64_t i = 0; i < width; ++i)
        for (int64_t j = 0; j < n_targets; ++j)
          result.rhs(first + i, j) += product[static_cast<size_t>(i * n_targets + j)];
    }
  }
  for (int64_t i = 0; i < t; ++i)
    for (int64_t j = 0; j < i; ++j) result.gram(i, j) = result.gram(j, i);
  return result;
}

}  // namespace sh::compaction
