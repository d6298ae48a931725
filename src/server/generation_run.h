// SPDX-License-Identifier: MIT
// A request that runs one or several generations and is answered in a dialect, at once or as a stream.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "base/json.h"
#include "engine/scheduler.h"
#include "server/generation_request.h"
#include "server/http.h"
#include "server/server_state.h"

namespace sh::server {

/// One generation and what it has given so far.
struct Choice {
  int32_t index = 0;
  int32_t prompt_index = 0;
  engine::GenerationRequest request;
  std::string text;
  std::vector<int32_t> ids;
  std::vector<engine::TokenProbs> probs;
  std::vector<engine::CompactionEvent> compactions;
  engine::GenerationEvent last;  // the newest event, without the above
  bool is_done = false;
};

/// What a stream sends next of a choice.
struct Piece {
  std::string text;
  std::vector<int32_t> ids;
  std::vector<engine::TokenProbs> probs;
};

/// How one API words its answers. The members of a stream are called in order, on the connection's strand.
class Dialect {
 public:
  virtual ~Dialect() = default;
  virtual void stream_begin(const std::vector<Choice>&, std::vector<Json>&) {}
  virtual void stream_progress(const Choice& choice, std::vector<Json>& out) = 0;
  /// `piece.text` is not empty.
  virtual void stream_piece(const Choice& choice, const Piece& piece, std::vector<Json>& out) = 0;
  virtual void stream_choice_end(const Choice& choice, std::vector<Json>& out) = 0;
  virtual void stream_end(const std::vector<Choice>&, std::vector<Json>&) {}
  virtual bool ends_with_done_line() const = 0;
  virtual Json whole_answer(const std::vector<Choice>& choices) = 0;
};

/// Submits a generation for every prompt and choice and answers the exchange; a client that hangs up cancels them.
void run_generation(ServerState& state, std::shared_ptr<Exchange> exchange, const ParsedRequest& parsed,
                    const std::vector<std::vector<int32_t>>& prompts, std::unique_ptr<Dialect> dialect);

RequestDefaults request_defaults(const ServerState& state);

// Parts that dialects share.
Json timings_json(const engine::Timings& timings);
/// Logical tokens, physical rows and bytes of the conversation, and how often its positions were given anew:
/// {"logical", "physical", "bytes", "n_rebases"}.
Json kv_json(const engine::GenerationEvent& event);
/// Prompt tokens of each prompt once, completion tokens of all choices.
Json usage_json(const std::vector<Choice>& choices);
Json progress_json(const engine::GenerationEvent& event);
/// `completion_probabilities` or `logprobs.content`.
Json probs_json(const std::vector<engine::TokenProbs>& probs, int32_t n_top,
                const tokenizer::Tokenizer& tokenizer);
/// Adds `timings`, `kv` and, when one happened, `compaction`.
void add_measurements(Json& out, const Choice& choice);

/// "data: {...}\n\n" for each record.
std::string sse_text(const std::vector<Json>& records);

}  // namespace sh::server
