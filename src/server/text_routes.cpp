// SPDX-License-Identifier: MIT
// Text to tokens and back, and the chat template alone.
#include <fmt/format.h>

#include "base/utf8.h"
#include "server/chat_prompt.h"
#include "server/errors.h"
#include "server/field_reader.h"
#include "server/handlers.h"
#include "server/server_state.h"

namespace sh::server {
namespace {

/// A piece as text, or as bytes when it is not valid UTF-8 on its own.
Json piece_json(const std::string& piece) {
  if (is_valid_utf8(piece)) return piece;
  Json bytes = Json::array();
  for (const char byte : piece) bytes.push_back(static_cast<unsigned char>(byte));
  return bytes;
}

Result<Json> tokenize(const ServerState& state, const std::string& text) {
  SH_ASSIGN(const Json body, parse_body(text));
  const tokenizer::Tokenizer& tokenizer = state.engine->tokenizer();
  FieldReader fields(body);
  std::string content;
  bool adds_special = false, parses_special = true, has_pieces = false;
  fields.read("content", content);
  fields.read("add_special", adds_special);
  fields.read("parse_special", parses_special);
  fields.read("with_pieces", has_pieces);
  SH_RETURN_IF_ERROR(fields.result());
  Json tokens = Json::array();
  for (const int32_t id :
       tokenizer.encode(content, {.add_special = adds_special, .parse_special = parses_special}))
    tokens.push_back(has_pieces ? Json{{"id", id}, {"piece", piece_json(tokenizer.piece(id, true))}} : Json(id));
  return Json{{"tokens", std::move(tokens)}};
}

Result<Json> detokenize(const ServerState& state, const std::string& text) {
  SH_ASSIGN(const Json body, parse_body(text));
  const tokenizer::Tokenizer& tokenizer = state.engine->tokenizer();
  const auto tokens = body.find("tokens");
  std::vector<int32_t> ids;
  if (tokens != body.end() && !tokens->is_null()) {
    if (!tokens->is_array())
      return Error{ErrorKind::invalid_argument,
                   fmt::format("tokens: expected a list of token ids, got {}", tokens->type_name())};
    for (const Json& token : *tokens) {
      if (!token.is_number_unsigned() || token.get<uint64_t>() >= static_cast<uint64_t>(tokenizer.n_vocab()))
        return Error{ErrorKind::invalid_argument,
                     fmt::format("tokens: expected ids from 0 to {}, got {}", tokenizer.n_vocab() - 1,
                                 dump_json(token).substr(0, 60))};
      ids.push_back(token.get<int32_t>());
    }
  }
  return Json{{"content", tokenizer.decode(ids, true)}};
}

Result<Json> apply_template(const ServerState& state, const std::string& text) {
  SH_ASSIGN(const Json body, parse_body(text));
  const tokenizer::Tokenizer& tokenizer = state.engine->tokenizer();
  SH_ASSIGN(std::string prompt, render_chat(body, state.engine->chat_template(), tokenizer));
  return Json{{"prompt", without_added_bos(std::move(prompt), tokenizer)}};
}

void answer(const Call& call, Result<Json> (*make)(const ServerState&, const std::string&)) {
  const Result<Json> json = make(call.state, call.exchange->request().body);
  call.exchange->respond(json.ok() ? json_response(*json) : error_response(api_error(json.error())));
}

}  // namespace

void post_tokenize(Call call) {
  answer(call, tokenize);
}
void post_detokenize(Call call) {
  answer(call, detokenize);
}
void post_apply_template(Call call) {
  answer(call, apply_template);
}

}  // namespace sh::server
