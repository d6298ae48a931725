// SPDX-License-Identifier: MIT
// Rows of halves turned two at a time and decoded afterwards, which takes half of the shuffles and no rows between; for
// targets that do not turn halves as they are. Included inside a target region and namespace.

/// kLanes rows of 2 · kLanes halves, `stride` bytes apart -> 2 · kLanes columns of kLanes floats, `out_stride` floats apart.
inline void turn_half_rows(const std::byte* in, int64_t stride, float* out, int64_t out_stride) {
  alignas(64) uint32_t pairs[kLanes * kLanes];
  transpose_words(in, stride, reinterpret_cast<std::byte*>(pairs), kLanes * 4);
#pragma GCC unroll 16
  for (int64_t k = 0; k < kLanes; ++k) {
    const I pair = int_load(pairs + k * kLanes);
    store(out + 2 * k * out_stride, low_halves(pair));
    store(out + (2 * k + 1) * out_stride, low_halves(shift_right<16>(pair)));
  }
}
