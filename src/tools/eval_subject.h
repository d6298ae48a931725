// SPDX-License-Identifier: MIT
// A document read into a cache, and what the full cache says of each question or passage: what methods are
// compared to.
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "base/result.h"
#include "engine/engine.h"
#include "engine/reference_queries.h"
#include "tools/eval_answers.h"
#include "tools/eval_data.h"
#include "tools/eval_decode.h"

namespace sh::tools {

struct Reference {
  std::string kind, question, expected;
  std::string query;  // what a search for it is given
  double depth = -1;
  bool is_question = false;
  Expectation expectation;
  int64_t max_answer_tokens = 0;
  std::vector<int32_t> prompt;   // fed first
  std::vector<int32_t> forced;   // then these: the full cache's own answer (its beginning), or the passage
  bool is_forced_whole = false;  // `forced` is all of the full cache's answer
  std::vector<int32_t> gold;     // the expected answer as tokens; empty for a choice
  std::vector<int32_t> stub;     // of a choice: begins an answer, the letter comes next
  std::vector<int32_t> letters;  // of a choice: the token that tells the options apart, one an option
  Mat<float> full_logits;        // [forced, n_vocab]
  std::vector<double> none_nll;  // [forced] without the context
  Grade full;                    // of the full cache's answer

  /// Tags of thoughts may be control tokens: an answer that may hold some is written out with them.
  bool has_thoughts() const { return expectation.n_options > 0 || expectation.is_thinking; }
};

struct Subject {
  std::string context, id;
  std::string text;  // of a document
  std::vector<int32_t> ids;
  kv::SequenceCache cache, none;  // with the context and without
  double prefill_seconds = 0;
  std::vector<Reference> references;
};

/// Reads documents and asks the full cache.
class SubjectReader {
 public:
  /// Errors: unsupported (chat template).
  static Result<SubjectReader> create(engine::Engine& engine, int64_t n_choice_tokens);

  /// The document as a system message, or as a user turn when the template takes no system message.
  Result<std::vector<int32_t>> document_tokens(const std::string& text) const;
  /// A user's turn after a document, up to the assistant's.
  std::vector<int32_t> user_turn(const std::string& text) const;
  /// Tokens that an answer may have for its thoughts; 0 where the template opens none.
  int64_t n_thought_tokens() const { return close_thought_.empty() ? 0 : n_choice_tokens_; }
  const engine::Engine& engine() const { return *engine_; }
  engine::Executor& executor() const { return engine_->executor(); }
  /// `ids` are the document's tokens.
  Result<Subject> read(const std::string& context, const RecallDocument& document, std::vector<int32_t> ids) const;

 private:
  SubjectReader(engine::Engine& engine, int64_t n_choice_tokens)
      : engine_(&engine), n_choice_tokens_(n_choice_tokens) {}
  Reference question_reference(const RecallQuestion& question, const std::string& instruction_word) const;
  Result<void> ask_full(const Subject& subject, std::span<Reference> references) const;

  engine::Engine* engine_;
  int64_t n_choice_tokens_;
  engine::TurnTokens turn_;
  std::string close_thought_;  // of a template that opens a thought
  std::optional<kv::SequenceCache> none_;
};

/// A context and its true continuation: needs no template.
/// Needs:   two tokens of context, one of continuation.
Result<Subject> read_passage(engine::Engine& engine, const std::string& context, const std::string& id,
                             std::vector<int32_t> ids, std::vector<int32_t> continuation);

/// References in groups that the pool has room to ask at once; each goes to `ask`.
Result<void> in_waves(const kv::BlockPool& pool, std::span<Reference> references,
                      const std::function<Result<void>(std::span<Reference>)>& ask);
/// Their prompts, read by forks of a cache.
Result<Prompted> prompted_with(engine::Executor& executor, const kv::SequenceCache& cache,
                               std::span<const Reference> references);

/// Tokens of plain text.
std::vector<int32_t> encode_plain(const engine::Engine& engine, const std::string& text);
/// The bytes of an answer's tokens without its end, nothing tidied. Control tokens are written out only
/// `with_control` (they may delimit a thought).
std::string answer_text(const engine::Engine& engine, std::span<const int32_t> ids, bool with_control);

}  // namespace sh::tools
