// SPDX-License-Identifier: MIT
// Products of whole matrices.
#pragma once

#include "base/check.h"
#include "base/mat_view.h"
#include "kernels/kernel_set.h"

namespace sh::compaction {

using Product = void (*)(const kernels::GemmArgs& args);

inline void multiply(Product product, int64_t n_inner, MatView<const float> a, MatView<const float> b,
                     MatView<float> c) {
  product({.m = c.rows,
           .n = c.cols,
           .k = n_inner,
           .a = a.data,
           .a_stride = a.stride,
           .b = b.data,
           .b_stride = b.stride,
           .c = c.data,
           .c_stride = c.stride});
}

/// c = a · b. Shapes: a [m, k], b [k, n], c [m, n].
inline void multiply_nn(const kernels::KernelSet& kernels, MatView<const float> a, MatView<const float> b,
                        MatView<float> c) {
  SH_DCHECK(a.rows == c.rows && a.cols == b.rows && b.cols == c.cols);
  multiply(kernels.gemm_nn, a.cols, a, b, c);
}
/// c = a · bᵀ. Shapes: a [m, k], b [n, k], c [m, n].
inline void multiply_nt(const kernels::KernelSet& kernels, MatView<const float> a, MatView<const float> b,
                        MatView<float> c) {
  SH_DCHECK(a.rows == c.rows && a.cols == b.cols && b.rows == c.cols);
  multiply(kernels.gemm_nt, a.cols, a, b, c);
}
/// c = aᵀ · b. Shapes: a [k, m], b [k, n], c [m, n].
inline void multiply_tn(const kernels::KernelSet& kernels, MatView<const float> a, MatView<const float> b,
                        MatView<float> c) {
  SH_DCHECK(a.cols == c.rows && a.rows == b.rows && b.cols == c.cols);
  multiply(kernels.gemm_tn, a.rows, a, b, c);
}

}  // namespace sh::compaction
