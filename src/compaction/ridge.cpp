// SPDX-License-Identifier: MIT
#include "compaction/ridge.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include "compaction/gram.h"

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
  lower_ = Mat<float>(n, n);
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

RidgeSystem::RidgeSystem(Mat<float> a, Mat<float> b, const kernels::KernelSet& kernels)
    : kernels_(kernels), n_columns_(a.cols) {
  const int64_t n = a.rows, t = a.cols;
  if (n < t) {
    gram_ = Mat<float>(n, n);
    kernels.gemm_nt({.m = n,
                     .n = n,
                     .k = t,
                     .a = a.data.data(),
                     .a_stride = t,
                     .b = a.data.data(),
                     .b_stride = t,
                     .c = gram_.data.data(),
                     .c_stride = n});
    a_ = std::move(a);
    rhs_ = std::move(b);
  } else {
    const NormalEquations system = normal_equations(a.view(), b.view(), kernels);
    gram_ = Mat<float>(t, t);
    rhs_ = Mat<float>(t, b.cols);
    std::copy(system.gram.data.begin(), system.gram.data.end(), gram_.data.begin());
    std::copy(system.rhs.data.begin(), system.rhs.data.end(), rhs_.data.begin());
  }
  for (int64_t i = 0; i < gram_.rows; ++i) mean_eigenvalue_ += gram_(i, i);
  mean_eigenvalue_ /= static_cast<double>(std::max<int64_t>(t, 1));
}

Mat<float> RidgeSystem::solve(double strength, int32_t& n_retries) const {
  double ridge = strength * mean_eigenvalue_;
  if (!(ridge > 0) || !std::isfinite(ridge)) return {};  // nothing in A, or it overflowed
  BlockCholesky cholesky(kernels_);
  for (int32_t attempt = 0; attempt <= kMaxRetries; ++attempt, ridge *= 10) {
    n_retries += attempt > 0 ? 1 : 0;
    if (!cholesky.factor(gram_.view(), static_cast<float>(ridge))) continue;
    Mat<float> x = rhs_;
    cholesky.solve(x);
    if (is_dual()) {
      Mat<float> of_columns(n_columns_, x.cols);
      kernels_.gemm_tn({.m = n_columns_,
                        .n = x.cols,
                        .k = a_.rows,
                        .a = a_.data.data(),
                        .a_stride = n_columns_,
                        .b = x.data.data(),
                        .b_stride = x.cols,
                        .c = of_columns.data.data(),
                        .c_stride = x.cols});
      x = std::move(of_columns);
    }
    if (std::all_of(x.data.begin(), x.data.end(), [](float v) { return std::isfinite(v); })) return x;
  }
  return {};
}

}  // namespace sh::compaction
