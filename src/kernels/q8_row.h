// SPDX-License-Identifier: MIT
// How a row of activations lies in memory in ActivationForm::q8, the same in every kernel set.
#pragma once

#include <cstddef>
#include <cstdint>

namespace sh::kernels {

inline constexpr int64_t kQ8Group = 32;      // activations that share a scale
inline constexpr int64_t kQ8HalfGroup = 16;  // weights of some formats change their integer scale every 16
inline constexpr float kQ8MinAmax = 1e-35f;  // below, 127 / amax would overflow: the group counts as zeros

/// A row of n activations: x[i] ≈ scale[i / 32] · q[i]. Sums serve weights that carry an offset or a minimum a
/// group: Σ (s·(u - offset) + m)·x = s·scale·(Σ u·q + offset·negative_sum) + m·scaled_sum.
struct Q8Row {
  const int8_t* q;                         // [n]
  const float* scale;                      // [n / 32]
  const int32_t* negative_sum;             // [n / 32] -Σ q of a group
  const float* scaled_sum;                 // [n / 32] scale · Σ q
  const int16_t (*negative_half_sums)[2];  // [n / 32] -Σ q of the halves of a group

  static int64_t n_used_bytes(int64_t n) { return n + 4 * (n / 8); }
  static int64_t n_bytes(int64_t n) { return (n_used_bytes(n) + 63) / 64 * 64; }
  static Q8Row at(const std::byte* row, int64_t n) {
    const std::byte* end_of_q = row + n;
    const int64_t step = n / 8;  // bytes of one value a group of 32
    return {reinterpret_cast<const int8_t*>(row), reinterpret_cast<const float*>(end_of_q),
            reinterpret_cast<const int32_t*>(end_of_q + step), reinterpret_cast<const float*>(end_of_q + 2 * step),
            reinterpret_cast<const int16_t(*)[2]>(end_of_q + 3 * step)};
  }
};

/// The same memory, to be written.
struct Q8RowOut {
  int8_t* q;
  float* scale;
  int32_t* negative_sum;
  float* scaled_sum;
  int16_t (*negative_half_sums)[2];

  static Q8RowOut at(std::byte* row, int64_t n) {
    const Q8Row view = Q8Row::at(row, n);
    return {const_cast<int8_t*>(view.q), const_cast<float*>(view.scale), const_cast<int32_t*>(view.negative_sum),
            const_cast<float*>(view.scaled_sum), const_cast<int16_t(*)[2]>(view.negative_half_sums)};
  }
  /// Writes the sums of group g, whose q and scale are there.
  void finish_group(int64_t g) const {
    int32_t whole = 0;
    for (int64_t h = 0; h < 2; ++h) {
      int32_t sum = 0;
      for (int64_t i = 0; i < kQ8HalfGroup; ++i) sum += q[g * kQ8Group + h * kQ8HalfGroup + i];
      negative_half_sums[g][h] = static_cast<int16_t>(-sum);
      whole += sum;
    }
    negative_sum[g] = -whole;
    scaled_sum[g] = scale[g] * static_cast<float>(whole);
  }
};

}  // namespace sh::kernels
