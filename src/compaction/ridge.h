// SPDX-License-Identifier: MIT
#pragma once

#include <cstdint>
#include <vector>

#include "base/mat_view.h"
#include "compaction/gram.h"
#include "kernels/kernel_set.h"

namespace sh::compaction {

/// Solves min ‖A X - B‖² + ridge · ‖X‖² for one A [n, t] and several ridges. With fewer rows than columns through
/// the n×n matrix A Aᵀ: X = Aᵀ Y with (A Aᵀ + ridge) Y = B, else through AᵀA.
/// Precision: f32 products; sums over many rows as gram_of_columns(). A ridge below 1e-5 of the mean eigenvalue
/// means nothing.
class RidgeSystem {
 public:
  /// Borrows A. Shapes: a [n, t], b [n, m].
  RidgeSystem(MatView<const float> a, Mat<float> b, const kernels::KernelSet& kernels);

  bool is_dual() const { return a_.rows < a_.cols; }
  /// Of AᵀA: what strengths of ridges are relative to.
  double mean_eigenvalue() const { return mean_eigenvalue_; }
  /// For this strength times the mean eigenvalue: X [t, m], or Y [n, m] of a dual system. Empty if the system
  /// cannot be solved; that is tried with ten times the ridge, up to six times, counted in n_retries. Cost: k³/6 +
  /// k²·m products for k = min(n, t).
  Mat<float> solve(double strength, int32_t& n_retries) const;
  /// X = Aᵀ Y.
  Mat<float> from_dual(const Mat<float>& y) const { return transposed_product(a_, y.view(), kernels_); }

 private:
  const kernels::KernelSet& kernels_;
  MatView<const float> a_;
  Mat<float> gram_;  // A Aᵀ or AᵀA
  Mat<float> rhs_;   // B or AᵀB
  double mean_eigenvalue_ = 0;
};

}  // namespace sh::compaction
