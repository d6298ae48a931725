// SPDX-License-Identifier: MIT
#include "compaction/ridge.h"

#include <Eigen/Cholesky>
#include <algorithm>
#include <cmath>
#include <utility>

#include "compaction/products.h"

namespace sh::compaction {
namespace {

using Matrix = Eigen::Matrix<float, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;
constexpr int32_t kMaxRetries = 6;

}  // namespace

RidgeSystem::RidgeSystem(MatView<const float> a, Mat<float> b, const kernels::KernelSet& kernels)
    : kernels_(kernels), a_(a) {
  if (is_dual()) {
    gram_ = Mat<float>(a.rows, a.rows);
    multiply_nt(kernels, a, a, gram_.view());
    rhs_ = std::move(b);
  } else {
    gram_ = gram_of_columns(a, {}, kernels);
    rhs_ = transposed_product(a, std::as_const(b).view(), kernels);
  }
  for (int64_t i = 0; i < gram_.rows; ++i) mean_eigenvalue_ += gram_(i, i);
  mean_eigenvalue_ /= static_cast<double>(std::max<int64_t>(a.cols, 1));
}

Mat<float> RidgeSystem::solve(double strength, int32_t& n_retries) const {
  double ridge = strength * mean_eigenvalue_;
  if (!(ridge > 0) || !std::isfinite(ridge)) return {};  // nothing in A, or it overflowed
  const int64_t k = gram_.rows, m = rhs_.cols;
  for (int32_t attempt = 0; attempt <= kMaxRetries; ++attempt, ridge *= 10) {
    n_retries += attempt > 0 ? 1 : 0;
    Matrix system = Eigen::Map<const Matrix>(gram_.data.data(), k, k);
    system.diagonal().array() += static_cast<float>(ridge);
    const Eigen::LLT<Eigen::Ref<Matrix>> factor(system);
    if (factor.info() != Eigen::Success) continue;
    Mat<float> x = rhs_;
    Eigen::Map<Matrix> solution(x.data.data(), k, m);
    factor.solveInPlace(solution);
    if (solution.allFinite()) return x;
  }
  return {};
}

}  // namespace sh::compaction
