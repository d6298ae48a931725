// SPDX-License-Identifier: MIT
// Numbers of the format that both the parser and the writer need.
// Source:  GGUF specification, version 3 (ggml-org/ggml, docs/gguf.md).
#pragma once

#include <cstddef>
#include <cstdint>

namespace sh::gguf {

inline constexpr char kMagic[] = "GGUF";
inline constexpr uint32_t kVersion = 3;
inline constexpr uint64_t kDefaultAlignment = 32;
inline constexpr uint32_t kMaxDims = 4;
inline constexpr size_t kMaxKeyBytes = 65535;
inline constexpr char kAlignmentKey[] = "general.alignment";

/// Type ids of metadata values.
enum class Wire : uint32_t {
  u8 = 0,
  i8 = 1,
  u16 = 2,
  i16 = 3,
  u32 = 4,
  i32 = 5,
  f32 = 6,
  boolean = 7,
  string = 8,
  array = 9,
  u64 = 10,
  i64 = 11,
  f64 = 12,
};
inline constexpr uint32_t kWireTypes = 13;

}  // namespace sh::gguf
