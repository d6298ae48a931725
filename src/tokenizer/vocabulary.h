// SPDX-License-Identifier: MIT
#pragma once

#include <array>
#include <boost/unordered/unordered_flat_map.hpp>
#include <string>
#include <string_view>
#include <vector>

#include "tokenizer/special_tokens.h"
#include "tokenizer/tokenizer.h"

namespace sh::tokenizer {

/// What the two kinds of tokenizer share: the pieces by text, kinds and special ids resolved, the
/// end-of-generation set, special tokens in text. A class of its own so that it never moves: the index views the
/// strings of `data`.
class Vocabulary {
 public:
  /// Sizes agree, special ids within the vocabulary (others are dropped with a warning). Errors: corrupt.
  static Result<void> check(VocabularyData& data);
  /// Needs: data passed check(), special ids and add_* resolved.
  explicit Vocabulary(VocabularyData data);
  Vocabulary(const Vocabulary&) = delete;
  Vocabulary& operator=(const Vocabulary&) = delete;

  const VocabularyData& data() const { return data_; }
  int32_t n_vocab() const { return static_cast<int32_t>(data_.pieces.size()); }
  TokenKind kind(TokenId id) const { return data_.kinds[static_cast<size_t>(id)]; }
  TokenId find(std::string_view piece) const;
  bool is_control(TokenId id) const;
  bool is_end_of_generation(TokenId id) const;
  /// Text and special tokens in order; control and unknown tokens only with `parse_special`, user-defined ones
  /// always.
  std::vector<Fragment> split(std::string_view text, bool parse_special) const;

 private:
  void resolve_end_of_generation();
  void resolve_special_tokens();
  bool has(TokenId id) const { return id >= 0 && id < n_vocab(); }

  VocabularyData data_;
  // Flat: a SentencePiece vocabulary of 150 000 pieces is looked into two million times to find its merges.
  boost::unordered_flat_map<std::string_view, TokenId, std::hash<std::string_view>> ids_;
  std::vector<bool> is_end_of_generation_;  // [n_vocab]
  SpecialTokens all_special_;
  SpecialTokens user_defined_;
};

/// Bytes of a piece of kind `byte`, "<0x0A>"; "" if it is not written so.
std::string byte_piece_text(std::string_view piece);

}  // namespace sh::tokenizer
