// SPDX-License-Identifier: MIT
// POST /v1/chat/completions
#include "server/chat_prompt.h"
#include "server/errors.h"
#include "server/field_reader.h"
#include "server/handlers.h"
#include "server/openai_dialect.h"

namespace sh::server {
namespace {

class ChatDialect : public OpenAiDialect {
 public:
  using OpenAiDialect::OpenAiDialect;

  void stream_begin(const std::vector<Choice>& choices, std::vector<Json>& out) override {
    for (const Choice& choice : choices) {
      const Json delta = {{"delta", {{"role", "assistant"}, {"content", nullptr}}}};
      out.push_back(envelope(true, Json::array({choice_json(choice.index, delta, nullptr, nullptr)})));
    }
  }

 protected:
  const char* object_name(bool is_stream) const override {
    return is_stream ? "chat.completion.chunk" : "chat.completion";
  }
  Json piece_fields(const std::string& text) const override { return Json{{"delta", {{"content", text}}}}; }
  Json empty_fields() const override { return Json{{"delta", Json::object()}}; }
  Json whole_fields(const Choice& choice) const override {
    return Json{{"message", {{"role", "assistant"}, {"content", choice.text}}}};
  }
};

Result<void> start_chat(const Call& call) {
  SH_ASSIGN(const Json body, parse_body(call.exchange->request().body));
  const engine::Engine& engine = *call.state.engine;
  SH_ASSIGN(
      const ParsedRequest parsed,
      parse_generation_request(body, DialectName::openai_chat, request_defaults(call.state), engine.tokenizer()));
  SH_ASSIGN(const std::string prompt, render_chat(body, engine.chat_template(), engine.tokenizer()));
  run_generation(call.state, call.exchange, parsed, {encode_chat(prompt, engine.tokenizer())},
                 std::make_unique<ChatDialect>(call.state, parsed));
  return {};
}

}  // namespace

void post_openai_chat(Call call) {
  if (const Result<void> started = start_chat(call); !started.ok())
    call.exchange->respond(error_response(api_error(started.error())));
}

}  // namespace sh::server
