// SPDX-License-Identifier: MIT
#include <fmt/format.h>

#include <algorithm>
#include <map>

#include "models/layers.h"

namespace sh::models {

namespace {

/// Names of general.file_type as users know them.
/// Source:  GGUF specification, general.file_type (ids), and the quantisation names in use with it.
const std::map<int64_t, const char*>& file_type_names() {
  static const std::map<int64_t, const char*> names = {
      {0, "F32"},
      {1, "F16"},
      {2, "Q4_0"},
      {3, "Q4_1"},
      {7, "Q8_0"},
      {8, "Q5_0"},
      {9, "Q5_1"},
      {10, "Q2_K - Medium"},
      {11, "Q3_K - Small"},
      {12, "Q3_K - Medium"},
      {13, "Q3_K - Large"},
      {14, "Q4_K - Small"},
      {15, "Q4_K - Medium"},
      {16, "Q5_K - Small"},
      {17, "Q5_K - Medium"},
      {18, "Q6_K"},
      {21, "Q2_K - Small"},
      {25, "IQ4_NL"},
      {30, "IQ4_XS"},
      {32, "BF16"},
      {38, "MXFP4 MoE"},
  };
  return names;
}

std::string upper(std::string text) {
  for (char& c : text)
    if (c >= 'a' && c <= 'z') c = static_cast<char>(c - 'a' + 'A');
  return text;
}

/// The format that holds the most bytes.
std::string commonest_format(const gguf::File& file) {
  std::map<DType, int64_t> bytes;
  for (const gguf::TensorInfo& tensor : file.tensors())
    bytes[tensor.dtype] += static_cast<int64_t>(tensor.data.size());
  if (bytes.empty()) return "";
  const auto most = std::max_element(bytes.begin(), bytes.end(),
                                     [](const auto& a, const auto& b) { return a.second < b.second; });
  return upper(tensor_format(most->first).name);
}

}  // namespace

ModelInfo describe_model(const gguf::File& file, const DecoderConfig& config) {
  ModelInfo info;
  // Informational: a value of another type counts as absent.
  const Result<std::optional<std::string>> arch = file.find_string("general.architecture"),
                                           name = file.find_string("general.name");
  const Result<std::optional<int64_t>> file_type = file.find_int("general.file_type");
  if (arch.ok()) info.arch = arch->value_or("");
  if (name.ok()) info.name = name->value_or("");
  const auto known = file_type_names().find(file_type.ok() ? file_type->value_or(-1) : -1);
  info.file_type = known != file_type_names().end() ? known->second : commonest_format(file);
  info.n_layer = config.n_layer;
  info.n_embd = config.n_embd;
  info.n_vocab = config.n_vocab;
  info.n_head = *std::max_element(config.n_heads.begin(), config.n_heads.end());
  info.n_ctx_train = config.n_ctx_train;
  for (const gguf::TensorInfo& tensor : file.tensors()) info.n_params += tensor.n_elements();
  info.weight_bytes = file.total_tensor_bytes();
  return info;
}

}  // namespace sh::models
