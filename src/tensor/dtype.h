// SPDX-License-Identifier: MIT
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>

#include "base/result.h"

namespace sh {

/// Element formats; the values are the type ids of GGUF.
/// Source:  GGUF specification, version 3 (ggml-org/ggml, docs/gguf.md), table ggml_type.
enum class DType : int32_t {
  f32 = 0,
  f16 = 1,
  q4_0 = 2,
  q4_1 = 3,
  q5_0 = 6,
  q5_1 = 7,
  q8_0 = 8,
  q2_k = 10,
  q3_k = 11,
  q4_k = 12,
  q5_k = 13,
  q6_k = 14,
  iq4_nl = 20,
  iq4_xs = 23,
  bf16 = 30,
  mxfp4 = 39,
};

/// One format: its block shape and its scalar reference codec. One file each in tensor/formats/.
struct TensorFormat {
  DType dtype;
  const char* name;        // as users write it: "q4_0", "q4_K", "bf16"
  int32_t block_elements;  // elements of one block
  int32_t block_bytes;
  /// blocks of n elements -> out [n]. Needs: n a multiple of block_elements.
  void (*dequantize)(const std::byte* blocks, int64_t n, float* out);
  /// x [n] -> blocks. The rounding is the format's plain one (no importance weights). Needs: as above.
  void (*quantize)(const float* x, int64_t n, std::byte* blocks);
  int32_t odd_bytes_at = 0;  // kOddBytesAt of the block
};

/// All formats, ordered by file name.
std::span<const TensorFormat* const> tensor_formats();
/// The format of a dtype; every enumerator has one.
const TensorFormat& tensor_format(DType dtype);
/// Errors: unsupported, naming the id and the formats that are known.
Result<DType> dtype_from_gguf(uint32_t type_id);
/// Case does not matter. Errors: invalid_argument, naming what was given and the known names.
Result<DType> dtype_from_name(std::string_view name);

/// Bytes of a row of n elements. Needs: n a multiple of the block.
int64_t row_bytes(DType dtype, int64_t n_elements);

}  // namespace sh
