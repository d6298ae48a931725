// SPDX-License-Identifier: MIT
#include "tokenizer/byte_level.h"

#include <fmt/format.h>

#include <array>
#include <optional>

#include "base/log.h"
#include "base/utf8.h"
#include "tokenizer/merge.h"
#include "tokenizer/pre_tokenizer.h"
#include "tokenizer/tokenizer_base.h"

namespace sh::tokenizer {

namespace {

/// Bytes as printable letters and back: Latin-1 letters and signs stand for themselves, the others for U+0100
/// onwards in order.
struct ByteAlphabet {
  std::array<uint16_t, 256> letter_of{};
  std::array<int16_t, 512> byte_of{};  // -1: no byte

  constexpr ByteAlphabet() {
    for (auto& byte : byte_of) byte = -1;
    uint16_t next = 256;
    for (int byte = 0; byte < 256; ++byte) {
      const bool is_printable = (byte >= '!' && byte <= '~') || (byte >= 0xA1 && byte <= 0xAC) || byte >= 0xAE;
      const auto letter = is_printable ? static_cast<uint16_t>(byte) : next++;
      letter_of[static_cast<size_t>(byte)] = letter;
      byte_of[letter] = static_cast<int16_t>(byte);
    }
  }
};
constexpr ByteAlphabet kAlphabet;

/// The bytes that `piece` stands for, or nothing if it holds a letter outside the alphabet.
std::optional<std::string> piece_bytes(std::string_view piece) {
  std::string bytes;
  while (!piece.empty()) {
    const Utf8Char c = decode_utf8(piece);
    if (!c.is_valid || c.code_point >= kAlphabet.byte_of.size() || kAlphabet.byte_of[c.code_point] < 0)
      return std::nullopt;
    bytes.push_back(static_cast<char>(kAlphabet.byte_of[c.code_point]));
    piece.remove_prefix(static_cast<size_t>(c.n_bytes));
  }
  return bytes;
}

std::string with_valid_utf8(std::string_view text) {
  std::string valid;
  valid.reserve(text.size() + 16);
  while (!text.empty()) {
    const Utf8Char c = decode_utf8(text);
    append_utf8(valid, c.code_point);
    text.remove_prefix(static_cast<size_t>(c.n_bytes));
  }
  return valid;
}

/// Removes spaces before punctuation and English contractions, in three passes over the text.
/// Source:  clean_up_tokenization_spaces of the Transformers library, in the form that llama.cpp applies.
std::string clean_spaces(const std::string& text) {
  std::string first;
  for (size_t i = 0; i < text.size(); ++i) {
    const char c = text[i];
    if (i > 0 && text[i - 1] == ' ' && (c == '?' || c == '!' || c == '.' || c == ',')) first.pop_back();
    first.push_back(c);
  }
  std::string second;
  for (size_t i = 0; i < first.size(); ++i) {
    const bool is_lone =
        i > 0 && i + 1 < first.size() && first[i] == '\'' && first[i - 1] == ' ' && first[i + 1] == ' ';
    if (is_lone && !second.empty() && second.back() == ' ') second.pop_back();
    second.push_back(first[i]);
    if (is_lone) ++i;
  }
  std::string third;
  for (size_t i = 0; i < second.size(); ++i) {
    if (i > 0 && second[i - 1] == ' ' && second[i] == '\'') {
      const std::string_view rest = std::string_view(second).substr(i + 1);
      const bool is_contraction =
          rest.starts_with('s') || rest.starts_with('m') || rest.starts_with("re") || rest.starts_with("ve");
      if (is_contraction) third.pop_back();
    }
    third.push_back(second[i]);
  }
  return third;
}

/// Symbols beyond the vocabulary: letters and intermediate results of merges that are no piece.
class ExtraSymbols {
 public:
  explicit ExtraSymbols(const Vocabulary& vocabulary) : vocabulary_(vocabulary) {}
  uint32_t symbol_of(const std::string& piece) {
    if (const TokenId id = vocabulary_.find(piece); id != kNoToken) return static_cast<uint32_t>(id);
    return extra_
        .emplace(piece, static_cast<uint32_t>(vocabulary_.n_vocab()) + static_cast<uint32_t>(extra_.size()))
        .first->second;
  }

 private:
  const Vocabulary& vocabulary_;
  std::unordered_map<std::string, uint32_t> extra_;
};

class ByteLevelTokenizer final : public TokenizerBase {
 public:
  ByteLevelTokenizer(VocabularyData data, const PreTokenizerRule& rule, PreTokenizer pre_tokenizer)
      : TokenizerBase(std::move(data)), rule_(rule), pre_tokenizer_(std::move(pre_tokenizer)) {
    ExtraSymbols symbols(vocabulary_);
    for (size_t byte = 0; byte < 256; ++byte) {
      std::string letter;
      append_utf8(letter, kAlphabet.letter_of[byte]);
      symbol_of_byte_[byte] = symbols.symbol_of(letter);
    }
    add_merges(symbols);
    if (rule.whole_words) add_words();
  }

  std::vector<TokenId> encode(std::string_view text, EncodeOptions options) const override {
    std::vector<TokenId> ids;
    ids.reserve(text.size() / 3 + 2);
    if (options.add_special && adds_bos()) ids.push_back(data().bos);
    Scratch scratch;
    for (const Fragment& fragment : vocabulary_.split(text, options.parse_special)) {
      if (fragment.id != kNoToken) {
        ids.push_back(fragment.id);
      } else {
        encode_text(text.substr(fragment.begin, fragment.end - fragment.begin), ids, scratch);
      }
    }
    if (options.add_special && adds_eos()) ids.push_back(data().eos);
    return ids;
  }

  std::string decode(std::span<const TokenId> ids, bool render_special) const override {
    std::string text;
    for (const TokenId id : ids) text += piece(id, render_special);
    return rule_.cleans_spaces ? clean_spaces(text) : text;
  }

 private:
  struct Scratch {
    std::vector<Symbol> symbols;
    MergeScratch merge;
  };

  void add_merges(ExtraSymbols& symbols) {
    merges_.reserve(data().merges.size());
    uint32_t rank = 0;
    for (const std::string& merge : data().merges) {
      // A piece may itself begin with a space only as the letter for it, so the separator is the first space after
      // a letter.
      const size_t space = merge.find(' ', 1);
      if (space != std::string::npos) {
        const std::string left = merge.substr(0, space);
        const std::string right = merge.substr(space + 1);
        merges_.add(symbols.symbol_of(left), symbols.symbol_of(right), {rank, symbols.symbol_of(left + right)});
      }
      ++rank;
    }
  }

  void add_words() {
    for (TokenId id = 0; id < n_vocab(); ++id) {
      if (auto bytes = piece_bytes(data().pieces[static_cast<size_t>(id)])) words_.emplace(std::move(*bytes), id);
    }
  }

  void encode_text(std::string_view text, std::vector<TokenId>& ids, Scratch& scratch) const {
    std::string repaired;
    if (!is_valid_utf8(text)) {
      repaired = with_valid_utf8(text);
      text = repaired;
    }
    size_t begin = 0;
    for (const size_t end : pre_tokenizer_.split(text)) {
      encode_word(text.substr(begin, end - begin), ids, scratch);
      begin = end;
    }
  }

  void encode_word(std::string_view word, std::vector<TokenId>& ids, Scratch& scratch) const {
    if (rule_.whole_words) {
      if (const auto at = words_.find(word); at != words_.end()) {
        ids.push_back(at->second);
        return;
      }
    }
    scratch.symbols.clear();
    for (size_t i = 0; i < word.size(); ++i) {
      scratch.symbols.push_back({symbol_of_byte_[static_cast<unsigned char>(word[i])], static_cast<uint32_t>(i)});
    }
    merge_symbols(merges_, scratch.symbols, scratch.merge);
    for (size_t s = 0; s < scratch.symbols.size(); ++s) {
      const Symbol& symbol = scratch.symbols[s];
      if (is_token(symbol.id)) {
        ids.push_back(static_cast<TokenId>(symbol.id));
        continue;
      }
      const size_t end = s + 1 < scratch.symbols.size() ? scratch.symbols[s + 1].begin : word.size();
      for (size_t i = symbol.begin; i < end; ++i) {
        const uint32_t letter = symbol_of_byte_[static_cast<unsigned char>(word[i])];
        if (is_token(letter)) {
          ids.push_back(static_cast<TokenId>(letter));
        } else if (data().unk != kNoToken) {
          ids.push_back(data().unk);
        }
      }
    }
  }

  bool is_token(uint32_t symbol) const { return symbol < static_cast<uint32_t>(n_vocab()); }

  std::string normal_piece_text(const std::string& text) const override {
    return piece_bytes(text).value_or(text);
  }

  struct Hash {
    using is_transparent = void;
    size_t operator()(std::string_view text) const { return std::hash<std::string_view>()(text); }
  };

  const PreTokenizerRule& rule_;
  PreTokenizer pre_tokenizer_;
  std::array<uint32_t, 256> symbol_of_byte_{};
  MergeTable merges_;
  std::unordered_map<std::string, TokenId, Hash, std::equal_to<>> words_;
};

}  // namespace

Result<std::unique_ptr<Tokenizer>> make_byte_level_tokenizer(VocabularyData data) {
  const PreTokenizerRule* rule = find_pre_tokenizer_rule(data.pre);
  if (rule == nullptr) {
    std::string known;
    for (const PreTokenizerRule& each : pre_tokenizer_rules()) {
      for (std::string_view name : each.names) known += fmt::format("{}{}", known.empty() ? "" : ", ", name);
    }
    return Error{ErrorKind::unsupported,
                 fmt::format("tokenizer.ggml.pre is \"{}\", which is not supported; known: {}", data.pre, known)};
  }
  if (data.pre.empty())
    log_warning("tokenizer.ggml.pre is missing: words are cut by \"default\"; convert the model again");
  resolve_added_tokens(data, rule->adds_bos);
  data.add_space_prefix = false;
  SH_ASSIGN(PreTokenizer pre_tokenizer, PreTokenizer::create(*rule));
  return std::unique_ptr<Tokenizer>(
      std::make_unique<ByteLevelTokenizer>(std::move(data), *rule, std::move(pre_tokenizer)));
}

}  // namespace sh::tokenizer
