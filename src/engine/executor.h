// SPDX-License-Identifier: MIT
// Threads and scratch memory to run a model with.
#pragma once

#include <cstdint>
#include <span>

#include "base/mat_view.h"
#include "base/result.h"
#include "base/thread_pool.h"
#include "engine/token_batch.h"
#include "kernels/kernel_set.h"
#include "kv/sequence_cache.h"
#include "models/model.h"
#include "models/workspace.h"
#include "ops/ops.h"

namespace sh::engine {

class Engine;

/// Runs forwards of an engine's model. The engine has one for its conversations; a compaction in the background has
/// another, so that both go on at once over the same weights and block pool.
/// Threads: one caller at a time.
class Executor {
 public:
  /// `n_threads` counts the caller.
  Executor(Engine& engine, int n_threads, ThreadPriority priority = ThreadPriority::normal);

  Engine& engine() { return engine_; }
  const Engine& engine() const { return engine_; }
  ThreadPool& thread_pool() { return thread_pool_; }
  const ThreadPool& thread_pool() const { return thread_pool_; }
  const kernels::KernelSet& kernels() const { return *ops_.kernels; }
  ops::OpContext& ops() { return ops_; }

  /// An empty batch to fill for the next forward; its memory is used again for the one after.
  TokenBatch& new_batch() {
    batch_.clear();
    return batch_;
  }
  /// One forward for any mix of sequences (reserve, run, commit). Shapes: logits [logit_rows, n_vocab].
  /// Errors: out_of_memory; nothing has changed then.
  Result<void> forward(const models::Batch& batch, MatView<float> logits, ops::AttentionTap* tap = nullptr);

  struct PrefillOptions {
    ops::AttentionTap* tap = nullptr;
    bool all_logits = false;
    bool (*on_progress)(void* context, int64_t n_done) = nullptr;
    void* progress_context = nullptr;
  };
  /// Feeds ids to one sequence in pieces of n_ubatch; logits of the last token, or of all tokens when `all_logits`.
  /// `on_progress(n_done)` is called after each piece; returning false stops (Error cancelled; the pieces done
  /// stay).
  Result<Mat<float>> prefill(kv::SequenceCache& sequence, std::span<const int32_t> ids,
                             const PrefillOptions& options);
  Result<Mat<float>> prefill(kv::SequenceCache& sequence, std::span<const int32_t> ids) {
    return prefill(sequence, ids, {});
  }

 private:
  Engine& engine_;
  ThreadPool thread_pool_;
  ops::OpContext ops_;
  models::Workspace workspace_;
  TokenBatch batch_;
};

}  // namespace sh::engine
