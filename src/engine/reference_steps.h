// SPDX-License-Identifier: MIT
// Inside of the room: what the sources of reference queries share.
#pragma once

#include <atomic>
#include <functional>
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

/// Tokens that are known beforehand and fed to a fork of their own.
struct Stretch {
  std::span<const int32_t> ids;
  int64_t first_logit = 0, end_logit = 0;  // of these of its tokens the logits are wanted
};
struct FeedOptions {
  QueryCapture* capture = nullptr;  // sees the queries of all stretches, as does the coverage
  RowCoverage* coverage = nullptr;
  const std::atomic<bool>* cancel = nullptr;
  std::function<void(double fraction)> on_progress;
  // Wanted logits, counted over all stretches in their order. `room` gives a place for those of one forward (it
  // may be the same every time), `use` is told that they are there. Both may be empty when none are wanted.
  std::function<MatView<float>(int64_t first, int64_t n)> room;
  std::function<void(int64_t first, MatView<const float> logits)> use;
  int64_t max_logits = 0;  // of one forward; 0: no bound
};
/// Feeds every stretch to the fork that `fork_of(i)` makes. Forwards are as full as n_ubatch, max_logits and the
/// pool's free memory allow: they hold tokens of several stretches, and a long stretch goes over several of them.
/// What a query is does not depend on how the stretches were cut.
/// Needs:  no stretch is empty.
/// Errors: out_of_memory (no room for one stretch alone), cancelled, those of fork_of().
Result<void> feed_stretches(Executor& executor, std::span<const Stretch> stretches,
                            const std::function<Result<kv::SequenceCache>(size_t i)>& fork_of,
                            const FeedOptions& options);
/// The same behind an opening that all stretches share, from forks of `sequence`; its queries are not shown.
/// Returns the tokens fed.
Result<int64_t> feed_behind(Executor& executor, const kv::SequenceCache& sequence,
                            std::span<const int32_t> opening, std::span<const Stretch> stretches,
                            const FeedOptions& options);

}  // namespace sh::engine
