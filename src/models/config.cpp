// SPDX-License-Identifier: MIT
#include "models/config.h"

#include <fmt/format.h>

#include <cmath>
#include <limits>

namespace sh::models {

namespace {

// Far above any model there is, far below where a product of three of them leaves 64 bits.
constexpr int64_t kMaxLayers = 4096;
constexpr int64_t kMaxEmbd = 1 << 20;
constexpr int64_t kMaxHeads = 1 << 14;
constexpr int64_t kMaxHeadWidth = 1 << 14;
constexpr int64_t kMaxFf = 1 << 24;
constexpr int64_t kMaxVocab = 1 << 26;

std::string show(const gguf::Value& value) {
  struct Show {
    std::string operator()(bool v) const { return v ? "true" : "false"; }
    std::string operator()(int64_t v) const { return fmt::format("{}", v); }
    std::string operator()(uint64_t v) const { return fmt::format("{}", v); }
    std::string operator()(double v) const { return fmt::format("{}", v); }
    std::string operator()(const std::string& v) const { return fmt::format("\"{}\"", v.substr(0, 64)); }
    std::string operator()(const gguf::Array& v) const {
      return fmt::format("an array of {}", std::visit([](const auto& items) { return items.size(); }, v.items));
    }
  };
  return std::visit(Show{}, value);
}

Error missing(const std::string& key) {
  return {ErrorKind::corrupt, fmt::format("key {} is missing: the model cannot be run without it", key)};
}

}  // namespace

std::string Hyperparams::key(std::string_view name) const {
  return fmt::format("{}.{}", arch_, name);
}

Result<std::optional<int64_t>> Hyperparams::find_int(std::string_view name, int64_t low, int64_t high) {
  const std::string full = key(name);
  read_.insert(full);
  SH_ASSIGN(const std::optional<int64_t> value, file_.find_int(full));
  if (value && (*value < low || *value > high))
    return Error{ErrorKind::corrupt, fmt::format("key {}: expected {} to {}, got {}", full, low, high, *value)};
  return value;
}

Result<int64_t> Hyperparams::require_int(std::string_view name, int64_t low, int64_t high) {
  SH_ASSIGN(const std::optional<int64_t> value, find_int(name, low, high));
  if (!value) return missing(key(name));
  return *value;
}

Result<int64_t> Hyperparams::int_or(std::string_view name, int64_t otherwise, int64_t low, int64_t high) {
  SH_ASSIGN(const std::optional<int64_t> value, find_int(name, low, high));
  return value.value_or(otherwise);
}

Result<std::optional<double>> Hyperparams::find_float(std::string_view name, double low, double high) {
  const std::string full = key(name);
  read_.insert(full);
  SH_ASSIGN(const std::optional<double> value, file_.find_float(full));
  if (value && !(*value >= low && *value <= high))
    return Error{ErrorKind::corrupt, fmt::format("key {}: expected {} to {}, got {}", full, low, high, *value)};
  return value;
}

Result<double> Hyperparams::require_float(std::string_view name, double low, double high) {
  SH_ASSIGN(const std::optional<double> value, find_float(name, low, high));
  if (!value) return missing(key(name));
  return *value;
}

Result<double> Hyperparams::float_or(std::string_view name, double otherwise, double low, double high) {
  SH_ASSIGN(const std::optional<double> value, find_float(name, low, high));
  return value.value_or(otherwise);
}

Result<std::optional<std::string>> Hyperparams::find_string(std::string_view name) {
  const std::string full = key(name);
  read_.insert(full);
  return file_.find_string(full);
}

Result<std::optional<std::vector<int32_t>>> Hyperparams::find_per_layer(std::string_view name, int32_t n_layer,
                                                                        int64_t low, int64_t high) {
  const std::string full = key(name);
  const auto entry = file_.metadata().find(full);
  if (entry == file_.metadata().end() || !std::holds_alternative<gguf::Array>(entry->second)) {
    SH_ASSIGN(const std::optional<int64_t> value, find_int(name, low, high));
    std::optional<std::vector<int32_t>> same;
    if (value) same.emplace(static_cast<size_t>(n_layer), static_cast<int32_t>(*value));
    return same;
  }
  read_.insert(full);
  SH_ASSIGN(std::optional<std::vector<int64_t>> found, file_.find_int_array(full));
  const std::vector<int64_t> items = std::move(found).value_or(std::vector<int64_t>{});
  if (static_cast<int64_t>(items.size()) != n_layer)
    return Error{ErrorKind::corrupt,
                 fmt::format("key {}: expected one value a layer ({}), got {}", full, n_layer, items.size())};
  std::vector<int32_t> values;
  for (size_t layer = 0; layer < items.size(); ++layer) {
    const int64_t value = items[layer];
    if (value < low || value > high)
      return Error{ErrorKind::corrupt,
                   fmt::format("key {}[{}]: expected {} to {}, got {}", full, layer, low, high, value)};
    values.push_back(static_cast<int32_t>(value));
  }
  return std::optional(std::move(values));
}

Result<std::vector<int32_t>> Hyperparams::require_per_layer(std::string_view name, int32_t n_layer, int64_t low,
                                                            int64_t high) {
  SH_ASSIGN(std::optional<std::vector<int32_t>> values, find_per_layer(name, n_layer, low, high));
  if (!values) return missing(key(name));
  return *std::move(values);
}

Result<void> Hyperparams::finish() const {
  std::string unread;
  const std::string prefix = arch_ + ".";
  for (auto entry = file_.metadata().lower_bound(prefix); entry != file_.metadata().end(); ++entry) {
    if (entry->first.compare(0, prefix.size(), prefix) != 0) break;
    if (read_.contains(entry->first)) continue;
    unread += fmt::format("{}{} = {}", unread.empty() ? "" : ", ", entry->first, show(entry->second));
  }
  if (unread.empty()) return {};
  return Error{
      ErrorKind::unsupported,
      fmt::format(
          "architecture {}: the file sets {}, which is not supported; running it without would give wrong answers",
          arch_, unread)};
}

float DecoderConfig::attention_scale() const {
  return 1.0f / std::sqrt(static_cast<float>(key_width));
}

std::vector<kv::LayerLayout> DecoderConfig::kv_layers() const {
  std::vector<kv::LayerLayout> layers;
  for (const int32_t n : n_kv_heads)
    layers.push_back({.n_heads = n, .key_width = key_width, .value_width = value_width});
  return layers;
}

Result<int32_t> read_vocab_size(Hyperparams& hyper) {
  SH_ASSIGN(const std::optional<int64_t> stated, hyper.find_int("vocab_size", 1, kMaxVocab));
  const auto tokens = hyper.file().metadata().find("tokenizer.ggml.tokens");
  if (tokens == hyper.file().metadata().end()) {
    if (!stated) return missing("tokenizer.ggml.tokens");
    return static_cast<int32_t>(*stated);
  }
  const gguf::Array* array = std::get_if<gguf::Array>(&tokens->second);
  const size_t n = array == nullptr ? 0 : std::visit([](const auto& items) { return items.size(); }, array->items);
  if (n == 0 || n > static_cast<size_t>(kMaxVocab))
    return Error{ErrorKind::corrupt,
                 fmt::format("key tokenizer.ggml.tokens: expected an array of 1 to {} strings, got {}", kMaxVocab,
                             show(tokens->second))};
  return static_cast<int32_t>(n);
}

Result<ops::RopeConfig> read_rope_config(Hyperparams& hyper, ops::RopeConfig::Pairs pairs, int32_t key_width,
                                         int32_t n_ctx_train) {
  ops::RopeConfig rope;
  rope.pairs = pairs;
  SH_ASSIGN(const int64_t n_dims, hyper.int_or("rope.dimension_count", key_width, 2, key_width));
  if (n_dims % 2 != 0)
    return Error{ErrorKind::corrupt, fmt::format("key {}: expected an even number, got {}",
                                                 hyper.key("rope.dimension_count"), n_dims)};
  rope.n_dims = static_cast<int32_t>(n_dims);
  SH_ASSIGN(const double base, hyper.float_or("rope.freq_base", 10000.0, 1.001, 1e18));
  rope.base = static_cast<float>(base);

  // Files older than rope.scaling.* carry the factor of linear scaling alone. A file that gives a factor but no
  // type means linear.
  SH_ASSIGN(const double old_factor, hyper.float_or("rope.scale_linear", 1.0, 0.0, 1e6));
  SH_ASSIGN(const double given_factor, hyper.float_or("rope.scaling.factor", old_factor, 0.0, 1e6));
  const double factor = given_factor == 0.0 ? 1.0 : given_factor;  // 0 is written for "no scaling"
  SH_ASSIGN(const std::optional<std::string> given_type, hyper.find_string("rope.scaling.type"));
  SH_ASSIGN(const int64_t original, hyper.int_or("rope.scaling.original_context_length", n_ctx_train, 1,
                                                 std::numeric_limits<int32_t>::max()));
  SH_ASSIGN(const double attention_factor, hyper.float_or("rope.scaling.attn_factor", 1.0, 1e-6, 1e6));
  SH_ASSIGN(const double ext_factor, hyper.float_or("rope.scaling.yarn_ext_factor", 1.0, 0.0, 1.0));
  SH_ASSIGN(const double beta_fast, hyper.float_or("rope.scaling.yarn_beta_fast", 32.0, 1e-6, 1e6));
  SH_ASSIGN(const double beta_slow, hyper.float_or("rope.scaling.yarn_beta_slow", 1.0, 1e-6, 1e6));
  hyper.ignore("rope.scaling.finetuned");

  rope.attention_factor = static_cast<float>(attention_factor);
  const std::string type = given_type.value_or("linear");
  if (type == "none") return rope;
  if (type == "linear") {
    rope.position_scale = static_cast<float>(1.0 / factor);
    return rope;
  }
  if (type != "yarn")
    return Error{ErrorKind::unsupported, fmt::format("key {}: expected none, linear or yarn, got \"{}\"",
                                                     hyper.key("rope.scaling.type"), type)};
  rope.yarn_factor = static_cast<float>(factor);
  rope.yarn_original_context = static_cast<int32_t>(original);
  rope.yarn_beta_fast = static_cast<float>(beta_fast);
  rope.yarn_beta_slow = static_cast<float>(beta_slow);
  rope.yarn_ext_factor = static_cast<float>(ext_factor);
  if (ext_factor != 0.0 && factor > 1.0)
    rope.attention_factor = static_cast<float>(attention_factor * (1.0 + 0.1 * std::log(factor)));
  return rope;
}

Result<DecoderConfig> read_decoder_config(Hyperparams& hyper, ops::RopeConfig::Pairs pairs) {
  constexpr int64_t kMaxInt = std::numeric_limits<int32_t>::max();
  DecoderConfig c;
  SH_ASSIGN(const int64_t n_layer, hyper.require_int("block_count", 1, kMaxLayers));
  SH_ASSIGN(const int64_t n_embd, hyper.require_int("embedding_length", 1, kMaxEmbd));
  SH_ASSIGN(const int64_t n_ctx_train, hyper.require_int("context_length", 1, kMaxInt));
  c.n_layer = static_cast<int32_t>(n_layer);
  c.n_embd = static_cast<int32_t>(n_embd);
  c.n_ctx_train = static_cast<int32_t>(n_ctx_train);
  SH_ASSIGN(c.n_vocab, read_vocab_size(hyper));
  SH_ASSIGN(c.n_heads, hyper.require_per_layer("attention.head_count", c.n_layer, 1, kMaxHeads));
  SH_ASSIGN(auto n_kv_heads, hyper.find_per_layer("attention.head_count_kv", c.n_layer, 1, kMaxHeads));
  c.n_kv_heads = n_kv_heads.value_or(c.n_heads);
  SH_ASSIGN(c.n_ff, hyper.require_per_layer("feed_forward_length", c.n_layer, 1, kMaxFf));
  for (size_t layer = 0; layer < c.n_heads.size(); ++layer)
    if (c.n_heads[layer] % c.n_kv_heads[layer] != 0)
      return Error{ErrorKind::corrupt,
                   fmt::format("layer {}: {} query heads do not divide into groups of {} key/value heads", layer,
                               c.n_heads[layer], c.n_kv_heads[layer])};

  SH_ASSIGN(const std::optional<int64_t> key_width, hyper.find_int("attention.key_length", 2, kMaxHeadWidth));
  SH_ASSIGN(const std::optional<int64_t> value_width, hyper.find_int("attention.value_length", 1, kMaxHeadWidth));
  const int64_t share = c.n_embd / c.n_heads[0];
  if ((!key_width || !value_width) && (c.n_embd % c.n_heads[0] != 0 || share < 2 || share > kMaxHeadWidth))
    return Error{ErrorKind::corrupt, fmt::format("width {} does not divide into {} heads and the file gives no {}",
                                                 c.n_embd, c.n_heads[0], hyper.key("attention.key_length"))};
  c.key_width = static_cast<int32_t>(key_width.value_or(share));
  c.value_width = static_cast<int32_t>(value_width.value_or(share));
  SH_ASSIGN(const double eps, hyper.require_float("attention.layer_norm_rms_epsilon", 0.0, 1.0));
  c.rms_eps = static_cast<float>(eps);
  SH_ASSIGN(c.rope, read_rope_config(hyper, pairs, c.key_width, c.n_ctx_train));
  hyper.ignore("tensor_data_layout");
  return c;
}

}  // namespace sh::models
