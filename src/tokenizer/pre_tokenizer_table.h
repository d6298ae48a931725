// SPDX-License-Identifier: MIT
#pragma once

#include <span>
#include <string_view>

namespace sh::tokenizer {

/// One way to cut text into words before the merges, and the names under which model files ask for it.
struct PreTokenizerRule {
  std::span<const std::string_view> names;     // values of tokenizer.ggml.pre
  std::span<const std::string_view> patterns;  // each cuts the pieces that the one before it left
  bool whole_words = false;                    // a word that is a piece becomes that piece without merges
  bool adds_bos = false;                       // when the file does not say
  bool cleans_spaces = false;                  // decode() removes spaces before punctuation
};

std::span<const PreTokenizerRule> pre_tokenizer_rules();
/// The rule of `name` ("" means "default"), or nullptr.
const PreTokenizerRule* find_pre_tokenizer_rule(std::string_view name);

}  // namespace sh::tokenizer
