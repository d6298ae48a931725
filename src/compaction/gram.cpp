// SPDX-License-Identifier: MIT
#include "compaction/gram.h"

#include <algorithm>
#include <vector>

namespace sh::compaction {
namespace {

constexpr int64_t kTileRows = 256;
constexpr int64_t kStripeColumns = 64;  // a stripe of the upper triangle; narrower wastes less below the diagonal

}  // namespace

NormalEquations normal_equations(MatView<const float> a, MatView<const float> b, const kernels::KernelSet& kernels) {
  const int64_t t = a.cols, n_targets = b.cols;
  NormalEquations result{Mat<double>(t, t), Mat<double>(t, n_targets)};
  std::vector<float> product(static_cast<size_t>(std::max(kStripeColumns, int64_t{1}) * std::max(t, n_targets)));
  for (int64_t begin = 0; begin < a.rows; begin += kTileRows) {
    const int64_t m = std::min(kTileRows, a.rows - begin);
    for (int64_t first = 0; first < t; first += kStripeColumns) {
      const int64_t width = std::min(kStripeColumns, t - first), n_right = t - first;
      kernels.gemm_tn({.m = width,
                       .n = n_right,
                       .k = m,
                       .a = a.row(begin) + first,
                       .a_stride = a.stride,
                       .b = a.row(begin) + first,
                       .b_stride = a.stride,
                       .c = product.data(),
                       .c_stride = n_right});
      for (int64_t i = 0; i < width; ++i)
        for (int64_t j = i; j < n_right; ++j)
          result.gram(first + i, first + j) += product[static_cast<size_t>(i * n_right + j)];
      kernels.gemm_tn({.m = width,
                       .n = n_targets,
                       .k = m,
                       .a = a.row(begin) + first,
                       .a_stride = a.stride,
                       .b = b.row(begin),
                       .b_stride = b.stride,
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
