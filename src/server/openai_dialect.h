// SPDX-License-Identifier: MIT
#pragma once

#include <ctime>
#include <string>

#include "server/generation_run.h"

namespace sh::server {

/// What both OpenAI dialects share: the envelope of an answer, usage and the end of a stream.
class OpenAiDialect : public Dialect {
 public:
  OpenAiDialect(ServerState& state, const ParsedRequest& parsed);
  void stream_progress(const Choice& choice, std::vector<Json>& out) override;
  void stream_piece(const Choice& choice, const Piece& piece, std::vector<Json>& out) override;
  void stream_choice_end(const Choice& choice, std::vector<Json>& out) override;
  void stream_end(const std::vector<Choice>& choices, std::vector<Json>& out) override;
  bool ends_with_done_line() const override { return true; }
  Json whole_answer(const std::vector<Choice>& choices) override;

 protected:
  virtual const char* object_name(bool is_stream) const = 0;
  /// The choice's fields beside index, logprobs and finish_reason: of a piece of a stream, of an empty piece, of
  /// the whole.
  virtual Json piece_fields(const std::string& text) const = 0;
  virtual Json empty_fields() const = 0;
  virtual Json whole_fields(const Choice& choice) const = 0;

  Json envelope(bool is_stream, Json choices) const;
  static Json choice_json(int32_t index, const Json& fields, Json logprobs, Json finish_reason);

 private:
  Json logprobs_json(const std::vector<engine::TokenProbs>& probs) const;

  const ServerState& state_;
  const std::string id_;
  const int64_t created_;
  const bool includes_usage_, has_timings_per_token_;
  const int32_t n_top_probs_;
};

}  // namespace sh::server
