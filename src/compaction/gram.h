// SPDX-License-Identifier: MIT
#pragma once

#include <cstdint>
#include <span>

#include "base/mat_view.h"
#include "kernels/kernel_set.h"

namespace sh::compaction {

/// Aᵀ A and Aᵀ B with A = diag(row_weight) · rows and B = diag(row_weight) · targets.
struct NormalEquations {
  Mat<double> gram;  // [t, t]
  Mat<double> rhs;   // [t, n_targets]
};

/// Cost: n·t²/2 products (only one triangle is computed).
/// Precision: f32 products summed in f32 over 256 rows, in double over tiles.
NormalEquations normal_equations(MatView<const float> rows, std::span<const float> row_weight,
                                 MatView<const float> targets, const kernels::KernelSet& kernels);

}  // namespace sh::compaction
