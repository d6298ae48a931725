// SPDX-License-Identifier: MIT
#include "kv/layout.h"

#include <fmt/format.h>

#include "kernels/kernel_set.h"

namespace sh::kv {

namespace {

// Bounds on what a model file may ask for; far above any model, far below overflow of the byte counts.
constexpr int32_t kMaxWidth = 1 << 16;
constexpr int32_t kMaxHeads = 1 << 16;

Result<void> check_width(size_t layer, const char* what, int32_t width, DType dtype) {
  const TensorFormat& format = tensor_format(dtype);
  if (width < 1 || width > kMaxWidth)
    return Error{ErrorKind::invalid_argument, fmt::format("KV layout, layer {}: {} width is {}, expected 1 to {}",
                                                          layer, what, width, kMaxWidth)};
  if (width % format.block_elements != 0)
    return Error{
        ErrorKind::invalid_argument,
        fmt::format(
            "KV layout, layer {}: {} width {} is not a multiple of the {} elements in a block of {}; choose "
            "another cache type for it, f16 fits any width",
            layer, what, width, format.block_elements, format.name)};
  return {};
}

Result<void> check_dtype(const char* what, DType dtype) {
  if (kernels::is_kv_dtype(dtype)) return {};
  return Error{ErrorKind::invalid_argument,
               fmt::format("KV layout: the {} cannot be kept as {}; use one of {}", what,
                           tensor_format(dtype).name, kernels::kv_dtype_names())};
}

}  // namespace

Result<DType> cache_dtype_from_name(const std::string& name) {
  const auto dtype = dtype_from_name(name);
  if (dtype.ok() && kernels::is_kv_dtype(*dtype)) return *dtype;
  return Error{ErrorKind::invalid_argument,
               fmt::format("'{}' cannot hold a KV cache; use one of {}", name, kernels::kv_dtype_names())};
}

int64_t KvLayout::bytes_per_token() const {
  int64_t n_bytes = 0;
  for (const LayerLayout& layer : layers) {
    if (layer.n_heads > 0)
      n_bytes += layer.n_heads * (row_bytes(key_type, layer.key_width) + row_bytes(value_type, layer.value_width));
  }
  return n_bytes;
}

int64_t KvLayout::n_heads_total() const {
  int64_t n_heads = 0;
  for (const LayerLayout& layer : layers) n_heads += layer.n_heads;
  return n_heads;
}

Result<void> KvLayout::validate() const {
  SH_RETURN_IF_ERROR(check_dtype("keys", key_type));
  SH_RETURN_IF_ERROR(check_dtype("values", value_type));
  for (size_t i = 0; i < layers.size(); ++i) {
    const LayerLayout& layer = layers[i];
    if (layer.n_heads < 0 || layer.n_heads > kMaxHeads)
      return Error{ErrorKind::invalid_argument,
                   fmt::format("KV layout, layer {}: {} KV heads, expected 0 to {}", i, layer.n_heads, kMaxHeads)};
    if (layer.window < 0)
      return Error{ErrorKind::invalid_argument,
                   fmt::format("KV layout, layer {}: window is {}, expected 0 (none) or more", i, layer.window)};
    if (layer.n_heads == 0) continue;
    SH_RETURN_IF_ERROR(check_width(i, "key", layer.key_width, key_type));
    SH_RETURN_IF_ERROR(check_width(i, "value", layer.value_width, value_type));
  }
  return {};
}

}  // namespace sh::kv
