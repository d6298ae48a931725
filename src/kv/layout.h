// SPDX-License-Identifier: MIT
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "base/result.h"
#include "tensor/dtype.h"

namespace sh::kv {

/// Rows of one block. 16 rows of 64 f16 keys and values are one 4 KiB page; larger blocks waste what a compaction saves, because every
/// (layer, KV head) rounds up on its own (64 rows at 16x of 1000 tokens would leave less than one block a head).
inline constexpr int32_t kBlockRows = 16;

struct LayerLayout {
  int32_t n_heads = 0;      // KV heads; 0 for a layer without attention
  int32_t key_width = 0;    // elements
  int32_t value_width = 0;
  int32_t window = 0;       // sliding window in positions, 0: none
};

/// All that the cache knows of a model.
struct KvLayout {
  std::vector<LayerLayout> layers;
  DType key_type = DType::f16;
  DType value_type = DType::f16;

  /// Bytes of one token's rows in all layers and heads, without annotations.
  int64_t bytes_per_token() const;
  int64_t n_heads_total() const;
  /// Errors: invalid_argument when a width does not divide into the blocks of its encoding (head size 16 with q8_0, say).
  Result<void> validate() const;
};

/// The encoding that a user names for keys or values. Errors: invalid_argument, naming those there are.
Result<DType> cache_dtype_from_name(const std::string& name);

}  // namespace sh::kv
