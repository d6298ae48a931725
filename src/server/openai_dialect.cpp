// SPDX-License-Identifier: MIT
#include "server/openai_dialect.h"

#include <fmt/format.h>

#include "base/clock.h"
#include "base/rng.h"

namespace sh::server {
namespace {

const char* finish_reason(engine::StopReason reason) {
  const bool ran_out = reason == engine::StopReason::limit || reason == engine::StopReason::context_full;
  return ran_out ? "length" : "stop";
}

/// Clients treat ids as opaque; they only have to differ, also between servers.
std::string new_id(ServerState& state) {
  Rng rng(static_cast<uint64_t>(now_us()) ^ (static_cast<uint64_t>(state.started_unix_seconds) << 20),
          state.next_response_id.fetch_add(1));
  return fmt::format("chatcmpl-{:016x}{:016x}", rng.next_u64(), rng.next_u64());
}

}  // namespace

OpenAiDialect::OpenAiDialect(ServerState& state, const ParsedRequest& parsed)
    : state_(state),
      id_(new_id(state)),
      created_(std::time(nullptr)),
      includes_usage_(parsed.includes_usage),
      has_timings_per_token_(parsed.has_timings_per_token),
      n_top_probs_(parsed.n_top_probs) {}

Json OpenAiDialect::envelope(bool is_stream, Json choices) const {
  return Json{{"id", id_},
              {"object", object_name(is_stream)},
              {"created", created_},
              {"model", state_.engine->alias()},
              {"system_fingerprint", system_fingerprint()},
              {"choices", std::move(choices)}};
}

Json OpenAiDialect::choice_json(int32_t index, const Json& fields, Json logprobs, Json finish_reason) {
  Json choice = {{"index", index}};
  choice.update(fields);
  choice["logprobs"] = std::move(logprobs);
  choice["finish_reason"] = std::move(finish_reason);
  return choice;
}

Json OpenAiDialect::logprobs_json(const std::vector<engine::TokenProbs>& probs) const {
  if (n_top_probs_ < 0) return nullptr;
  return Json{{"content", probs_json(probs, n_top_probs_, state_.engine->tokenizer())}};
}

void OpenAiDialect::stream_progress(const Choice& choice, std::vector<Json>& out) {
  Json record = envelope(true, Json::array({choice_json(choice.index, empty_fields(), nullptr, nullptr)}));
  record["prompt_progress"] = progress_json(choice.last);
  out.push_back(std::move(record));
}

void OpenAiDialect::stream_piece(const Choice& choice, const Piece& piece, std::vector<Json>& out) {
  Json record = envelope(
      true,
      Json::array({choice_json(choice.index, piece_fields(piece.text), logprobs_json(piece.probs), nullptr)}));
  if (has_timings_per_token_) record["timings"] = timings_json(choice.last.timings);
  out.push_back(std::move(record));
}

void OpenAiDialect::stream_choice_end(const Choice& choice, std::vector<Json>& out) {
  Json record = envelope(
      true,
      Json::array({choice_json(choice.index, empty_fields(), nullptr, finish_reason(choice.last.stop_reason))}));
  add_measurements(record, choice);
  out.push_back(std::move(record));
}

void OpenAiDialect::stream_end(const std::vector<Choice>& choices, std::vector<Json>& out) {
  if (!includes_usage_) return;
  Json record = envelope(true, Json::array());
  record["usage"] = usage_json(choices);
  add_measurements(record, choices.back());
  out.push_back(std::move(record));
}

Json OpenAiDialect::whole_answer(const std::vector<Choice>& choices) {
  Json list = Json::array();
  for (const Choice& choice : choices)
    list.push_back(choice_json(choice.index, whole_fields(choice), logprobs_json(choice.probs),
                               finish_reason(choice.last.stop_reason)));
  Json out = envelope(false, std::move(list));
  out["usage"] = usage_json(choices);
  add_measurements(out, choices.back());
  return out;
}

}  // namespace sh::server
