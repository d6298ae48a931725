// SPDX-License-Identifier: MIT
// Hyperparameters of an architecture: read with bounds, and every key of the file accounted for.
#pragma once

#include <cstdint>
#include <optional>
#include <set>
#include <string>
#include <string_view>
#include <vector>

#include "base/result.h"
#include "gguf/gguf.h"
#include "ops/ops.h"

namespace sh::models {

/// The metadata keys "<arch>.*" of a file. Every read records its key; finish() refuses a file with keys that
/// nobody read, because running it would ignore something it asks for. Bounds keep hostile metadata from dividing
/// by zero, overflowing a product of sizes or asking for absurd memory.
class Hyperparams {
 public:
  explicit Hyperparams(const gguf::File& file, std::string arch) : file_(file), arch_(std::move(arch)) {}

  const gguf::File& file() const { return file_; }
  const std::string& arch() const { return arch_; }
  /// "<arch>.<name>"
  std::string key(std::string_view name) const;

  // Errors: corrupt, naming the key, for another type, a value outside [low, high], NaN, or absence where it is
  // required.
  Result<std::optional<int64_t>> find_int(std::string_view name, int64_t low, int64_t high);
  Result<int64_t> require_int(std::string_view name, int64_t low, int64_t high);
  Result<int64_t> int_or(std::string_view name, int64_t otherwise, int64_t low, int64_t high);
  Result<std::optional<double>> find_float(std::string_view name, double low, double high);
  Result<double> require_float(std::string_view name, double low, double high);
  Result<double> float_or(std::string_view name, double otherwise, double low, double high);
  Result<std::optional<std::string>> find_string(std::string_view name);
  /// One value for all layers or an array with one a layer; nothing if absent.
  Result<std::optional<std::vector<int32_t>>> find_per_layer(std::string_view name, int32_t n_layer, int64_t low,
                                                             int64_t high);
  Result<std::vector<int32_t>> require_per_layer(std::string_view name, int32_t n_layer, int64_t low,
                                                 int64_t high);

  /// A key that says nothing about the computation.
  void ignore(std::string_view name) { read_.insert(key(name)); }
  /// Errors: unsupported, naming the keys that were not read and their values.
  Result<void> finish() const;

 private:
  const gguf::File& file_;
  std::string arch_;
  std::set<std::string> read_;
};

/// Sizes that decoders with rotary attention share.
struct DecoderConfig {
  int32_t n_layer = 0, n_embd = 0, n_vocab = 0, n_ctx_train = 0;
  std::vector<int32_t> n_heads;     // [n_layer] query heads
  std::vector<int32_t> n_kv_heads;  // [n_layer]
  std::vector<int32_t> n_ff;        // [n_layer]
  int32_t key_width = 0, value_width = 0;
  float rms_eps = 0.0f;
  ops::RopeConfig rope;

  float attention_scale() const;
  std::vector<kv::LayerLayout> kv_layers() const;
};

/// Needs: nothing; every key is checked.
/// Errors: as Hyperparams; corrupt where sizes contradict each other; unsupported for a rope scaling type that is
/// not known.
Result<DecoderConfig> read_decoder_config(Hyperparams& hyper, ops::RopeConfig::Pairs pairs);

/// Rotary settings, for heads of `key_width`.
/// Source:  GGUF specification (keys); YaRN, arXiv 2309.00071 §3.4 (attention factor 1 + 0.1 ln s).
Result<ops::RopeConfig> read_rope_config(Hyperparams& hyper, ops::RopeConfig::Pairs pairs, int32_t key_width,
                                         int32_t n_ctx_train);

/// Tokens of the vocabulary: the length of tokenizer.ggml.tokens, else <arch>.vocab_size.
Result<int32_t> read_vocab_size(Hyperparams& hyper);

}  // namespace sh::models
