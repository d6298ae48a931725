// SPDX-License-Identifier: MIT
#include "engine/cost.h"

#include <algorithm>
#include <string_view>

#include "tensor/packed.h"

namespace sh::engine {

namespace {

/// Share of the stacked experts that one token uses; 1 for a model without experts.
double expert_share(const gguf::File& file) {
  const auto arch = file.find_string("general.architecture");
  if (!arch.ok() || !arch->has_value()) return 1.0;
  const auto n_all = file.find_int(**arch + ".expert_count"),
             n_used = file.find_int(**arch + ".expert_used_count");
  if (!n_all.ok() || !n_used.ok() || n_all->value_or(0) < 1 || n_used->value_or(0) < 1) return 1.0;
  return std::min(1.0, static_cast<double>(**n_used) / static_cast<double>(**n_all));
}

bool is_expert_stack(std::string_view name) {
  return name.find("_exps.") != std::string_view::npos;
}

}  // namespace

WeightCost weight_cost(const gguf::File& file) {
  const double share = expert_share(file);
  const bool is_tied = file.find_tensor("output.weight") == nullptr;
  WeightCost cost;
  for (const gguf::TensorInfo& tensor : file.tensors()) {
    const bool is_embedding = tensor.name == "token_embd.weight";
    if (is_embedding && !is_tied) continue;
    const double part = is_expert_stack(tensor.name) ? share : 1.0;
    cost.bytes += static_cast<int64_t>(static_cast<double>(tensor.data.size()) * part);
    if (tensor.shape.size() < 2) continue;
    const auto elements = static_cast<int64_t>(static_cast<double>(tensor.n_elements()) * part);
    const bool is_output = is_embedding || tensor.name == "output.weight";
    (is_output ? cost.output_elements : cost.layer_elements) += elements;
    if (can_pack(tensor.dtype))
      (is_output ? cost.output_elements_quantised : cost.layer_elements_quantised) += elements;
  }
  return cost;
}

int64_t kv_bytes_read(const kv::SequenceCache& sequence) {
  const kv::KvLayout& layout = sequence.pool().layout();
  int64_t bytes = 0;
  for (size_t l = 0; l < layout.layers.size(); ++l) {
    const kv::LayerLayout& layer = layout.layers[l];
    if (layer.n_heads == 0) continue;
    const int64_t per_row =
        row_bytes(layout.key_type, layer.key_width) + row_bytes(layout.value_type, layer.value_width);
    for (int32_t h = 0; h < layer.n_heads; ++h) {
      const int64_t n_rows = sequence.head(static_cast<int32_t>(l), h).n_rows;
      bytes += per_row * (layer.window > 0 ? std::min<int64_t>(n_rows, layer.window) : n_rows);
    }
  }
  return bytes;
}

Operations prefill_operations(const models::Model& model, const WeightCost& weights, int64_t n_tokens,
                              int64_t n_past) {
  const auto products = [n_tokens](int64_t layer_elements, int64_t output_elements) {
    return 2.0 * (static_cast<double>(layer_elements) * static_cast<double>(n_tokens) +
                  static_cast<double>(output_elements));
  };
  Operations operations;
  operations.byte_products = products(weights.layer_elements_quantised, weights.output_elements_quantised);
  operations.multiply_adds = products(weights.layer_elements, weights.output_elements) - operations.byte_products;
  const auto layers = model.kv_layers();
  for (size_t l = 0; l < layers.size(); ++l) {
    const kv::LayerLayout& layer = layers[l];
    if (layer.n_heads == 0) continue;
    double n_pairs = 0;  // (query, row) pairs of one head
    for (int64_t i = 0; i < n_tokens; ++i) {
      const int64_t n_visible = n_past + i + 1;
      n_pairs += static_cast<double>(layer.window > 0 ? std::min<int64_t>(n_visible, layer.window) : n_visible);
    }
    operations.multiply_adds +=
        2.0 * n_pairs * model.n_query_heads(static_cast<int32_t>(l)) * (layer.key_width + layer.value_width);
  }
  return operations;
}

}  // namespace sh::engine
