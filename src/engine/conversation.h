// SPDX-License-Identifier: MIT
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/result.h"
#include "engine/compact_sequence.h"
#include "engine/engine.h"

namespace sh::engine {

/// What an automatic compaction must leave alone, beside what the engine's options say.
struct AutomaticLimits {
  int64_t n_keep = 0;       // tokens at the start; the first prompt when negative
  int64_t turn_begin = -1;  // >= 0: where the newest turn begins, whose tokens then stay live and are the queries
                            // that the turns before are compacted for (delayed mode)
};

/// One conversation: its cache, its tokens, the queries that were captured while it was read, and the rule of its
/// automatic compaction. It stands alone or on a slot of the scheduler.
/// Threads: one at a time.
class Conversation {
 public:
  /// Tokens for one conversation in a forward that several share.
  struct Piece {
    Conversation* conversation;
    std::span<const int32_t> ids;
    bool wants_logits;  // of the last token
  };

  /// `captures_queries`: keep reference queries for a compaction; without them it reads the text once more.
  Conversation(Engine& engine, bool captures_queries);

  /// Runs pieces of different conversations through the model, in one forward.
  /// Shapes: logits [pieces that want them, n_vocab].
  /// Errors: those of Engine::forward(); nothing has changed then.
  static Result<void> append_all(Engine& engine, std::span<const Piece> pieces, MatView<float> logits);
  /// Runs the tokens through the model, in one forward.
  /// Shapes: logits [1, n_vocab] for those of the last token, or empty.
  /// Errors: those of Engine::forward(); nothing has changed then.
  Result<void> append(std::span<const int32_t> ids, MatView<float> logits);
  /// Forgets the tokens at and after n_tokens.
  /// Errors: unsupported when they lie among compacted rows.
  Result<void> truncate(int64_t n_tokens);
  void clear();
  Result<CompactionReport> compact(const CompactionRequest& request, const std::atomic<bool>* cancel = nullptr,
                                   const CompactionProgress& on_progress = {});

  /// Rows a head, mean over heads: what counts against the capacity.
  /// Cost: O(1).
  double n_physical() const { return physical_base_ + static_cast<double>(n_tokens() - logical_base_); }
  /// Rows that still fit before the capacity of one conversation is reached.
  int64_t rows_left() const;
  /// Whether automatic compaction is on and due: the cache is full, or it is filled to the threshold and has grown
  /// by a 16th of its capacity since the last attempt.
  bool wants_compaction() const;
  /// The next attempt is due at the threshold, whatever came of the last one: another request may protect less.
  void forget_last_attempt() { retry_at_rows_ = 0; }
  /// Whether the next compaction is to wait for a turn that asks for what came before it (EngineOptions::
  /// compact_delay); a full cache cannot wait.
  bool delays_compaction() const { return engine_.options().compact_delay && rows_left() > 0; }
  /// The error of a cache without a row left that automatic compaction could not help: why, and what to do.
  /// `n_keep` as in AutomaticLimits.
  Error full_error(const std::string& reason, int64_t n_keep) const;
  /// Why an answer ended with StopReason::context_full.
  std::string end_reason(int64_t n_keep) const;
  /// What the engine's options say of a compaction: method, ratio or target, limit, choices, and what stays:
  /// pinned spans and as many tokens at the start as `n_keep` or compact_keep says, where -1 means the first
  /// prompt. Errors: invalid_argument (options).
  Result<CompactionRequest> requested_by_flags(int64_t n_keep) const;
  /// What automatic compaction asks for now: the engine's options, and as much as brings the whole cache, rows
  /// that stay included, down to threshold * capacity / ratio rows a head. Where rows that stay leave too little
  /// for that, the others are thinned to half of what the ratio says, not to nothing. Errors: invalid_argument
  /// when less than a 64th of the capacity, or than a block of each head, could be gained.
  Result<CompactionRequest> automatic_request(const AutomaticLimits& limits) const;
  /// Automatic compaction between two forwards. Neither a failure nor an attempt that freed little is repeated for
  /// every token; a cancelled attempt does not count.
  Result<CompactionReport> compact_automatically(const AutomaticLimits& limits, const std::atomic<bool>* cancel,
                                                 const CompactionProgress& on_progress = {});
  /// Whether to tell of a failure: that rows are held is told once, until a compaction succeeds.
  bool is_news(const Error& failure);
  /// An attempt was made: the next one is due when the conversation has grown.
  void note_attempt();
  /// The first prompt of the conversation has so many tokens (EngineOptions::compact_keep = -1).
  void set_first_prompt(int64_t n_tokens) { n_first_prompt_ = n_tokens; }

  /// The conversation as it is, for a compaction on another thread while this one goes on.
  struct Snapshot {
    kv::SequenceCache cache;
    std::vector<int32_t> tokens;
    std::unique_ptr<QueryCapture> captured;  // null when `request` does not ask for such queries, or none are
  };
  Snapshot snapshot(const CompactionRequest& request);
  /// Takes over the compacted rows of a snapshot, which is empty then; rows from position `boundary` on stay as they
  /// are.
  /// Needs: no row before `boundary` has changed since the snapshot.
  /// Errors: those of kv::SequenceCache::splice(); nothing has changed then.
  Result<void> adopt(kv::SequenceCache& compacted, int64_t boundary);

  int64_t n_tokens() const { return static_cast<int64_t>(tokens_.size()); }
  /// By how much positions are less than the count of tokens before them, behind compacted rows: 0 until positions
  /// were given anew (EngineOptions::compact_rebase).
  int64_t n_rebased() const { return cache_.identity().n_squeezed; }
  /// Tokens before it cannot be cut off: their rows no longer stand for single tokens. 0 when never compacted.
  int64_t n_compacted_tokens() const {
    const int64_t end = cache_.compacted_end().value;
    return end == 0 ? 0 : end + n_rebased();
  }
  const std::vector<int32_t>& tokens() const { return tokens_; }
  const kv::SequenceCache& cache() const { return cache_; }
  int64_t n_compactions() const { return cache_.n_compactions(); }

 private:
  class CaptureTap;
  int64_t n_kept(int64_t n_keep) const;  // tokens at the start, of a number that may be negative: the first prompt
  /// After the cache's rows changed other than by appending.
  void recount();
  /// The one place behind every compaction, in the foreground or adopted: rows are new, positions are old.
  void settle_after_compaction();
  /// Squeezes the positions of compacted rows when they near the end of the trained range, if the engine's options
  /// want that.
  void give_positions_anew();

  Engine& engine_;
  kv::SequenceCache cache_;
  std::vector<int32_t> tokens_;  // what the cache holds, logically
  std::unique_ptr<QueryCapture> capture_;
  // n_physical() when the rows were last counted, and the tokens then: appending adds one row a token.
  double physical_base_ = 0;
  int64_t logical_base_ = 0;
  int64_t n_first_prompt_ = 0;
  bool has_told_of_held_rows_ = false;
  double retry_at_rows_ = 0;  // below it no automatic compaction is tried again unless the cache is full
};

/// What to say at the start when the flags hold so many tokens that an automatic compaction will hardly ever gain
/// enough; "" otherwise. `n_keep`: --keep.
std::string held_rows_text(const Engine& engine, int64_t n_keep);

/// How a template joins turns. Found by rendering a conversation of known messages, so what the model answered
/// never has to be rendered and read again: templates may change it (drop its reasoning, strip white space), and
/// the cache holds it as it was.
class TurnFormat {
 public:
  explicit TurnFormat(const Engine& engine) : engine_(engine) {}
  /// The text that opens a conversation: system message (unless empty), user message, start of the answer.
  /// Errors: those of the template.
  Result<std::string> first_turn(const std::string& system, const std::string& user) const;
  /// What follows an answer: its end, the user's next message and the start of the next answer.
  /// Errors: unsupported when the template does not show answers.
  Result<std::string> next_turn(const std::string& user) const;

 private:
  const Engine& engine_;
};

/// Token ids of a text that opens a sequence: special tokens parsed, BOS in front exactly once if the vocabulary
/// wants it.
std::vector<int32_t> encode_opening(const Engine& engine, std::string_view text);
/// Token ids of a text in the midst of a sequence, special tokens parsed.
std::vector<int32_t> encode_following(const Engine& engine, std::string_view text);

}  // namespace sh::engine
