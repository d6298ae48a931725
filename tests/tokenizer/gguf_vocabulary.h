// SPDX-License-Identifier: MIT
// The vocabulary of a GGUF file of the golden data. The tests stop where the file is not as expected.
#pragma once

#include <string>
#include <vector>

#include "gguf/gguf.h"
#include "tokenizer/tokenizer.h"

namespace sh::test {

/// Needs: `path` below tests/golden is a GGUF file with a vocabulary.
inline tokenizer::VocabularyData read_golden_vocabulary(const std::string& path) {
  const gguf::File file = gguf::File::open(SH_SOURCE_DIR "/tests/golden/" + path).value();
  const auto text = [&](const char* key) { return file.find_string(key).value().value_or(""); };
  const auto id = [&](const std::string& name) {
    const auto value = file.find_int("tokenizer.ggml." + name + "_token_id").value();
    return static_cast<tokenizer::TokenId>(value.value_or(tokenizer::kNoToken));
  };
  tokenizer::VocabularyData data;
  data.model = text("tokenizer.ggml.model");
  data.pre = text("tokenizer.ggml.pre");
  data.model_name = text("general.name");
  data.pieces = file.find_string_array("tokenizer.ggml.tokens").value().value();
  const auto scores = file.find_float_array("tokenizer.ggml.scores").value().value_or(std::vector<double>());
  for (const double score : scores) data.scores.push_back(static_cast<float>(score));
  const auto kinds = file.find_int_array("tokenizer.ggml.token_type").value().value_or(std::vector<int64_t>());
  for (const int64_t kind : kinds) data.kinds.push_back(static_cast<tokenizer::TokenKind>(kind));
  data.merges = file.find_string_array("tokenizer.ggml.merges").value().value_or(std::vector<std::string>());
  data.bos = id("bos");
  data.eos = id("eos");
  data.eot = id("eot");
  data.unk = id("unknown");
  data.pad = id("padding");
  data.add_bos = file.find_bool("tokenizer.ggml.add_bos_token").value();
  data.add_eos = file.find_bool("tokenizer.ggml.add_eos_token").value();
  data.add_space_prefix = file.find_bool("tokenizer.ggml.add_space_prefix").value();
  return data;
}

}  // namespace sh::test
