// SPDX-License-Identifier: MIT
// Where reference queries come from: the text at its own positions, the text repeated after itself, or
// conversations that the model begins and answers itself (self-study).
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "base/result.h"
#include "engine/executor.h"
#include "engine/query_capture.h"

namespace sh::engine {

class ReplayReference;
class RowCoverage;

/// What stops and watches a long gathering.
struct GatherContext {
  const std::atomic<bool>* cancel = nullptr;
  std::function<void(double fraction)> on_progress;
  int64_t max_query_bytes = int64_t{512} << 20;  // of captured queries; more are thinned evenly. Twice that while
                                                 // they are handed over
  // Sees every query of every source, also those that the capture thins out. Its rows decide when self-study has
  // asked enough. Null: nothing is measured.
  // Tried: rows chosen by its scores instead of compaction::score_heads(). Many rows get all of some query's
  // attention, and which of them a small cache keeps is decided by how sharp that attention is, 1 - 1e-4 against
  // 1 - 1e-6. Here that drowns in the difference between two ways to a log-sum-exp: at 32x (8 documents of 1024
  // tokens) 30 of 41 answers were kept instead of 34.
  RowCoverage* coverage = nullptr;
  // > 0: repeat_prefill() keeps the logits of so many tokens while it feeds them, in `reference`, which spares a
  // comparison feeding them to the uncompacted cache again.
  int64_t n_compared = 0;
  std::optional<ReplayReference>* reference = nullptr;
};

/// Tokens that were fed after the conversation to learn queries from. Fed again they show what the model asks of a
/// changed cache, and what it predicts from it.
struct Replay {
  std::vector<int32_t> opening;  // follows the conversation; all parts share it
  struct Part {
    std::vector<int32_t> ids;  // follow the opening, from a fork of their own
    int64_t n_prompt = 0;      // of ids: before the answer, whose predictions are compared
  };
  std::vector<Part> parts;
};

/// Defaults are the cheapest that keep what scribe answers: its answers kept at 8x are 95 % with 48 conversations,
/// 99 % with 96 and no more with 192 (1024 tokens, unfitted). Where the text is longer and has more facts, a round
/// goes on changing more rows, and more are asked.
struct SelfStudyOptions {
  int32_t n_conversations = 384;     // at most, over all rounds
  // Of a round: decoded side by side, as far as memory and n_ubatch allow. Longer texts have longer rounds, see
  // study_round().
  int32_t round_conversations = 24;
  int32_t max_question_tokens = 48;
  int32_t max_answer_tokens = 32;
  // Openings with known questions in the first round: repeat a stretch, summarise, list, restructure, ask and
  // answer. For a model that follows instructions. Scribe was not trained for them: 48 conversations with them
  // kept 213 of 238 answers at 16x and 134 at 32x, without 222 and 189, in half the time; KL of prose was the
  // same.
  bool uses_prompts = false;
  int32_t max_prompt_answer_tokens = 96;
  // 1.2 to 2 kept as much or less on scribe, at up to twice the time: questions get longer, not more different.
  float temperature = 1.0f;
  uint64_t seed = 1;
  double time_limit_seconds = 0;  // 0: none; looked at between rounds
  // Rounds go on while one still changes more than this share of the rows that would be kept; needs
  // GatherContext::coverage. 0: all rounds. On scribe, answers kept at 8x unfitted, all with rounds of 24:
  // 0.1 ends after 84 to 104 conversations, 117 of 119 (512 tokens), 117 of 119 (1024), 125 of 125 (2048), 37
  // of 38 (4096), 31 of 37 (8192); 0.05 after 120 to 148, 118, 117, 125, 37 and 34; 0.025 at 8192 after 236,
  // 35. With the longer rounds of study_round() 0.05 ends after 272 conversations at 8192, 60 of 61.
  double coverage_tolerance = 0.05;
  int64_t coverage_rows = 0;  // rows that would be kept, over all heads; 0: an eighth of all
};
/// Conversations of a round over a cache of so many rows a head: round_conversations for every 4096 rows (to the
/// nearest), at least once, at most n_conversations. A fact needs about as many rows in a long text as in a
/// short one, so that a round of the same size changes a smaller share of a long text's rows and ends the study
/// too early. On 12 documents of 8192 tokens (scribe, unfitted, 8x and 16x alike) rounds of 24 keep 57 of 61
/// answers, with a mean KL of 0.07; 48 and 96 keep 60, with 0.014 and 0.013.
int32_t study_round(const SelfStudyOptions& options, int64_t n_rows);
struct StudyStats {
  int32_t n_conversations = 0, n_rounds = 0;
  int32_t n_repeated = 0;  // questions that had been asked before: not answered again
  int64_t n_tokens = 0;
  double seconds = 0;
  double coverage_seconds = 0;    // of these, in the coverage
  double last_round_change = -1;  // share of the kept rows that the last round changed; -1: not measured
  bool hit_time_limit = false;
  std::vector<std::string> questions;  // in order: the known ones, then what the model asked itself
};

/// The tokens that open a user turn after this conversation, and those that close it and open the assistant's,
/// from the chat template.
struct TurnTokens {
  std::vector<int32_t> close_turn;  // ends an assistant turn that is still open; not needed after an end of turn
  std::vector<int32_t> user_open;
  std::vector<int32_t> user_close;  // ends the user turn and opens the assistant's
};
Result<TurnTokens> turn_tokens(const Engine& engine);

/// Reads text of the conversation again at its own positions, from forks that are cut back: a share `fraction` of
/// positions [begin, end) in evenly spread pieces, or the newest tokens when begin is near the end.
/// Needs:   begin >= sequence.compacted_end().
/// Errors:  out_of_memory, cancelled.
Result<QuerySets> reread(Executor& executor, const kv::SequenceCache& sequence, std::span<const int32_t> ids,
                         kv::Pos begin, kv::Pos end, double fraction, const GatherContext& context,
                         StudyStats* stats);
/// Repeats a share `fraction` of the text after the conversation (teacher-forced, from forks), in evenly spread
/// pieces, and captures the queries.
/// Errors: out_of_memory, cancelled, unsupported (chat template).
Result<QuerySets> repeat_prefill(Executor& executor, const kv::SequenceCache& sequence,
                                 std::span<const int32_t> ids, double fraction, const GatherContext& context,
                                 Replay* replay, StudyStats* stats);
/// Opens user turns after the conversation, samples questions until the turn ends, answers them greedily; all
/// conversations of a round decode as one batch over the shared rows. Captures the queries of both. The same seed
/// gives the same questions and queries, whatever the number of threads, n_ubatch and the pool's free memory.
/// Errors: invalid_argument (options), out_of_memory, cancelled, unsupported (chat template; a model that ends
/// every
///         turn at once).
Result<QuerySets> self_study(Executor& executor, const kv::SequenceCache& sequence, std::span<const int32_t> ids,
                             const SelfStudyOptions& options, const GatherContext& context, Replay* replay,
                             StudyStats* stats);
/// Sets of several sources as one, head by head.
QuerySets merge(std::vector<QuerySets> sets);

}  // namespace sh::engine
