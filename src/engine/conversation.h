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

/// One conversation on its own: its cache, its tokens, and the queries that were captured while it was read.
/// Threads: one at a time.
class Conversation {
 public:
  /// `captures_queries`: keep reference queries for a compaction; without them it reads the text once more.
  Conversation(Engine& engine, bool captures_queries);

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
  /// Cost: O(heads).
  double n_physical() const;
  /// Rows that still fit before the capacity of one conversation is reached.
  int64_t rows_left() const;
  /// Whether automatic compaction is on and due: the cache is filled to the threshold, and since the last attempt
  /// it has grown by a 16th of its capacity or has filled up.
  bool wants_compaction() const;
  /// Automatic compaction as the engine's options say; `n_keep` tokens at the start stay as they are.
  Result<CompactionReport> compact_automatically(int64_t n_keep, const std::atomic<bool>* cancel,
                                                 const CompactionProgress& on_progress);

  int64_t n_tokens() const { return static_cast<int64_t>(tokens_.size()); }
  const std::vector<int32_t>& tokens() const { return tokens_; }
  const kv::SequenceCache& cache() const { return cache_; }
  int64_t n_compactions() const { return cache_.n_compactions(); }

 private:
  Engine& engine_;
  kv::SequenceCache cache_;
  std::vector<int32_t> tokens_;  // what the cache holds, logically
  std::unique_ptr<QueryCapture> capture_;
  double rows_at_last_attempt_ = -1;  // of automatic compaction; -1: none yet
};

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
  Result<std::string> render(Json messages) const;
  const Engine& engine_;
};

/// Token ids of a text that opens a sequence: special tokens parsed, BOS in front exactly once if the vocabulary
/// wants it.
std::vector<int32_t> encode_opening(const Engine& engine, std::string_view text);
/// Token ids of a text in the midst of a sequence, special tokens parsed.
std::vector<int32_t> encode_following(const Engine& engine, std::string_view text);

}  // namespace sh::engine
