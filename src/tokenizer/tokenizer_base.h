// SPDX-License-Identifier: MIT
#pragma once

#include "tokenizer/vocabulary.h"

namespace sh::tokenizer {

/// The part of Tokenizer that only asks the vocabulary.
class TokenizerBase : public Tokenizer {
 public:
  explicit TokenizerBase(VocabularyData data) : vocabulary_(std::move(data)) {}

  int32_t n_vocab() const final { return vocabulary_.n_vocab(); }
  const VocabularyData& data() const final { return vocabulary_.data(); }
  bool adds_bos() const final { return *data().add_bos; }
  bool adds_eos() const final { return *data().add_eos; }
  bool is_end_of_generation(TokenId id) const final { return vocabulary_.is_end_of_generation(id); }
  bool is_control(TokenId id) const final { return vocabulary_.is_control(id); }
  TokenId find(std::string_view piece) const final { return vocabulary_.find(piece); }

  std::string piece(TokenId id, bool render_special) const final {
    SH_CHECK(id >= 0 && id < n_vocab(), "token id outside the vocabulary");
    const std::string& text = data().pieces[static_cast<size_t>(id)];
    switch (vocabulary_.kind(id)) {
      case TokenKind::control:
      case TokenKind::unknown:
        return render_special ? text : "";
      case TokenKind::user_defined:
        return text;
      case TokenKind::normal:
        return normal_piece_text(text);
      case TokenKind::byte:
        return byte_piece_text(text);
      case TokenKind::undefined:
      case TokenKind::unused:
        return "";
    }
    return "";
  }

 protected:
  /// The bytes that a piece of kind normal stands for.
  virtual std::string normal_piece_text(const std::string& piece) const = 0;

  const Vocabulary vocabulary_;
};

/// add_* as the file says, else the default of the format; never on without the token itself.
inline void resolve_added_tokens(VocabularyData& data, bool adds_bos) {
  data.add_bos = data.add_bos.value_or(adds_bos) && data.bos != kNoToken;
  data.add_eos = data.add_eos.value_or(false) && data.eos != kNoToken;
}

}  // namespace sh::tokenizer
