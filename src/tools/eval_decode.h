// SPDX-License-Identifier: MIT
// Many conversations over one cache, fed and decoded side by side.
#pragma once

#include <cstdint>
#include <functional>
#include <span>
#include <vector>

#include "base/result.h"
#include "engine/engine.h"

namespace sh::tools {

/// Tokens for one sequence, and what becomes of the logits after them.
struct Feed {
  kv::SequenceCache* sequence = nullptr;
  std::span<const int32_t> ids;
  int64_t first_wanted = 0;  // logits after ids[first_wanted], ids[first_wanted + 1], ... are taken
  std::function<void(int64_t i, std::span<const float> logits)> take;  // i counts in ids
};
/// Feeds all sequences in batches of the engine's n_ubatch tokens, few enough logits at a time to stay small.
/// Needs:   no sequence twice.
/// Errors:  out_of_memory from the pool.
Result<void> feed(engine::Executor& executor, std::span<const Feed> feeds);

/// Forks of a cache that have each read a prompt.
struct Prompted {
  std::vector<kv::SequenceCache> forks;
  Mat<float> logits;  // [forks, n_vocab] after each prompt's last token
  std::span<const float> logits_of(size_t i) const {
    return {logits.row(static_cast<int64_t>(i)), static_cast<size_t>(logits.cols)};
  }
};
/// Needs:   no prompt is empty.
Result<Prompted> read_prompts(engine::Executor& executor, const kv::SequenceCache& cache,
                              std::span<const std::span<const int32_t>> prompts);

/// Tokens that follow a prompt whether the model would say so or not.
struct Forced {
  size_t prompt = 0;  // index into Prompted
  std::span<const int32_t> ids;
  std::function<void(int64_t i, std::span<const float> logits)> take;  // the logits that predict ids[i]
};
/// From forks of the prompted ones, which stay as they are.
Result<void> force(engine::Executor& executor, const Prompted& prompted, std::span<const Forced> all);

/// A greedy continuation, its end token included when it came.
struct Answer {
  std::vector<int32_t> ids;
  Mat<float> logits;  // that chose the first n_logits tokens
  bool is_ended = false;
};
struct AnswerLimits {
  int64_t n_tokens = 32;
  int64_t n_logits = 0;  // of logits kept
};
/// Continues some of the prompted forks greedily, all in lock step; they hold the answers then.
/// Shapes:  limits, one for each of `which`.
Result<std::vector<Answer>> answer_greedily(engine::Executor& executor, Prompted& prompted,
                                            std::span<const size_t> which, std::span<const AnswerLimits> limits);

int32_t argmax(std::span<const float> logits);

}  // namespace sh::tools
