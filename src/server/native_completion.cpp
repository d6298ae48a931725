// SPDX-License-Identifier: MIT
// POST /completion: llama.cpp's own dialect.
#include <algorithm>

#include "server/errors.h"
#include "server/field_reader.h"
#include "server/generation_run.h"
#include "server/handlers.h"

namespace sh::server {
namespace {

using engine::StopReason;

const char* stop_type(StopReason reason) {
  switch (reason) {
    case StopReason::eos:
      return "eos";
    case StopReason::word:
      return "word";
    case StopReason::limit:
    case StopReason::context_full:
      return "limit";
    case StopReason::none:
    case StopReason::cancelled:
    case StopReason::failed:
      return "none";
  }
  return "none";
}

/// Only the fields that were asked for; "a/b" lifts b out of a.
Json selected(const Json& full, const std::vector<std::string>& wanted) {
  if (wanted.empty()) return full;
  Json out = Json::object();
  for (const std::string& path : wanted) {
    const Json* at = &full;
    std::string_view rest = path;
    std::string name;
    while (at != nullptr && !rest.empty()) {
      name = std::string(rest.substr(0, rest.find('/')));
      rest.remove_prefix(std::min(name.size() + 1, rest.size()));
      const auto found = at->is_object() ? at->find(name) : at->end();
      at = at->is_object() && found != at->end() ? &*found : nullptr;
    }
    if (at != nullptr && !name.empty()) out[name] = *at;
  }
  return out;
}

class NativeDialect : public Dialect {
 public:
  NativeDialect(const ServerState& state, const ParsedRequest& parsed, bool is_list)
      : state_(state),
        returns_tokens_(parsed.returns_tokens),
        has_timings_per_token_(parsed.has_timings_per_token),
        is_list_(is_list),
        n_top_probs_(parsed.n_top_probs),
        response_fields_(parsed.response_fields) {}

  void stream_progress(const Choice& choice, std::vector<Json>& out) override {
    Json record = part(choice, "", {});
    record["prompt_progress"] = progress_json(choice.last);
    out.push_back(std::move(record));
  }

  void stream_piece(const Choice& choice, const Piece& piece, std::vector<Json>& out) override {
    Json record = part(choice, piece.text, piece.ids);
    if (n_top_probs_ >= 0)
      record["completion_probabilities"] = probs_json(piece.probs, n_top_probs_, state_.engine->tokenizer());
    if (has_timings_per_token_) record["timings"] = timings_json(choice.last.timings);
    out.push_back(std::move(record));
  }

  void stream_choice_end(const Choice& choice, std::vector<Json>& out) override {
    out.push_back(full(choice, true));
  }
  bool ends_with_done_line() const override { return false; }

  Json whole_answer(const std::vector<Choice>& choices) override {
    if (!is_list_ && choices.size() == 1) return full(choices.front(), false);
    Json list = Json::array();
    for (const Choice& choice : choices) list.push_back(full(choice, false));
    return list;
  }

 private:
  Json part(const Choice& choice, const std::string& text, const std::vector<int32_t>& ids) const {
    return Json{{"index", choice.index},
                {"content", text},
                {"tokens", ids},
                {"stop", false},
                {"id_slot", choice.last.id_slot},
                {"tokens_predicted", choice.last.timings.predicted_n},
                {"tokens_evaluated", choice.request.prompt.size()}};
  }

  Json full(const Choice& choice, bool is_stream_end) const {
    const engine::GenerationEvent& last = choice.last;
    const bool has_tokens = returns_tokens_ && !is_stream_end;
    Json out = {{"index", choice.index},
                {"content", is_stream_end ? "" : choice.text},
                {"tokens", has_tokens ? Json(choice.ids) : Json::array()},
                {"id_slot", last.id_slot},
                {"stop", true},
                {"model", state_.engine->alias()},
                {"tokens_predicted", last.timings.predicted_n},
                {"tokens_evaluated", choice.request.prompt.size()},
                {"generation_settings", generation_settings(choice.request)},
                {"prompt", state_.engine->tokenizer().decode(choice.request.prompt, true)},
                {"has_new_line", choice.text.find('\n') != std::string::npos},
                {"truncated", last.is_truncated},
                {"stop_type", stop_type(last.stop_reason)},
                {"stopping_word", last.stopping_word},
                {"tokens_cached", last.n_logical}};
    if (n_top_probs_ >= 0 && !is_stream_end)
      out["completion_probabilities"] = probs_json(choice.probs, n_top_probs_, state_.engine->tokenizer());
    add_measurements(out, choice);
    return selected(out, response_fields_);
  }

  const ServerState& state_;
  const bool returns_tokens_, has_timings_per_token_, is_list_;
  const int32_t n_top_probs_;
  const std::vector<std::string> response_fields_;
};

Result<void> start_completion(const Call& call) {
  SH_ASSIGN(const Json body, parse_body(call.exchange->request().body));
  const tokenizer::Tokenizer& tokenizer = call.state.engine->tokenizer();
  SH_ASSIGN(const ParsedRequest parsed,
            parse_generation_request(body, DialectName::native, request_defaults(call.state), tokenizer));
  SH_ASSIGN(const auto prompts, parse_prompts(body, tokenizer));
  const bool is_list = prompts.size() > 1;
  run_generation(call.state, call.exchange, parsed, prompts,
                 std::make_unique<NativeDialect>(call.state, parsed, is_list));
  return {};
}

}  // namespace

void post_native_completion(Call call) {
  if (const Result<void> started = start_completion(call); !started.ok())
    call.exchange->respond(error_response(api_error(started.error())));
}

}  // namespace sh::server
