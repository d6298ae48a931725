// SPDX-License-Identifier: MIT
// Where reference queries come from: captured while the context is read, from a repeated reading, or from conversations that the model
// begins and answers itself (self-study).
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <span>
#include <string>
#include <vector>

#include "base/mat_view.h"
#include "engine/engine.h"

namespace sh::engine {

/// Reference queries of one (layer, KV head): the query heads of the group pooled.
struct QuerySet {
  Mat<float> queries;          // [n, key_width]
  std::vector<int32_t> pos;    // [n]
  std::vector<float> lse;      // [n] over all rows that the query saw
  Mat<float> out;              // [n, value_width] attention output over all rows that it saw
};
using QuerySets = std::vector<std::vector<QuerySet>>;  // [layer][KV head]

/// One token of so many is captured while a conversation is read. Every token would cost a prefill 5 to 15 % (bench/capture_bench: the copies
/// touch as much new memory as the cache itself); one of 8 stays below 3 %.
inline constexpr int64_t kReadingStride = 8;

/// Keeps the queries of a bounded, evenly spread sample of the tokens that pass a forward: when the bound is reached, every second sampled
/// token is dropped and the stride doubles. Deterministic.
class QueryCapture : public ops::AttentionTap {
 public:
  /// `max_bytes` bounds what the capture holds, over all layers.
  /// `first_stride`: of so many tokens one is sampled from the beginning.
  QueryCapture(const models::Model& model, const kv::KvLayout& layout, int64_t max_bytes, int64_t first_stride = 1);
  ~QueryCapture() override;

  /// Announces the tokens of the next forward: row i of the batch has position pos[i]. Rows with `is_wanted[i] == false` are not sampled;
  /// an empty span wants all.
  void begin_batch(std::span<const kv::Pos> pos, std::span<const bool> is_wanted = {});
  /// The announced forward did not run: its tokens are forgotten.
  void abort_batch();
  bool on_attention(int32_t layer, MatView<const float> queries, MatView<const float> lse,
                    MatView<const float> out) override;
  bool wants_layer(int32_t layer) const override;

  void clear();
  /// Forgets tokens at positions >= end (a conversation that was cut back).
  void truncate(kv::Pos end);
  int64_t n_tokens() const;
  int64_t n_bytes() const;
  QuerySets take() const;  // copies, pooled over the group

 private:
  struct State;
  std::unique_ptr<State> state_;
};

struct SelfStudyOptions {
  int32_t n_conversations = 192;
  int32_t max_question_tokens = 48;
  int32_t max_answer_tokens = 32;
  float temperature = 1.0f;
  uint64_t seed = 1;
};
struct StudyStats {
  int32_t n_conversations = 0;
  int64_t n_tokens = 0;
  double seconds = 0;
  std::vector<std::string> questions;  // what the model asked itself, in order
};

/// The tokens that open a user turn after this conversation, and those that close it and open the assistant's, from the chat template.
struct TurnTokens {
  std::vector<int32_t> close_turn;  // ends an assistant turn that is still open; not needed after an end-of-generation token
  std::vector<int32_t> user_open;
  std::vector<int32_t> user_close;  // ends the user turn and opens the assistant's
};
Result<TurnTokens> turn_tokens(const Engine& engine);

/// Reads the tokens once more after the conversation (teacher-forced, from a fork) and captures the queries.
/// Errors: out_of_memory, cancelled.
Result<QuerySets> repeat_prefill(Engine& engine, const kv::SequenceCache& sequence, std::span<const int32_t> ids, int64_t max_bytes,
                                 const std::atomic<bool>* cancel, StudyStats* stats);
/// Opens user turns after the conversation, samples questions until the turn ends, answers them greedily; all conversations decode as
/// one batch over the shared rows. Captures the queries of questions and answers.
/// Errors: invalid_argument (options), out_of_memory, cancelled, unsupported (chat template).
Result<QuerySets> self_study(Engine& engine, const kv::SequenceCache& sequence, std::span<const int32_t> ids, const SelfStudyOptions& options,
                             int64_t max_bytes, const std::atomic<bool>* cancel, const std::function<void(double)>& on_progress,
                             StudyStats* stats);

}  // namespace sh::engine
