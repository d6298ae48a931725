// SPDX-License-Identifier: MIT
// What a running model needs: weights, vocabulary, template, kernels, threads and the block pool. No conversation state.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "base/result.h"
#include "chat/chat_template.h"
#include "compaction/head_profile.h"
#include "compaction/method.h"
#include "engine/compaction_report.h"
#include "engine/executor.h"
#include "engine/verdict_scale.h"
#include "kernels/kernel_set.h"
#include "kv/block_pool.h"
#include "kv/sequence_cache.h"
#include "models/model.h"
#include "tokenizer/tokenizer.h"

namespace sh::engine {

struct EngineOptions {
  std::string model_path;
  std::string model_alias;             // shown to clients; "": the file's name
  int64_t n_ctx = 0;                   // KV capacity in tokens, all conversations together; 0: the model's context length
  int32_t n_parallel = 1;              // conversations at once
  bool is_kv_unified = true;           // every conversation may use all of n_ctx; false: n_ctx / n_parallel each
  int32_t n_batch = 2048;              // tokens of a step at most
  int32_t n_ubatch = 512;              // tokens of one forward at most
  int32_t step_ms = 150;               // goal for a forward that reads prompts while others decode; 0: none
  int32_t n_threads = 0;               // 0: one a core
  DType type_k = DType::f16, type_v = DType::f16;
  std::string chat_template;           // "": the model's, else ChatML
  std::string kernels;                 // force a kernel set; "": SHORTHAND_KERNELS, else the best
  bool repacks = true;                 // weights are brought into the layout that the kernels read fastest

  // Automatic compaction of a conversation that fills its share (0: off, as llama.cpp).
  double compact_threshold = 0.0;      // fraction of the share at which it starts
  double compact_ratio = 4.0;
  std::string compact_method = "self_study";
  int64_t compact_keep = 0;            // tokens at the start that stay as they are; -1: a conversation's first prompt
  std::vector<Span> compact_pinned;    // positions that stay as they are
  double compact_max_kl = 0;           // > 0: a compaction with a larger mean KL in its replay is refused
  double compact_target_kl = 0;        // > 0: this quality instead of a size
  double compact_target_head_error = 0;                              // > 0: likewise, see QualityTarget
  std::vector<std::pair<std::string, std::string>> compact_options;  // name, value: see set_option()
  std::string compact_profile;         // file of `shorthand profile`, for budget=profile; "": none
  bool compact_rebase = false;         // positions are given anew when they near the end of the trained range
  bool compact_delay = false;          // a turn is compacted when the next one's prompt can ask for it
  int64_t capture_bytes = 0;           // memory for queries captured while a conversation is read, each; 0: none are captured
};

/// An opened model. Threads: open once, share; one caller at a time of each executor.
class Engine {
 public:
  /// Errors: what gguf, models, tokenizer, chat and kv say; the message names the file.
  static Result<std::unique_ptr<Engine>> open(EngineOptions options);
  ~Engine();

  const EngineOptions& options() const { return options_; }
  const models::Model& model() const { return *model_; }
  const gguf::File& file() const { return file_; }
  const tokenizer::Tokenizer& tokenizer() const { return *tokenizer_; }
  const chat::ChatTemplate& chat_template() const { return *chat_template_; }
  /// Messages as a prompt by the model's template, with the vocabulary's special tokens.
  /// Errors: those of the template.
  Result<std::string> render_messages(Json messages, bool add_generation_prompt) const;
  const kernels::KernelSet& kernels() const { return *kernels_; }
  std::string kernel_choice() const;   // one line: which set and why
  kv::BlockPool& block_pool() { return *block_pool_; }
  const kv::KvLayout& kv_layout() const { return block_pool_->layout(); }
  const std::string& alias() const { return alias_; }
  /// What budget=profile shares out by when a request brings no profile of its own; may be empty.
  const std::optional<compaction::HeadProfile>& head_profile() const { return head_profile_; }
  /// What a KL means on this model: measured with the first compaction that is validated.
  VerdictScales& verdict_scales() { return verdict_scales_; }

  int64_t n_ctx() const { return n_ctx_; }           // KV capacity in tokens, all conversations
  int64_t n_ctx_slot() const { return n_ctx_slot_; } // KV capacity of one conversation
  /// Tokens that one conversation may hold logically: n_ctx_slot, or with automatic compaction what the model was trained for.
  int64_t n_ctx_logical() const { return n_ctx_logical_; }
  /// For messages: what n_ctx_logical() comes from, and what to do about it.
  std::string length_limit() const;
  bool compacts_automatically() const { return options_.compact_threshold > 0; }

  /// Runs the conversations.
  Executor& executor() { return *executor_; }
  ThreadPool& thread_pool() { return executor_->thread_pool(); }
  Result<void> forward(const models::Batch& batch, MatView<float> logits, ops::AttentionTap* tap = nullptr) {
    return executor_->forward(batch, logits, tap);
  }
  Result<Mat<float>> prefill(kv::SequenceCache& sequence, std::span<const int32_t> ids,
                             const Executor::PrefillOptions& options) {
    return executor_->prefill(sequence, ids, options);
  }
  Result<Mat<float>> prefill(kv::SequenceCache& sequence, std::span<const int32_t> ids) {
    return executor_->prefill(sequence, ids);
  }

  /// Lines for people: model, memory plan, kernels.
  std::vector<std::string> describe() const;
  /// One more, for commands that hold conversations: how many, how long, and when they are compacted.
  std::string describe_conversations() const;

 private:
  Engine() : file_{} {}
  EngineOptions options_;
  std::string alias_;
  gguf::File file_;
  std::unique_ptr<models::Model> model_;
  std::unique_ptr<tokenizer::Tokenizer> tokenizer_;
  std::unique_ptr<chat::ChatTemplate> chat_template_;
  const kernels::KernelSet* kernels_ = nullptr;
  std::unique_ptr<kv::BlockPool> block_pool_;
  std::unique_ptr<Executor> executor_;
  VerdictScales verdict_scales_;
  std::optional<compaction::HeadProfile> head_profile_;
  int64_t n_ctx_ = 0, n_ctx_slot_ = 0, n_ctx_logical_ = 0;
};

}  // namespace sh::engine
