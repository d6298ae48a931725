// SPDX-License-Identifier: MIT
#pragma once

#include "base/mat_view.h"
#include "kernels/kernel_set.h"

namespace sh::compaction {

/// Aᵀ A and Aᵀ B.
struct NormalEquations {
  Mat<double> gram;  // [t, t]
  Mat<double> rhs;   // [t, m]
};

/// Shapes: a [n, t], b [n, m].
/// Cost: n·t²/2 products (only one triangle is computed).
/// Precision: f32 products summed in f32 over 256 rows, in double over tiles.
NormalEquations normal_equations(MatView<const float> a, MatView<const float> b, const kernels::KernelSet& kernels);

}  // namespace sh::compaction
