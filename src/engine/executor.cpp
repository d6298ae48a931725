// SPDX-License-Identifier: MIT
#include "engine/executor.h"

#include <algorithm>
#include <vector>

#include "engine/engine.h"

namespace sh::engine {

Executor::Executor(Engine& engine, int n_threads, ThreadPriority priority)
    : engine_(engine),
      thread_pool_(n_threads, priority),
      ops_{.pool = &thread_pool_, .kernels = &engine.kernels()} {}

Result<void> Executor::forward(const models::Batch& batch, MatView<float> logits, ops::AttentionTap* tap) {
  const auto done = models::run_batch(engine_.model(), ops_, workspace_, batch, logits, tap);
  if (std::ssize(batch.ids) > engine_.options().n_ubatch) {
    // A compaction's one pass over thousands of tokens; what it grew would be held for good.
    ops_ = {.pool = ops_.pool, .kernels = ops_.kernels};
    workspace_ = {};
  }
  return done;
}

Result<Mat<float>> Executor::prefill(kv::SequenceCache& sequence, std::span<const int32_t> ids,
                                     const PrefillOptions& options) {
  const auto n = static_cast<int64_t>(ids.size());
  const int64_t n_vocab = engine_.model().info().n_vocab, n_ubatch = engine_.options().n_ubatch;
  Mat<float> logits(options.all_logits ? n : std::min<int64_t>(n, 1), n_vocab);
  std::vector<kv::Pos> pos;
  std::vector<kv::SequenceCache*> sequences;
  std::vector<int32_t> rows;
  for (int64_t begin = 0; begin < n; begin += n_ubatch) {
    const int64_t end = std::min<int64_t>(n, begin + n_ubatch);
    pos.clear();
    rows.clear();
    for (int64_t i = 0; i < end - begin; ++i) pos.push_back(sequence.next_pos() + i);
    sequences.assign(static_cast<size_t>(end - begin), &sequence);
    if (options.all_logits)
      for (int64_t i = 0; i < end - begin; ++i) rows.push_back(static_cast<int32_t>(i));
    else if (end == n)
      rows.push_back(static_cast<int32_t>(end - begin - 1));
    const models::Batch batch{ids.subspan(static_cast<size_t>(begin), static_cast<size_t>(end - begin)), pos,
                              sequences, rows};
    const int64_t first_logit = options.all_logits ? begin : 0;
    SH_RETURN_IF_ERROR(
        forward(batch, logits.view().slice(first_logit, static_cast<int64_t>(rows.size())), options.tap));
    if (options.on_progress != nullptr && !options.on_progress(options.progress_context, end))
      return Error{ErrorKind::cancelled, "stopped by the caller"};
  }
  return logits;
}

}  // namespace sh::engine
