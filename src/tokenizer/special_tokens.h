// SPDX-License-Identifier: MIT
#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "tokenizer/tokenizer.h"

namespace sh::tokenizer {

/// A stretch of text, or one special token that was written out in it.
struct Fragment {
  size_t begin = 0;
  size_t end = 0;
  TokenId id = kNoToken;  // kNoToken: text
};

/// Finds tokens written out in text: longer tokens first, and each from the left.
/// Source:  the order in which llama.cpp cuts text at special tokens.
class SpecialTokens {
 public:
  /// `text` must live as long as this. `eats_space_after`: white space behind the token belongs to it.
  void add(std::string_view text, TokenId id, bool eats_space_after);
  /// The whole of `text` in order. Cost: O(n · distinct lengths) where a special token could begin, else O(n).
  std::vector<Fragment> split(std::string_view text) const;

 private:
  struct Token {
    TokenId id;
    bool eats_space_after;
  };
  struct OneLength {
    size_t n_bytes = 0;
    std::array<bool, 256> can_begin{};
    std::unordered_map<std::string_view, Token> tokens;
  };
  std::vector<OneLength> lengths_;  // longest first
  std::array<bool, 256> can_begin_{};
};

}  // namespace sh::tokenizer
