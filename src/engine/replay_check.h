// SPDX-License-Identifier: MIT
// Validation that comes free: the tokens that reference queries were learnt from, fed once more to the compacted
// cache, show what it predicts differently from the uncompacted one.
#pragma once

#include <atomic>
#include <cstdint>
#include <span>
#include <utility>
#include <vector>

#include "compaction/method.h"
#include "engine/compaction_report.h"
#include "engine/executor.h"

namespace sh::engine {

struct FeedOptions;

/// A replay compares at most so many tokens, whose logits of the uncompacted cache are kept at most so large: an
/// eighth of a gigabyte is 220 tokens of a vocabulary of 150 000.
inline constexpr int64_t kMaxReplayTokens = 256, kMaxReplayBytes = int64_t{128} << 20;

/// How many answer tokens a compaction's replay compares; 0 when the request and its method want none: not said,
/// what is fitted is compared, unless it reads only a sample of the text, which costs less than a comparison that
/// tells anything. A limit or target on KL and a study get kMaxReplayTokens. Else it is one token in a hundred of
/// the text, at least 32, so that a check stays a small part of a prefill, whatever its length.
int64_t n_replay_tokens(const compaction::CompactionMethod& method, const CompactionRequest& request,
                        int64_t n_text);

/// What an uncompacted cache predicts on a replay: recorded once, compared with any number of compacted forks.
/// Threads: const members may run in parallel, each with an executor of its own.
/// Memory:  the logits of the compared tokens, n_vocab floats each; compare() holds another 64 MiB of them at
/// most.
class ReplayReference {
 public:
  /// Feeds the replay to forks of `full` and keeps the logits that predict answer tokens (those after a part's
  /// first n_prompt): at most `max_tokens` of them, and no more than fit in `max_bytes` (a vocabulary of 150 000
  /// needs 0.6 MB a token). Parts are taken evenly from the whole replay, and each gives its first answer tokens.
  /// A replay without answers, or bounds below one token, give a reference of no tokens.
  /// Errors: out_of_memory (the pool has no room for one part beside the cache), cancelled.
  /// Cost:   one forward for the tokens fed, in batches of n_ubatch over several parts.
  static Result<ReplayReference> record(Executor& executor, const kv::SequenceCache& full, const Replay& replay,
                                        int64_t max_tokens, int64_t max_bytes,
                                        const std::atomic<bool>* cancel = nullptr);
  /// The same without the logits, for a caller that feeds the replay anyway: it puts the logits of each part's
  /// tokens compared_of(part), one part after the other, into room().
  static ReplayReference plan(const Replay& replay, int64_t n_vocab, int64_t max_tokens, int64_t max_bytes);
  /// Tokens [begin, end) of a part of the replay whose logits are compared; empty when the part is left out.
  std::pair<int64_t, int64_t> compared_of(size_t part) const { return compared_[part]; }
  /// Of compared tokens [first, first + n), counted over all parts.
  MatView<float> room(int64_t first, int64_t n) { return logits_.view().slice(first, n); }

  /// Feeds the same tokens to forks of `compacted`. KL is summed in double over the whole vocabulary; a prediction
  /// that is not finite makes all figures NaN. The verdict is left unknown.
  /// Needs:  a cache of the same conversation, and the same model.
  /// Errors: as record().
  Result<ReplayCheck> compare(Executor& executor, const kv::SequenceCache& compacted,
                              const std::atomic<bool>* cancel = nullptr) const;

  int64_t n_tokens() const { return logits_.rows; }
  int64_t n_wanted() const { return n_wanted_; }  // max_tokens of plan() or record()
  int64_t n_parts() const { return static_cast<int64_t>(parts_.size()); }
  double seconds() const { return seconds_; }  // of recording

 private:
  /// A part cut to what is fed: the logits of its last n_compared tokens are wanted.
  struct Part {
    std::vector<int32_t> ids;
    int64_t n_compared = 0;
  };

  ReplayReference() = default;
  Result<void> feed(Executor& executor, const kv::SequenceCache& sequence, const FeedOptions& options) const;

  std::vector<int32_t> opening_;
  std::vector<Part> parts_;
  std::vector<std::pair<int64_t, int64_t>> compared_;  // [parts of the replay]
  Mat<float> logits_;                                  // [n_tokens, n_vocab]
  int64_t n_wanted_ = 0;
  double seconds_ = 0;
};

/// A replay for a compaction whose queries came with none: about `n_tokens` of the text [begin, end) of the
/// conversation `ids`, repeated after the conversation behind the repeat instruction, in evenly spread pieces of
/// 32 (a text's newest tokens alone would praise whatever keeps exactly those). Errors: unsupported (chat
/// template), invalid_argument (an empty or outside range).
Result<Replay> text_replay(const Engine& engine, std::span<const int32_t> ids, Span text, int64_t n_tokens);

}  // namespace sh::engine
