// SPDX-License-Identifier: MIT
// Rows of quantised keys as a block of the cache has them, for scores that take codes as they are unpacked. Included
// inside a target region and namespace, after the products of quantised weights.

constexpr int64_t kKeyGroup = 32;

/// fn(Codes{}) of a format whose codes have a scale and no minimum for each 32; false, and no call, for any other.
template <typename Fn>
SH_INLINE bool with_coded_keys(DType dtype, Fn fn) {
  switch (dtype) {
    case DType::q8_0:
      fn(CodesQ8_0{});
      return true;
    case DType::q4_0:
      fn(CodesQ4_0{});
      return true;
    case DType::q5_0:
      fn(CodesQ5_0{});
      return true;
    case DType::iq4_nl:
      fn(CodesIQ4_NL{});
      return true;
    default:
      return false;
  }
}

/// 16 keys as a block of the cache has them. Needs: memory of 16 rows, whatever those past the end hold.
template <typename Codes>
struct KeyRows {
  using Block = typename Codes::Block;
  static constexpr int64_t kBlockBytes = static_cast<int64_t>(sizeof(Block));
  const std::byte* rows;
  const std::byte* ahead;  // fetched as these are read, or null
  int64_t n_groups;
  template <typename To>
  SH_INLINE void unpack(int64_t row, int64_t group, To& to) const {
    if (ahead != nullptr) prefetch_bytes(ahead + (row * n_groups + group * kLanes) * kBlockBytes, kLanes * kBlockBytes);
    Codes::unpack(BlockRows<Block>{rows + (row * n_groups + group) * kBlockBytes, n_groups * kBlockBytes}, to);
  }
};
