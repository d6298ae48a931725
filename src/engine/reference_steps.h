// SPDX-License-Identifier: MIT
// Inside of the room: what the sources of reference queries share.
#pragma once

#include <atomic>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "engine/engine.h"
#include "engine/reference_queries.h"
#include "engine/row_coverage.h"

namespace sh::engine {

/// Tokens of a text in the midst of a sequence, special tokens parsed.
std::vector<int32_t> encode_text(const Engine& engine, const std::string& text);
/// Tokens that lead from the end of the conversation into an open user turn.
std::vector<int32_t> opening_tokens(const Engine& engine, const TurnTokens& turn, std::span<const int32_t> ids);

Error cancelled_error();

/// Tokens that lead from the end of the conversation to an answer that repeats its text.
/// Errors: unsupported (chat template).
Result<std::vector<int32_t>> repeat_opening(const Engine& engine, std::span<const int32_t> ids);

/// A piece of the text [begin, end) to be repeated starts so many tokens early, because the first tokens of a piece
/// cannot know where in the text they are (as KVzip does, arXiv 2505.23416).
inline constexpr int64_t kRepeatLeadIn = 8;
Replay::Part repeat_part(std::span<const int32_t> ids, int64_t begin, int64_t end);
/// `n_pieces` of at most `length` tokens in [begin, end), each in the middle of its stretch of the text.
std::vector<std::pair<int64_t, int64_t>> spread_pieces(int64_t begin, int64_t end, int64_t n_pieces,
                                                       int64_t length);
/// Where only a share of the text is read or repeated, that is done in pieces of this many tokens.
inline constexpr int64_t kSamplePiece = 32;

/// Tokens of one sequence in a step that several share.
struct StepItem {
  kv::SequenceCache* sequence;
  std::span<const int32_t> ids;
  int64_t label = 0;  // of the first token in the capture, one more for each that follows; 0 everywhere: no labels
};
/// Runs the items as one batch, every token's queries captured and folded into `coverage` (may be null); logits of
/// the last token of each item.
/// Errors: those of Executor::forward().
Result<Mat<float>> run_step(Executor& executor, std::span<const StepItem> items, QueryCapture& capture,
                            RowCoverage* coverage);

}  // namespace sh::engine
