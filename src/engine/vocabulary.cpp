// SPDX-License-Identifier: MIT
#include "engine/vocabulary.h"

#include <fmt/format.h>

namespace sh::engine {

namespace {

Result<tokenizer::TokenId> find_token_id(const gguf::File& file, const char* key, int64_t n_vocab) {
  SH_ASSIGN(const std::optional<int64_t> id, file.find_int(key));
  if (!id) return tokenizer::kNoToken;
  if (*id < 0 || *id >= n_vocab)
    return Error{ErrorKind::corrupt, fmt::format("'{}': {} is {}, expected a token id below {}", file.path(), key, *id, n_vocab)};
  return static_cast<tokenizer::TokenId>(*id);
}

}  // namespace

Result<tokenizer::VocabularyData> read_vocabulary(const gguf::File& file) {
  tokenizer::VocabularyData data;
  SH_ASSIGN(data.model, file.require_string("tokenizer.ggml.model"));
  SH_ASSIGN(const auto name, file.find_string("general.name"));
  data.model_name = name.value_or("");
  SH_ASSIGN(const auto pre, file.find_string("tokenizer.ggml.pre"));
  data.pre = pre.value_or("");
  SH_ASSIGN(auto pieces, file.find_string_array("tokenizer.ggml.tokens"));
  if (!pieces || pieces->empty())
    return Error{ErrorKind::corrupt, fmt::format("'{}': tokenizer.ggml.tokens is missing or empty; the model has no vocabulary", file.path())};
  data.pieces = std::move(*pieces);
  const auto n_vocab = static_cast<int64_t>(data.pieces.size());

  SH_ASSIGN(const auto scores, file.find_float_array("tokenizer.ggml.scores"));
  if (scores) data.scores.assign(scores->begin(), scores->end());
  SH_ASSIGN(const auto kinds, file.find_int_array("tokenizer.ggml.token_type"));
  if (kinds)
    for (const int64_t kind : *kinds) {
      if (kind < 0 || kind > static_cast<int64_t>(tokenizer::TokenKind::byte))
        return Error{ErrorKind::corrupt, fmt::format("'{}': tokenizer.ggml.token_type holds {}, expected 0 to 6", file.path(), kind)};
      data.kinds.push_back(static_cast<tokenizer::TokenKind>(kind));
    }
  for (const auto& [field, n] : {std::pair{"scores", data.scores.size()}, std::pair{"token_type", data.kinds.size()}})
    if (n != 0 && n != data.pieces.size())
      return Error{ErrorKind::corrupt, fmt::format("'{}': tokenizer.ggml.{} has {} entries, expected one for each of the {} tokens",
                                                   file.path(), field, n, n_vocab)};
  SH_ASSIGN(auto merges, file.find_string_array("tokenizer.ggml.merges"));
  if (merges) data.merges = std::move(*merges);

  SH_ASSIGN(data.bos, find_token_id(file, "tokenizer.ggml.bos_token_id", n_vocab));
  SH_ASSIGN(data.eos, find_token_id(file, "tokenizer.ggml.eos_token_id", n_vocab));
  SH_ASSIGN(data.eot, find_token_id(file, "tokenizer.ggml.eot_token_id", n_vocab));
  SH_ASSIGN(data.unk, find_token_id(file, "tokenizer.ggml.unknown_token_id", n_vocab));
  SH_ASSIGN(data.pad, find_token_id(file, "tokenizer.ggml.padding_token_id", n_vocab));
  SH_ASSIGN(data.add_bos, file.find_bool("tokenizer.ggml.add_bos_token"));
  SH_ASSIGN(data.add_eos, file.find_bool("tokenizer.ggml.add_eos_token"));
  SH_ASSIGN(data.add_space_prefix, file.find_bool("tokenizer.ggml.add_space_prefix"));
  return data;
}

}  // namespace sh::engine
