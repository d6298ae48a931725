// SPDX-License-Identifier: MIT
// Toy model files with seeded random weights, for the tests over all architectures.
#pragma once

#include <cstdint>
#include <deque>
#include <string>
#include <vector>

#include "base/result.h"
#include "base/rng.h"
#include "gguf/gguf.h"

namespace sh::models {

/// Sizes of a toy: heads of 32, so that every cache encoding fits; more query than key/value heads; no two widths
/// alike.
struct TinySizes {
  int32_t n_layer = 3, n_embd = 64, n_heads = 4, n_kv_heads = 2, head_width = 32, n_ff = 96, n_ctx = 4096;
};

/// Collects keys and random tensors of a toy model.
class TinyModel {
 public:
  /// Sets the general keys, the sizes that decoders share and the vocabulary with pre-tokeniser `pre`.
  TinyModel(const std::string& arch, const std::string& pre, const TinySizes& sizes, uint64_t seed);

  const TinySizes& sizes() const { return sizes_; }
  int64_t n_vocab() const { return n_vocab_; }
  /// "<arch>.<name>"
  void set(const std::string& name, gguf::Value value) { writer_.set(arch_ + "." + name, std::move(value)); }
  /// f16, elements of deviation gain / sqrt(n_in), so that activations keep their size.
  void matrix(const std::string& name, int64_t n_in, int64_t n_out, double gain = 1.0, int64_t n_stack = 1);
  /// f32, elements of deviation `deviation` around `mean`.
  void vector(const std::string& name, int64_t n, double mean, double deviation);
  /// token_embd, output_norm, and for every layer the norms, attention and gated ffn that all decoders have. No
  /// output.weight: tied.
  void decoder_tensors();
  std::vector<std::byte> to_bytes() const { return writer_.to_bytes(); }

 private:
  void set_vocabulary(const std::string& pre);
  std::span<const std::byte> keep(std::vector<std::byte> bytes);

  std::string arch_;
  TinySizes sizes_;
  Rng rng_;
  int64_t n_vocab_ = 0;
  std::deque<std::vector<std::byte>> data_;  // addresses stay while it grows: the writer borrows them
  gguf::Writer writer_;
};

}  // namespace sh::models
