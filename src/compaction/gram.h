// SPDX-License-Identifier: MIT
#pragma once

#include <cstdint>
#include <functional>

#include "base/mat_view.h"
#include "kernels/kernel_set.h"

namespace sh::compaction {

/// AᵀA, symmetric. Empty when `should_stop`, asked every few milliseconds, said so.
/// Shapes: a [n, t], result [t, t].
/// Cost: n·t²/2 products (only one triangle is computed).
/// Memory: beside the result a stripe of 64 rows in double.
/// Precision: products summed in f32 over 256 rows, in double over tiles, rounded to f32 at the end.
Mat<float> gram_of_columns(MatView<const float> a, const std::function<bool()>& should_stop,
                           const kernels::KernelSet& kernels);

/// AᵀB. Shapes: a [n, t], b [n, m], result [t, m].
/// Precision: as gram_of_columns().
Mat<float> transposed_product(MatView<const float> a, MatView<const float> b, const kernels::KernelSet& kernels);

}  // namespace sh::compaction
