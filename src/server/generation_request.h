// SPDX-License-Identifier: MIT
// From the JSON of a completion request, in any dialect, to the engine's request.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "base/json.h"
#include "engine/scheduler.h"
#include "tokenizer/tokenizer.h"

namespace sh::server {

enum class DialectName { native, openai_completion, openai_chat };

/// What a body that says nothing gets, and what it may ask for.
struct RequestDefaults {
  sampling::SamplingParams sampling;
  int64_t n_predict = -1;
  bool ignore_eos = false;
  bool cache_prompt = true;
  int32_t n_slots = 1;
  std::span<const int32_t> end_tokens;  // banned by ignore_eos
};

/// A parsed body: the engine's request without its prompt, and how to answer.
struct ParsedRequest {
  engine::GenerationRequest generation;
  bool is_stream = false;
  bool includes_usage = false;
  bool has_timings_per_token = false;
  bool returns_progress = false;
  bool returns_tokens = false;
  int32_t n_choices = 1;     // for each prompt
  int32_t n_top_probs = -1;  // alternatives to list for each token; -1: no log-probabilities
  std::vector<std::string> response_fields;
  int32_t ping_seconds = -1;  // -1: the server's
};

/// Fields that are known but would change the result in a way that does not exist yet are refused, not ignored.
/// Errors: invalid_argument naming the field, expected and got; unsupported.
Result<ParsedRequest> parse_generation_request(const Json& body, DialectName dialect,
                                               const RequestDefaults& defaults,
                                               const tokenizer::Tokenizer& tokenizer);

/// The prompts of `prompt`: a string, ids, a mix of both, {"prompt_string"}, or a list of those.
/// Errors: invalid_argument, unsupported (multimodal data).
Result<std::vector<std::vector<int32_t>>> parse_prompts(const Json& body, const tokenizer::Tokenizer& tokenizer);

/// The sampling fields under the names that clients know: `generation_settings`,
/// `default_generation_settings.params`.
Json generation_settings(const engine::GenerationRequest& request);

}  // namespace sh::server
