// SPDX-License-Identifier: MIT
#pragma once

#include <cstdint>

namespace sh {

/// Counter-based random numbers: the value depends only on (seed, stream, counter), never on who drew before, so batching and
/// threads do not change what a conversation samples.
/// Source:  SplitMix64 finaliser (Steele, Lea, Flood, "Fast splittable pseudorandom number generators", 2014), applied twice.
class Rng {
 public:
  explicit Rng(uint64_t seed, uint64_t stream = 0) : key_(mix(seed + 0x9E3779B97F4A7C15ull) ^ mix(stream * 0xD1B54A32D192ED03ull + 1)) {}

  uint64_t next_u64() { return mix(key_ + 0x9E3779B97F4A7C15ull * ++counter_); }
  /// In [0, 1), 53 bits.
  double next_unit() { return static_cast<double>(next_u64() >> 11) * 0x1.0p-53; }
  /// In [0, n).
  uint64_t next_below(uint64_t n) { return static_cast<uint64_t>((static_cast<__uint128_t>(next_u64()) * n) >> 64); }
  /// Standard normal (Box-Muller, one of the pair).
  double next_normal();

 private:
  static constexpr uint64_t mix(uint64_t x) {
    for (int round = 0; round < 2; ++round) {
      x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9ull;
      x = (x ^ (x >> 27)) * 0x94D049BB133111EBull;
      x ^= x >> 31;
    }
    return x;
  }
  uint64_t key_;
  uint64_t counter_ = 0;
};

}  // namespace sh
