// SPDX-License-Identifier: MIT
#pragma once

#include <cstdint>
#include <vector>

#include "base/mat_view.h"
#include "kernels/kernel_set.h"

namespace sh::compaction {

/// L Lᵀ of a symmetric positive definite matrix.
class BlockCholesky {
 public:
  explicit BlockCholesky(const kernels::KernelSet& kernels) : kernels_(kernels) {}

  /// Factors gram + ridge · I. False if that is not positive definite in f32.
  /// Cost: n³/6 products, all but 1/n of them in matrix products.
  /// Precision: f32; diagonal blocks of 32 in double.
  bool factor(MatView<const float> gram, float ridge);
  /// Solves in place. Shapes: x [n, m].  Cost: n²·m products.
  void solve(Mat<float>& x) const;

 private:
  bool factor_diagonal(int64_t begin, int64_t width);

  const kernels::KernelSet& kernels_;
  Mat<float> lower_;                 // [n, n] below the diagonal blocks
  std::vector<float> inverses_;      // [n blocks, 32, 32] of the diagonal blocks
  std::vector<float> column_scale_;  // [n] the diagonal before
};

/// Solves min ‖A X - B‖² + ridge · ‖X‖² for one A [n, t] and several ridges. With fewer rows than columns through
/// the n×n matrix A Aᵀ: X = Aᵀ (A Aᵀ + ridge)⁻¹ B, else through AᵀA.
/// Precision: f32 products; sums of AᵀA and AᵀB in double over tiles of 256 rows. The smaller matrix is rounded to
/// f32, so that a ridge below 1e-5 of the mean eigenvalue means nothing.
class RidgeSystem {
 public:
  /// Shapes: A [n, t], B [n, m].
  RidgeSystem(Mat<float> a, Mat<float> b, const kernels::KernelSet& kernels);

  /// Of AᵀA: what strengths of ridges are relative to.
  double mean_eigenvalue() const { return mean_eigenvalue_; }
  /// X [t, m] for this strength times the mean eigenvalue. Empty if the system cannot be solved; that is tried with
  /// ten times the ridge, up to six times, counted in n_retries.
  /// Cost: k³/6 + k²·m products for k = min(n, t), and n·t·m if n < t.
  Mat<float> solve(double strength, int32_t& n_retries) const;

 private:
  bool is_dual() const { return a_.rows > 0; }

  const kernels::KernelSet& kernels_;
  int64_t n_columns_;
  Mat<float> a_;     // kept for n < t only
  Mat<float> gram_;  // A Aᵀ or AᵀA
  Mat<float> rhs_;   // B or AᵀB
  double mean_eigenvalue_ = 0;
};

}  // namespace sh::compaction
