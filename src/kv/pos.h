// SPDX-License-Identifier: MIT
#pragma once

#include <compare>
#include <cstdint>

namespace sh::kv {

/// Logical position of a token in its text: what RoPE sees. Grows for the life of a sequence; only truncation and
/// re-basing (SequenceCache::restore with new positions) give a position out again.
/// A type of its own, so that it cannot be mixed with a row index: after a compaction the two no longer match.
struct Pos {
  int32_t value = 0;
  constexpr Pos() = default;
  constexpr explicit Pos(int64_t v) : value(static_cast<int32_t>(v)) {}
  constexpr auto operator<=>(const Pos&) const = default;
  constexpr Pos operator+(int64_t n) const { return Pos(value + n); }
  constexpr int64_t operator-(Pos other) const { return int64_t{value} - other.value; }
};

/// Index of a row in one HeadCache: where its key sits in memory.
struct Row {
  int32_t value = 0;
  constexpr Row() = default;
  constexpr explicit Row(int64_t v) : value(static_cast<int32_t>(v)) {}
  constexpr auto operator<=>(const Row&) const = default;
  constexpr Row operator+(int64_t n) const { return Row(value + n); }
};

}  // namespace sh::kv
