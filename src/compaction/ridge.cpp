// SPDX-License-Identifier: MIT
#include "compaction/ridge.h"

#include <algorithm>
#include <cmath>
#include <utility>

namespace sh::compaction {
namespace {

constexpr int64_t kBlock = 32;
constexpr int32_t kMaxRetries = 6;
// A pivot smaller than this share of its diagonal is rounding.
constexpr double kMinPivot = 1e-7;

}  // namespace

// Leaves the inverse of the block's factor in inverses_.
bool BlockCholesky::factor_diagonal(int64_t begin, int64_t width) {
  double block[kBlock][kBlock], column[kBlock], inverse[kBlock][kBlock] = {};
  for (int64_t i = 0; i < width; ++i)
    for (int64_t j = 0; j <= i; ++j) block[i][j] = lower_(begin + i, begin + j);
  for (int64_t j = 0; j < width; ++j) {
    if (!(block[j][j] > kMinPivot * column_scale_[static_cast<size_t>(begin + j)])) return false;
    const double scale = 1.0 / std::sqrt(block[j][j]);
    for (int64_t i = j; i < width; ++i) column[i] = block[i][j] *= scale;
    for (int64_t i = j + 1; i < width; ++i)
      for (int64_t p = j + 1; p <= i; ++p) block[i][p] -= column[i] * column[p];
  }
  for (int64_t i = 0; i < width; ++i) {
    inverse[i][i] = 1.0;
    for (int64_t p = 0; p < i; ++p)
      for (int64_t j = 0; j <= p; ++j) inverse[i][j] -= block[i][p] * inverse[p][j];
    const double scale = 1.0 / block[i][i];
    for (int64_t j = 0; j <= i; ++j) inverse[i][j] *= scale;
  }
  float* out = inverses_.data() + begin / kBlock * kBlock * kBlock;
  for (int64_t i = 0; i < width; ++i)
    for (int64_t j = 0; j < width; ++j) out[i * kBlock + j] = static_cast<float>(inverse[i][j]);
  return true;
}

bool BlockCholesky::factor(MatView<const float> gram, float ridge) {
  const int64_t n = gram.rows;
  if (lower_.rows != n) lower_ = Mat<float>(n, n);
  column_scale_.resize(static_cast<size_t>(n));
  inverses_.assign(static_cast<size_t>((n + kBlock - 1) / kBlock * kBlock * kBlock), 0.0f);
  for (int64_t i = 0; i < n; ++i) {
    std::copy_n(gram.row(i), i + 1, lower_.row(i));
    lower_(i, i) += ridge;
    column_scale_[static_cast<size_t>(i)] = lower_(i, i);
  }
  std::vector<float> panel(static_cast<size_t>(n * kBlock));
  for (int64_t begin = 0; begin < n; begin += kBlock) {
    const int64_t width = std::min(kBlock, n - begin), n_below = n - begin - width;
    // Minus what the columns before took.
    if (begin > 0)
      kernels_.gemm_nt({.m = n - begin,
                        .n = width,
                        .k = begin,
                        .a = lower_.row(begin),
                        .a_stride = n,
                        .b = lower_.row(begin),
                        .b_stride = n,
                        .c = lower_.row(begin) + begin,
                        .c_stride = n,
                        .alpha = -1.0f,
                        .accumulate = true});
    if (!factor_diagonal(begin, width)) return false;
    if (n_below == 0) break;
    for (int64_t i = 0; i < n_below; ++i)
      std::copy_n(lower_.row(begin + width + i) + begin, width, panel.data() + i * kBlock);
    kernels_.gemm_nt({.m = n_below,
                      .n = width,
                      .k = width,
                      .a = panel.data(),
                      .a_stride = kBlock,
                      .b = inverses_.data() + begin * kBlock,
                      .b_stride = kBlock,
                      .c = lower_.row(begin + width) + begin,
                      .c_stride = n});
  }
  return true;
}

void BlockCholesky::solve(Mat<float>& x) const {
  const int64_t n = lower_.rows, m = x.cols;
  std::vector<float> part(static_cast<size_t>(kBlock * m));
  const auto apply_inverse = [&](int64_t begin, int64_t width, auto gemm) {
    std::copy_n(x.row(begin), width * m, part.data());
    gemm(kernels::GemmArgs{.m = width,
                           .n = m,
                           .k = width,
                           .a = inverses_.data() + begin * kBlock,
                           .a_stride = kBlock,
                           .b = part.data(),
                           .b_stride = m,
                           .c = x.row(begin),
                           .c_stride = m});
  };
  for (int64_t begin = 0; begin < n; begin += kBlock) {
    const int64_t width = std::min(kBlock, n - begin);
    if (begin > 0)
      kernels_.gemm_nn({.m = width,
                        .n = m,
                        .k = begin,
                        .a = lower_.row(begin),
                        .a_stride = n,
                        .b = x.row(0),
                        .b_stride = m,
                        .c = x.row(begin),
                        .c_stride = m,
                        .alpha = -1.0f,
                        .accumulate = true});
    apply_inverse(begin, width, kernels_.gemm_nn);
  }
  for (int64_t begin = (n - 1) / kBlock * kBlock; begin >= 0; begin -= kBlock) {
    const int64_t width = std::min(kBlock, n - begin), end = begin + width;
    if (end < n)
      kernels_.gemm_tn({.m = width,
                        .n = m,
                        .k = n - end,
                        .a = lower_.row(end) + begin,
                        .a_stride = n,
                        .b = x.row(end),
                        .b_stride = m,
                        .c = x.row(begin),
                        .c_stride = m,
                        .alpha = -1.0f,
                        .accumulate = true});
    apply_inverse(begin, width, kernels_.gemm_tn);
  }
}

RidgeSystem::RidgeSystem(MatView<const float> a, Mat<float> b, const kernels::KernelSet& kernels)
    : kernels_(kernels), a_(a), cholesky_(kernels) {
  if (is_dual()) {
    gram_ = Mat<float>(a.rows, a.rows);
    kernels.gemm_nt({.m = a.rows,
                     .n = a.rows,
                     .k = a.cols,
                     .a = a.data,
                     .a_stride = a.stride,
                     .b = a.data,
                     .b_stride = a.stride,
                     .c = gram_.data.data(),
                     .c_stride = a.rows});
    rhs_ = std::move(b);
  } else {
    gram_ = gram_of_columns(a, {}, kernels);
    rhs_ = transposed_product(a, std::as_const(b).view(), kernels);
  }
  for (int64_t i = 0; i < gram_.rows; ++i) mean_eigenvalue_ += gram_(i, i);
  mean_eigenvalue_ /= static_cast<double>(std::max<int64_t>(a.cols, 1));
}

Mat<float> RidgeSystem::solve(double strength, int32_t& n_retries) {
  double ridge = strength * mean_eigenvalue_;
  if (!(ridge > 0) || !std::isfinite(ridge)) return {};  // nothing in A, or it overflowed
  for (int32_t attempt = 0; attempt <= kMaxRetries; ++attempt, ridge *= 10) {
    n_retries += attempt > 0 ? 1 : 0;
    if (!cholesky_.factor(std::as_const(gram_).view(), static_cast<float>(ridge))) continue;
    Mat<float> x = rhs_;
    cholesky_.solve(x);
    if (std::all_of(x.data.begin(), x.data.end(), [](float v) { return std::isfinite(v); })) return x;
  }
  return {};
}

}  // namespace sh::compaction
