// SPDX-License-Identifier: MIT
#pragma once

#include <cstdint>
#include <span>

#include "base/aligned.h"
#include "base/mat_view.h"
#include "ops/ops.h"

namespace sh::models {

/// Buffers of forward passes. They grow to the longest batch and the widest layer and are used again, so that
/// decoding a token allocates nothing.
struct Workspace {
  int64_t n_tokens = 0;
  MatView<float> x;  // [n, n_embd] residual stream
  MatView<float> h;  // [n, n_embd] output of a block
  ops::RopeTable angles;
  AlignedBuffer<float> q, k, v, attn, lse;             // [n, width of the layer]
  AlignedBuffer<float> router_logits, expert_weights;  // [n, n_expert], [n, n_used]
  AlignedBuffer<int32_t> expert_ids;                   // [n, n_used]

  /// Begins a pass over tokens at these positions.
  void begin(int64_t n_embd, const ops::RopeConfig& rope, std::span<const kv::Pos> pos) {
    n_tokens = std::ssize(pos);
    x = rows(x_, n_embd);
    h = rows(h_, n_embd);
    ops::rope_table(rope, pos, angles);
  }
  /// The buffer as a matrix; what it had before is lost.
  template <typename T>
  MatView<T> rows(AlignedBuffer<T>& buffer, int64_t width) const {
    return {buffer.grow(static_cast<size_t>(n_tokens * width)), n_tokens, width};
  }

 private:
  AlignedBuffer<float> x_, h_;
};

}  // namespace sh::models
