// SPDX-License-Identifier: MIT
// POST /v1/completions
#include "server/errors.h"
#include "server/field_reader.h"
#include "server/handlers.h"
#include "server/openai_dialect.h"

namespace sh::server {
namespace {

class TextCompletionDialect : public OpenAiDialect {
 public:
  using OpenAiDialect::OpenAiDialect;

 protected:
  const char* object_name(bool) const override { return "text_completion"; }
  Json piece_fields(const std::string& text) const override { return Json{{"text", text}}; }
  Json empty_fields() const override { return Json{{"text", ""}}; }
  Json whole_fields(const Choice& choice) const override { return Json{{"text", choice.text}}; }
};

Result<void> start_completion(const Call& call) {
  SH_ASSIGN(const Json body, parse_body(call.exchange->request().body));
  const tokenizer::Tokenizer& tokenizer = call.state.engine->tokenizer();
  SH_ASSIGN(const ParsedRequest parsed, parse_generation_request(body, DialectName::openai_completion,
                                                                 request_defaults(call.state), tokenizer));
  SH_ASSIGN(const auto prompts, parse_prompts(body, tokenizer));
  run_generation(call.state, call.exchange, parsed, prompts,
                 std::make_unique<TextCompletionDialect>(call.state, parsed));
  return {};
}

}  // namespace

void post_openai_completion(Call call) {
  if (const Result<void> started = start_completion(call); !started.ok())
    call.exchange->respond(error_response(api_error(started.error())));
}

}  // namespace sh::server
