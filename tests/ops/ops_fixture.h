// SPDX-License-Identifier: MIT
// Random weights and inputs for the tests of this room.
#pragma once

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <vector>

#include "base/rng.h"
#include "ops/ops.h"

namespace sh::ops {

inline Mat<float> random_mat(int64_t rows, int64_t cols, uint64_t seed) {
  Rng rng(seed);
  Mat<float> mat(rows, cols);
  for (float& v : mat.data) v = static_cast<float>(rng.next_normal());
  return mat;
}

/// A weight (or a stack of them) in any format, with its values as the format holds them.
struct OwnedWeight {
  OwnedWeight(DType dtype, int64_t n_in, int64_t n_out, uint64_t seed, int64_t n_stack = 1)
      : values(random_mat(n_stack * n_out, n_in, seed)),
        bytes(static_cast<size_t>(n_stack * n_out * row_bytes(dtype, n_in))) {
    for (float& v : values.data) v /= std::sqrt(static_cast<float>(n_in));
    const int64_t n_bytes = row_bytes(dtype, n_in);
    for (int64_t r = 0; r < values.rows; ++r) {
      std::byte* row = bytes.data() + r * n_bytes;
      tensor_format(dtype).quantize(values.row(r), n_in, row);
      tensor_format(dtype).dequantize(row, n_in, values.row(r));
    }
    weight = {.dtype = dtype, .data = bytes.data(), .n_in = n_in, .n_out = n_out, .n_stack = n_stack};
  }
  OwnedWeight(const OwnedWeight&) = delete;
  Mat<float> values;  // [n_stack * n_out, n_in]
  std::vector<std::byte> bytes;
  Weight weight;
};

/// The same weight in the packed layout.
struct PackedWeight {
  explicit PackedWeight(const Weight& from) : weight(from) {
    weight.is_packed = true;
    bytes.resize(static_cast<size_t>(weight.n_stack * weight.matrix_bytes()));
    for (int64_t e = 0; e < weight.n_stack; ++e)
      for (int64_t row = 0; row < weight.n_out; row += kPackedRows)
        pack_panel(weight.dtype, from.expert(e) + row * weight.row_bytes(),
                   std::min(kPackedRows, weight.n_out - row), weight.n_in,
                   bytes.data() + e * weight.matrix_bytes() + row * weight.row_bytes());
    weight.data = bytes.data();
  }
  PackedWeight(const PackedWeight&) = delete;
  std::vector<std::byte> bytes;
  Weight weight;
};
inline bool reads_packed(const kernels::KernelSet& set, DType dtype) {
  return set.weight_kernel(dtype).matmul_packed != nullptr;
}

inline std::vector<const kernels::KernelSet*> supported_kernels() {
  std::vector<const kernels::KernelSet*> sets;
  for (const kernels::KernelSet* set : kernels::kernel_sets())
    if (set->supported()) sets.push_back(set);
  return sets;
}

struct Context {
  explicit Context(const kernels::KernelSet* set = kernels::choose_kernels("generic").value(), int n_threads = 2)
      : threads(n_threads) {
    ctx.pool = &threads;
    ctx.kernels = set;
  }
  ThreadPool threads;
  OpContext ctx;
};

inline double max_gap(const Mat<float>& a, const Mat<float>& b) {
  if (a.rows != b.rows || a.cols != b.cols) return INFINITY;
  double gap = 0.0;
  for (size_t i = 0; i < a.data.size(); ++i) {
    const double d = std::abs(double{a.data[i]} - b.data[i]);
    gap = std::isnan(d) ? INFINITY : std::max(gap, d);
  }
  return gap;
}

}  // namespace sh::ops
