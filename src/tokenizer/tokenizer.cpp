// SPDX-License-Identifier: MIT
#include "tokenizer/tokenizer.h"

#include <fmt/format.h>

#include "tokenizer/byte_level.h"
#include "tokenizer/sentencepiece.h"
#include "tokenizer/vocabulary.h"

namespace sh::tokenizer {

namespace {
struct Model {
  std::string_view name;
  Result<std::unique_ptr<Tokenizer>> (*make)(VocabularyData data);
};
constexpr Model kModels[] = {{"gpt2", make_byte_level_tokenizer}, {"llama", make_sentencepiece_tokenizer}};
}  // namespace

Result<std::unique_ptr<Tokenizer>> Tokenizer::create(VocabularyData data) {
  SH_RETURN_IF_ERROR(Vocabulary::check(data));
  std::string known;
  for (const Model& model : kModels) {
    if (model.name == data.model) return model.make(std::move(data));
    known += fmt::format("{}{}", known.empty() ? "" : ", ", model.name);
  }
  return Error{
      ErrorKind::unsupported,
      fmt::format("tokenizer.ggml.model is \"{}\", which is not supported; known: {}", data.model, known)};
}

}  // namespace sh::tokenizer
