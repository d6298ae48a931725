// SPDX-License-Identifier: MIT
#include "tokenizer/vocabulary.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <charconv>

#include "base/log.h"

namespace sh::tokenizer {

namespace {

// Pieces that end a turn or a text wherever they appear, in order of preference for the end-of-turn id.
constexpr std::string_view kEndOfTurnPieces[] = {"<|eot_id|>",
                                                 "<|im_end|>",
                                                 "<|end|>",
                                                 "<end_of_turn>",
                                                 "<|endoftext|>",
                                                 "<|end_of_text|>",
                                                 "<EOT>",
                                                 "_<EOT>",
                                                 "[EOT]",
                                                 "<\xEF\xBD\x9C"
                                                 "end\xE2\x96\x81of\xE2\x96\x81sentence\xEF\xBD\x9C>",
                                                 "<end_of_utterance>"};
// Pieces that end the generation but do not mark a turn.
constexpr std::string_view kEndPieces[] = {"<|return|>", "<|call|>",         "<|flush|>", "<|calls|>",
                                           "</s>",       "<|eom_id|>",       "[EOS]",     "<eos>",
                                           "<turn|>",    "<|tool_response>", "[e~["};
// Fill-in-the-middle pieces. Of each of the first three groups the first piece found ends the generation too.
using Group = std::array<std::string_view, 8>;  // "" behind the last
constexpr Group kFimEndGroups[] = {
    Group{"<|fim_pad|>", "<fim-pad>", "<fim_pad>", "<PAD>", "[PAD]"},
    Group{"<|fim_repo|>", "<|repo_name|>", "<fim-repo>", "<REPO>", "<reponame>"},
    Group{"<|file_sep|>"},
};
constexpr Group kFimGroups[] = {
    Group{"<|fim_prefix|>", "<fim-prefix>", "<fim_prefix>",
          "<\xEF\xBD\x9C"
          "fim\xE2\x96\x81"
          "begin\xEF\xBD\x9C>",
          "<PRE>", "\xE2\x96\x81<PRE>", "<|code_prefix|>", "<|prefix|>"},
    Group{"<|fim_suffix|>", "<fim-suffix>", "<fim_suffix>",
          "<\xEF\xBD\x9C"
          "fim\xE2\x96\x81hole\xEF\xBD\x9C>",
          "<SUF>", "\xE2\x96\x81<SUF>", "<|code_suffix|>", "<|suffix|>"},
    Group{"<|fim_middle|>", "<fim-middle>", "<fim_middle>",
          "<\xEF\xBD\x9C"
          "fim\xE2\x96\x81"
          "end\xEF\xBD\x9C>",
          "<MID>", "\xE2\x96\x81<MID>", "<|code_middle|>", "<|middle|>"},
};
// Marks of the gpt-oss message format: part of the answer that a parser reads, so they are always rendered.
constexpr std::string_view kAlwaysRendered[] = {"<|channel|>", "<|message|>", "<|start|>", "<|constrain|>"};

bool is_phi3(std::string name) {
  std::transform(name.begin(), name.end(), name.begin(),
                 [](char c) { return c >= 'A' && c <= 'Z' ? static_cast<char>(c + 32) : c; });
  return name.find("phi-3") != std::string::npos || name.find("phi3") != std::string::npos;
}

}  // namespace

Result<void> Vocabulary::check(VocabularyData& data) {
  const size_t n_vocab = data.pieces.size();
  if (n_vocab == 0) {
    return Error{ErrorKind::corrupt,
                 "tokenizer.ggml.tokens is empty: the file has no vocabulary; convert the model again"};
  }
  const auto wrong_size = [&](const char* key, size_t n) {
    return Error{ErrorKind::corrupt,
                 fmt::format("{} has {} entries, but tokenizer.ggml.tokens has {}; convert the model again", key,
                             n, n_vocab)};
  };
  if (!data.scores.empty() && data.scores.size() != n_vocab)
    return wrong_size("tokenizer.ggml.scores", data.scores.size());
  if (!data.kinds.empty() && data.kinds.size() != n_vocab)
    return wrong_size("tokenizer.ggml.token_type", data.kinds.size());
  if (data.kinds.empty()) data.kinds.assign(n_vocab, TokenKind::normal);
  const std::pair<const char*, TokenId*> ids[] = {
      {"bos", &data.bos}, {"eos", &data.eos}, {"eot", &data.eot}, {"unknown", &data.unk}, {"padding", &data.pad}};
  for (const auto& [name, id] : ids) {
    if (*id == kNoToken || (*id >= 0 && static_cast<size_t>(*id) < n_vocab)) continue;
    log_warning("tokenizer.ggml.{}_token_id is {}, but the vocabulary has {} tokens: ignored", name, *id, n_vocab);
    *id = kNoToken;
  }
  return {};
}

Vocabulary::Vocabulary(VocabularyData data) : data_(std::move(data)), is_end_of_generation_(data_.pieces.size()) {
  ids_.reserve(data_.pieces.size());
  for (TokenId id = 0; id < n_vocab(); ++id) ids_.emplace(data_.pieces[static_cast<size_t>(id)], id);
  resolve_end_of_generation();
  resolve_special_tokens();
}

TokenId Vocabulary::find(std::string_view piece) const {
  const auto at = ids_.find(piece);
  return at == ids_.end() ? kNoToken : at->second;
}

bool Vocabulary::is_control(TokenId id) const {
  return has(id) && kind(id) == TokenKind::control;
}

bool Vocabulary::is_end_of_generation(TokenId id) const {
  return has(id) && is_end_of_generation_[static_cast<size_t>(id)];
}

/// Many converters leave out the end-of-turn id or mark such tokens as plain text, so they are recognised by how
/// they are written. Source:  the pieces that llama.cpp treats so.
void Vocabulary::resolve_end_of_generation() {
  const auto set_kind = [&](TokenId id, TokenKind kind) { data_.kinds[static_cast<size_t>(id)] = kind; };
  const auto set_end = [&](TokenId id, bool is_end) { is_end_of_generation_[static_cast<size_t>(id)] = is_end; };
  const auto first_of = [&](const Group& group) {
    for (std::string_view piece : group) {
      if (const TokenId id = find(piece); id != kNoToken) {
        set_kind(id, TokenKind::control);
        return id;
      }
    }
    return kNoToken;
  };
  for (const Group& group : kFimGroups) first_of(group);
  for (const Group& group : kFimEndGroups) {
    if (const TokenId id = first_of(group); id != kNoToken) set_end(id, true);
  }
  const auto mark_end = [&](std::string_view piece) {
    const TokenId id = find(piece);
    if (id == kNoToken) return;
    set_kind(id, TokenKind::control);
    set_end(id, true);
  };
  for (std::string_view piece : kEndOfTurnPieces) {
    mark_end(piece);
    if (data_.eot == kNoToken) data_.eot = find(piece);
  }
  for (std::string_view piece : kEndPieces) mark_end(piece);
  for (std::string_view piece : kAlwaysRendered) {
    if (const TokenId id = find(piece); id != kNoToken) set_kind(id, TokenKind::user_defined);
  }
  for (const TokenId id : {data_.eos, data_.eot}) {
    if (id != kNoToken) set_end(id, true);
  }
  // With these pieces, "<|end|>" closes one message of several, and "</s>" is a leftover of the base vocabulary.
  const bool has_call = find("<|call|>") != kNoToken || find("<|calls|>") != kNoToken;
  const bool has_return = find("<|return|>") != kNoToken || find("<|flush|>") != kNoToken;
  if (const TokenId id = find("<|end|>"); id != kNoToken && has_call && has_return) {
    set_end(id, false);
    set_kind(id, TokenKind::user_defined);
  }
  if (const TokenId id = find("</s>"); id != kNoToken && find("<|tool_response>") != kNoToken) {
    set_end(id, false);
    set_kind(id, TokenKind::normal);
  }
}

void Vocabulary::resolve_special_tokens() {
  const bool eats_space = is_phi3(data_.model_name);
  for (TokenId id = 0; id < n_vocab(); ++id) {
    const std::string_view piece = data_.pieces[static_cast<size_t>(id)];
    const bool is_user_defined = kind(id) == TokenKind::user_defined;
    if (!is_user_defined && kind(id) != TokenKind::control && kind(id) != TokenKind::unknown) continue;
    const bool eats = eats_space && piece != "<unk>" && piece != "<s>" && piece != "<|endoftext|>";
    all_special_.add(piece, id, eats);
    if (is_user_defined) user_defined_.add(piece, id, eats);
  }
}

std::vector<Fragment> Vocabulary::split(std::string_view text, bool parse_special) const {
  return (parse_special ? all_special_ : user_defined_).split(text);
}

std::string byte_piece_text(std::string_view piece) {
  unsigned value = 0;
  if (piece.size() != 6 || !piece.starts_with("<0x") || piece[5] != '>') return "";
  const auto [end, error] = std::from_chars(piece.data() + 3, piece.data() + 5, value, 16);
  if (error != std::errc() || end != piece.data() + 5) return "";
  return std::string(1, static_cast<char>(value));
}

}  // namespace sh::tokenizer
