// SPDX-License-Identifier: MIT
#include "compaction/gram.h"

#include <algorithm>
#include <vector>

#include "compaction/products.h"

namespace sh::compaction {
namespace {

constexpr int64_t kTileRows = 256;
constexpr int64_t kStripeColumns = 64;  // a stripe of the upper triangle; narrower wastes less below the diagonal

// sums [width, b.cols - first_b] = columns [first_a, first_a + width) of A, transposed, times those of B from
// first_b on. False if stopped.
bool multiply_stripe(MatView<const float> a, int64_t first_a, int64_t width, MatView<const float> b,
                     int64_t first_b, const std::function<bool()>& should_stop, const kernels::KernelSet& kernels,
                     std::vector<float>& product, std::vector<double>& sums) {
  const int64_t n_right = b.cols - first_b;
  product.resize(static_cast<size_t>(kStripeColumns * b.cols));
  sums.resize(static_cast<size_t>(kStripeColumns * b.cols));
  std::fill_n(sums.begin(), width * n_right, 0.0);
  for (int64_t begin = 0; begin < a.rows; begin += kTileRows) {
    if (should_stop && should_stop()) return false;
    kernels.gemm_tn({.m = width,
                     .n = n_right,
                     .k = std::min(kTileRows, a.rows - begin),
                     .a = a.row(begin) + first_a,
                     .a_stride = a.stride,
                     .b = b.row(begin) + first_b,
                     .b_stride = b.stride,
                     .c = product.data(),
                     .c_stride = n_right});
    for (int64_t k = 0; k < width * n_right; ++k) sums[static_cast<size_t>(k)] += product[static_cast<size_t>(k)];
  }
  return true;
}

// Rows [first, first + width) of the upper triangle, rounded and mirrored into `gram`.
void write_stripe(MatView<const double> stripe, int64_t first, Mat<float>& gram) {
  for (int64_t i = 0; i < stripe.rows; ++i)
    for (int64_t j = i; j < stripe.cols; ++j) gram(first + i, first + j) = static_cast<float>(stripe(i, j));
  for (int64_t j = 0; j < stripe.cols; ++j)
    for (int64_t i = 0; i < std::min(j, stripe.rows); ++i)
      gram(first + j, first + i) = static_cast<float>(stripe(i, j));
}

}  // namespace

Mat<float> gram_of_columns(MatView<const float> a, const std::function<bool()>& should_stop,
                           const kernels::KernelSet& kernels) {
  const int64_t t = a.cols;
  Mat<float> gram(t, t);
  std::vector<float> product;
  std::vector<double> sums;
  for (int64_t first = 0; first < t; first += kStripeColumns) {
    const int64_t width = std::min(kStripeColumns, t - first);
    if (!multiply_stripe(a, first, width, a, first, should_stop, kernels, product, sums)) return {};
    write_stripe({sums.data(), width, t - first}, first, gram);
  }
  return gram;
}

Mat<float> transposed_product(MatView<const float> a, MatView<const float> b, const kernels::KernelSet& kernels) {
  Mat<float> result(a.cols, b.cols);
  if (a.rows <= kTileRows) {  // one tile: nothing to sum in double
    multiply_tn(kernels, a, b, result.view());
    return result;
  }
  std::vector<float> product;
  std::vector<double> sums;
  for (int64_t first = 0; first < a.cols; first += kStripeColumns) {
    const int64_t width = std::min(kStripeColumns, a.cols - first);
    multiply_stripe(a, first, width, b, 0, {}, kernels, product, sums);
    std::copy_n(sums.begin(), width * b.cols, result.row(first));
  }
  return result;
}

}  // namespace sh::compaction
