// SPDX-License-Identifier: MIT
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/result.h"

namespace sh::tokenizer {

using TokenId = int32_t;
inline constexpr TokenId kNoToken = -1;

/// Values of `tokenizer.ggml.token_type`.
enum class TokenKind : int32_t {
  undefined = 0,
  normal = 1,
  unknown = 2,
  control = 3,
  user_defined = 4,
  unused = 5,
  byte = 6,
};

/// A vocabulary as the model file gives it (keys `tokenizer.ggml.*`); the engine fills it from the GGUF.
struct VocabularyData {
  std::string model;  // "gpt2" (byte-level BPE) or "llama" (SentencePiece)
  std::string pre;    // pre-tokenizer name for byte-level BPE, "" when absent
  std::string
      model_name;  // general.name: Phi-3 eats white space after its special tokens and says so nowhere else
  std::vector<std::string> pieces;  // [n_vocab]
  std::vector<float> scores;        // [n_vocab] or empty
  std::vector<TokenKind> kinds;     // [n_vocab] or empty
  std::vector<std::string> merges;  // "left right", by rank; byte-level BPE only
  TokenId bos = kNoToken, eos = kNoToken, eot = kNoToken, unk = kNoToken, pad = kNoToken;
  // Absent keys are nothing here: the defaults depend on `model` and `pre` and are the tokenizer's.
  std::optional<bool> add_bos, add_eos, add_space_prefix;
};

struct EncodeOptions {
  bool add_special = false;    // BOS/EOS as the vocabulary says
  bool parse_special = false;  // control tokens written out in the text become their ids
};

/// Text to token ids and back. Threads: all const members may be called at once.
class Tokenizer {
 public:
  /// Errors: unsupported (unknown model or pre-tokenizer: named, with the known ones), corrupt (vocabulary that
  ///         contradicts itself).
  static Result<std::unique_ptr<Tokenizer>> create(VocabularyData data);
  virtual ~Tokenizer() = default;

  /// Bytes that are no UTF-8 become U+FFFD (byte-level BPE) or byte tokens (SentencePiece).
  /// Cost: O(n log n) in the length of the text, whatever the text is.
  virtual std::vector<TokenId> encode(std::string_view text, EncodeOptions options) const = 0;
  /// The bytes of one token; control tokens give "" unless `render_special`. Needs: 0 <= id < n_vocab.
  virtual std::string piece(TokenId id, bool render_special) const = 0;
  /// The text of `ids`. With a space-prefix vocabulary one space at the front is removed again, and vocabularies
  /// of the GPT-2 family lose spaces before punctuation, as llama.cpp does; streams join piece() instead, which
  /// loses nothing.
  virtual std::string decode(std::span<const TokenId> ids, bool render_special) const = 0;

  virtual int32_t n_vocab() const = 0;
  /// As given to create(), with special ids and kinds resolved as the rules of the format say.
  virtual const VocabularyData& data() const = 0;
  virtual bool adds_bos() const = 0;
  virtual bool adds_eos() const = 0;
  /// End of generation: eos, eot and the other end-of-turn tokens that the vocabulary names.
  virtual bool is_end_of_generation(TokenId id) const = 0;
  virtual bool is_control(TokenId id) const = 0;
  /// The id of a piece written exactly so, or kNoToken.
  virtual TokenId find(std::string_view piece) const = 0;
};

}  // namespace sh::tokenizer
