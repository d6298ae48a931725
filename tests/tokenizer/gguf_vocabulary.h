// SPDX-License-Identifier: MIT
// Reads the vocabulary out of a GGUF file of the golden data. Trusts the file: the real reader is the room gguf.
#pragma once

#include <gtest/gtest.h>

#include <cstring>
#include <map>
#include <string>
#include <vector>

#include "base/mapped_file.h"
#include "tokenizer/tokenizer.h"

namespace sh::test {

class GgufVocabularyReader {
 public:
  explicit GgufVocabularyReader(std::string bytes) : bytes_(std::move(bytes)) {}

  tokenizer::VocabularyData read() {
    at_ = 4 + 4 + 8;  // magic, version, number of tensors
    const auto n_keys = take<uint64_t>();
    for (uint64_t i = 0; i < n_keys; ++i) {
      const std::string key = take_string();
      take_value(key, take<uint32_t>());
    }
    return data_;
  }

 private:
  static constexpr uint32_t kString = 8, kArray = 9;

  template <typename T>
  T take() {
    T value;
    std::memcpy(&value, bytes_.data() + at_, sizeof value);
    at_ += sizeof value;
    return value;
  }
  std::string take_string() {
    const auto n = take<uint64_t>();
    at_ += n;
    return bytes_.substr(at_ - n, n);
  }
  void take_value(const std::string& key, uint32_t type) {
    if (type == kString) {
      const std::string text = take_string();
      if (key == "general.name") data_.model_name = text;
      if (key == "tokenizer.ggml.model") data_.model = text;
      if (key == "tokenizer.ggml.pre") data_.pre = text;
    } else if (type == kArray) {
      take_array(key);
    } else {
      static const std::map<uint32_t, size_t> kBytes = {{0, 1}, {1, 1}, {2, 2},  {3, 2},  {4, 4}, {5, 4},
                                                        {6, 4}, {7, 1}, {10, 8}, {11, 8}, {12, 8}};
      const size_t n = kBytes.at(type);
      if (n == 4) set_id(key, static_cast<int32_t>(take<uint32_t>()));
      if (n == 1) set_flag(key, take<uint8_t>() != 0);
      if (n == 2 || n == 8) at_ += n;
    }
  }
  void take_array(const std::string& key) {
    const auto type = take<uint32_t>();
    const auto n = take<uint64_t>();
    for (uint64_t i = 0; i < n; ++i) {
      if (key == "tokenizer.ggml.tokens") {
        data_.pieces.push_back(take_string());
      } else if (key == "tokenizer.ggml.merges") {
        data_.merges.push_back(take_string());
      } else if (key == "tokenizer.ggml.scores") {
        data_.scores.push_back(take<float>());
      } else if (key == "tokenizer.ggml.token_type") {
        data_.kinds.push_back(static_cast<tokenizer::TokenKind>(take<int32_t>()));
      } else {
        take_value("", type);
      }
    }
  }
  void set_id(const std::string& key, int32_t id) {
    if (key == "tokenizer.ggml.bos_token_id") data_.bos = id;
    if (key == "tokenizer.ggml.eos_token_id") data_.eos = id;
    if (key == "tokenizer.ggml.eot_token_id") data_.eot = id;
    if (key == "tokenizer.ggml.unknown_token_id") data_.unk = id;
    if (key == "tokenizer.ggml.padding_token_id") data_.pad = id;
  }
  void set_flag(const std::string& key, bool value) {
    if (key == "tokenizer.ggml.add_bos_token") data_.add_bos = value;
    if (key == "tokenizer.ggml.add_eos_token") data_.add_eos = value;
    if (key == "tokenizer.ggml.add_space_prefix") data_.add_space_prefix = value;
  }

  std::string bytes_;
  size_t at_ = 0;
  tokenizer::VocabularyData data_;
};

/// Needs: `path` below tests/golden exists.
inline tokenizer::VocabularyData read_golden_vocabulary(const std::string& path) {
  auto bytes = read_file(SH_SOURCE_DIR "/tests/golden/" + path);
  EXPECT_TRUE(bytes.ok()) << bytes.error().message;
  return GgufVocabularyReader(std::move(*bytes)).read();
}

}  // namespace sh::test
