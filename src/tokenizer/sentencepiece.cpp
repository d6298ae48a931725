// SPDX-License-Identifier: MIT
#include "tokenizer/sentencepiece.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>
#include <numeric>

#include "base/utf8.h"
#include "tokenizer/merge.h"
#include "tokenizer/tokenizer_base.h"

namespace sh::tokenizer {

namespace {

constexpr std::string_view kSpace = "\xE2\x96\x81";  // U+2581, which stands for a space

/// Rank of every token by score: 0 is the best, equal scores share a rank. NaN counts as the worst score.
std::vector<uint32_t> score_ranks(const std::vector<float>& scores, size_t n_vocab) {
  std::vector<uint32_t> ranks(n_vocab, 0);
  if (scores.empty()) return ranks;
  const auto score = [&](uint32_t id) {
    return std::isnan(scores[id]) ? -std::numeric_limits<float>::infinity() : scores[id];
  };
  std::vector<uint32_t> order(n_vocab);
  std::iota(order.begin(), order.end(), 0u);
  std::sort(order.begin(), order.end(), [&](uint32_t a, uint32_t b) { return score(a) > score(b); });
  for (size_t i = 1; i < n_vocab; ++i) {
    ranks[order[i]] = ranks[order[i - 1]] + (score(order[i]) < score(order[i - 1]) ? 1 : 0);
  }
  return ranks;
}

class SentencePieceTokenizer final : public TokenizerBase {
 public:
  explicit SentencePieceTokenizer(VocabularyData data) : TokenizerBase(std::move(data)) {
    ascii_.fill(kNoSymbol);
    n_symbols_ = static_cast<uint32_t>(n_vocab());
    const std::vector<uint32_t> ranks = score_ranks(this->data().scores, this->data().pieces.size());
    for (TokenId id = 0; id < n_vocab(); ++id) add_piece(id, ranks[static_cast<size_t>(id)]);
    for (size_t byte = 0; byte < 256; ++byte) token_of_byte_[byte] = find_byte(static_cast<unsigned char>(byte));
  }

  std::vector<TokenId> encode(std::string_view text, EncodeOptions options) const override {
    std::vector<TokenId> ids;
    ids.reserve(text.size() / 3 + 2);
    if (options.add_special && adds_bos()) ids.push_back(data().bos);
    Scratch scratch;
    bool is_after_special = true;
    for (const Fragment& fragment : vocabulary_.split(text, options.parse_special)) {
      is_after_special = is_after_special || fragment.id != kNoToken;
      if (fragment.id != kNoToken) {
        ids.push_back(fragment.id);
        continue;
      }
      const bool has_prefix = is_after_special && *data().add_space_prefix;
      encode_text(text.substr(fragment.begin, fragment.end - fragment.begin), has_prefix, ids, scratch);
      is_after_special = false;
    }
    if (options.add_special && adds_eos()) ids.push_back(data().eos);
    return ids;
  }

  std::string decode(std::span<const TokenId> ids, bool render_special) const override {
    std::string text;
    for (size_t i = 0; i < ids.size(); ++i) {
      const std::string bytes = piece(ids[i], render_special);
      const bool is_prefixed = i == 0 && *data().add_space_prefix && bytes.starts_with(' ');
      text.append(bytes, is_prefixed ? 1 : 0);
    }
    return text;
  }

 private:
  struct Scratch {
    std::string escaped;
    std::vector<Symbol> symbols;
    MergeScratch merge;
  };

  /// Every way to join two symbols into this piece becomes a merge, and its letters become symbols.
  void add_piece(TokenId id, uint32_t rank) {
    const std::string_view piece = data().pieces[static_cast<size_t>(id)];
    if (find(piece) != id) return;  // the second of two equal pieces is never produced
    for (size_t i = 0; i < piece.size();) {
      const size_t n_bytes = static_cast<size_t>(decode_utf8(piece.substr(i)).n_bytes);
      add_letter(piece.substr(i, n_bytes));
      if (i > 0) {
        const std::string_view rest = piece.substr(i);
        const uint32_t left = symbol_of(piece.substr(0, i));
        const uint32_t right = left != kNoSymbol ? symbol_of(rest) : kNoSymbol;
        if (right != kNoSymbol) merges_.add(left, right, {rank, static_cast<uint32_t>(id)});
        if (rest.starts_with(kSpace)) joins_space_[static_cast<unsigned char>(piece[i - 1])] = true;
      }
      i += n_bytes;
    }
  }

  void add_letter(std::string_view letter) {
    if (letter_symbol(letter) != kNoSymbol) return;
    const TokenId id = find(letter);
    const uint32_t symbol = id != kNoToken ? static_cast<uint32_t>(id) : n_symbols_++;
    if (letter.size() == 1) {
      ascii_[static_cast<unsigned char>(letter[0])] = symbol;
    } else {
      letters_.emplace(letter_key(letter), symbol);
    }
  }

  uint32_t symbol_of(std::string_view text) const {
    if (const TokenId id = find(text); id != kNoToken) return static_cast<uint32_t>(id);
    return static_cast<size_t>(decode_utf8(text).n_bytes) == text.size() ? letter_symbol(text) : kNoSymbol;
  }
  uint32_t letter_symbol(std::string_view letter) const {
    if (letter.size() == 1) return ascii_[static_cast<unsigned char>(letter[0])];
    const auto at = letters_.find(letter_key(letter));
    return at == letters_.end() ? kNoSymbol : at->second;
  }
  static uint32_t letter_key(std::string_view letter) {
    uint32_t key = 0;
    for (const char c : letter) key = key << 8 | static_cast<unsigned char>(c);
    return key;
  }

  TokenId find_byte(unsigned char byte) const {
    const TokenId id = find(fmt::format("<0x{:02X}>", byte));
    if (id != kNoToken) return id;
    const char raw = static_cast<char>(byte);
    const TokenId raw_id = find(std::string_view(&raw, 1));
    return raw_id != kNoToken ? raw_id : data().unk;
  }

  /// Cuts the text where no piece can reach across (in most vocabularies, before every space) and merges between
  /// the cuts.
  void encode_text(std::string_view text, bool has_prefix, std::vector<TokenId>& ids, Scratch& scratch) const {
    std::string& escaped = scratch.escaped;
    escaped.clear();
    if (has_prefix) escaped += kSpace;
    for (const char c : text) {
      if (c == ' ') {
        escaped += kSpace;
      } else {
        escaped.push_back(c);
      }
    }
    std::string_view rest = escaped;
    while (!rest.empty()) {
      size_t cut = rest.find(kSpace, 1);
      while (cut != std::string_view::npos && joins_space_[static_cast<unsigned char>(rest[cut - 1])]) {
        cut = rest.find(kSpace, cut + 1);
      }
      encode_word(rest.substr(0, cut), ids, scratch);
      rest.remove_prefix(std::min(cut, rest.size()));
    }
  }

  void encode_word(std::string_view word, std::vector<TokenId>& ids, Scratch& scratch) const {
    scratch.symbols.clear();
    for (size_t i = 0; i < word.size();) {
      const size_t n_bytes = static_cast<size_t>(decode_utf8(word.substr(i)).n_bytes);
      scratch.symbols.push_back({letter_symbol(word.substr(i, n_bytes)), static_cast<uint32_t>(i)});
      i += n_bytes;
    }
    merge_symbols(merges_, scratch.symbols, scratch.merge);
    for (size_t s = 0; s < scratch.symbols.size(); ++s) {
      const Symbol& symbol = scratch.symbols[s];
      if (symbol.id < static_cast<uint32_t>(n_vocab())) {
        ids.push_back(static_cast<TokenId>(symbol.id));
        continue;
      }
      const size_t end = s + 1 < scratch.symbols.size() ? scratch.symbols[s + 1].begin : word.size();
      for (size_t i = symbol.begin; i < end; ++i) {
        const TokenId id = token_of_byte_[static_cast<unsigned char>(word[i])];
        if (id != kNoToken) ids.push_back(id);
      }
    }
  }

  std::string normal_piece_text(const std::string& text) const override {
    std::string bytes;
    for (size_t i = 0; i < text.size();) {
      const bool is_space = std::string_view(text).substr(i).starts_with(kSpace);
      bytes.push_back(is_space ? ' ' : text[i]);
      i += is_space ? kSpace.size() : 1;
    }
    return bytes;
  }

  MergeTable merges_;
  uint32_t n_symbols_ = 0;
  std::array<uint32_t, 256> ascii_{};
  std::unordered_map<uint32_t, uint32_t> letters_;  // bytes of a letter of several bytes → symbol
  std::array<bool, 256> joins_space_{};             // last bytes of letters that some piece has before a U+2581
  std::array<TokenId, 256> token_of_byte_{};
};

}  // namespace

Result<std::unique_ptr<Tokenizer>> make_sentencepiece_tokenizer(VocabularyData data) {
  const auto n_vocab = static_cast<TokenId>(data.pieces.size());
  // Ids that every SentencePiece model has unless the file says otherwise.
  if (data.bos == kNoToken && n_vocab > 1) data.bos = 1;
  if (data.eos == kNoToken && n_vocab > 2) data.eos = 2;
  if (data.unk == kNoToken) data.unk = 0;
  resolve_added_tokens(data, true);
  data.add_space_prefix = data.add_space_prefix.value_or(true);
  return std::unique_ptr<Tokenizer>(std::make_unique<SentencePieceTokenizer>(std::move(data)));
}

}  // namespace sh::tokenizer
