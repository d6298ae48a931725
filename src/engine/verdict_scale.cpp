// SPDX-License-Identifier: MIT
#include "engine/verdict_scale.h"

#include <algorithm>
#include <array>
#include <cmath>

#include "engine/engine.h"
#include "engine/replay_check.h"

namespace sh::engine {

namespace {

using kv::SequenceCache;

// A short sample: 512 and 256 would feed twice as many tokens.
constexpr int64_t kText = 256, kPredicted = 128;
constexpr int64_t kLeastText = 64;
constexpr double kConfidentFlips = 0.05;
// Fewer tokens are no measurement: the answers of two study conversations called a cache transparent that had lost
// all four facts asked for (scribe, self_study at 8x, conversations=2).
constexpr int64_t kLeastTokens = 32;
// Share of predictions whose likeliest token stays, from which a cache keeps at least 70 % of its answers. KL does
// not separate better and has no scale that holds for all models. Measured on scribe: 864 caches of 42 documents
// (512 to 2048 tokens; truncate, streaming, select, self_study at 2x to 64x). On answers of a self-study 0.8,
// chosen on 10 of the documents, judges 96 % of the caches of the others rightly; what it accepts keeps 94 % of
// the answers, what it rejects 20 %. On repeated text 0.5 judges 85 % rightly (85 % and 23 % kept): verbatim text
// is lost long before answers are.
constexpr double kGistTop1Answers = 0.8;
constexpr double kGistTop1Repetition = 0.5;

/// Rounds f16 rows of `width` elements to the format and back. A block that a narrow row does not fill is padded
/// with zeros.
void round_rows(const kernels::KernelSet& kernels, const TensorFormat& format, int64_t width,
                std::vector<std::byte>& rows) {
  const int64_t n_padded = (width + format.block_elements - 1) / format.block_elements * format.block_elements;
  std::vector<float> row(static_cast<size_t>(n_padded));
  std::vector<std::byte> blocks(static_cast<size_t>(row_bytes(format.dtype, n_padded)));
  const auto n_bytes = static_cast<size_t>(row_bytes(DType::f16, width));
  for (size_t at = 0; at < rows.size(); at += n_bytes) {
    kernels.decode_row(DType::f16, rows.data() + at, width, row.data());
    std::fill(row.begin() + width, row.end(), 0.0f);
    format.quantize(row.data(), n_padded, blocks.data());
    format.dequantize(blocks.data(), n_padded, row.data());
    kernels.encode_row(DType::f16, row.data(), width, rows.data() + at);
  }
}

/// A cache with the same rows, rounded.
Result<SequenceCache> rounded(Executor& executor, const SequenceCache& sequence, const TensorFormat& format) {
  const auto& layers = sequence.pool().layout().layers;
  std::vector<std::vector<kv::HeadRows>> rows(layers.size());
  for (size_t l = 0; l < layers.size(); ++l)
    for (int32_t h = 0; h < layers[l].n_heads; ++h) {
      kv::HeadRows& head = rows[l].emplace_back(sequence.copy_head(static_cast<int32_t>(l), h));
      round_rows(executor.kernels(), format, layers[l].key_width, head.keys);
      round_rows(executor.kernels(), format, layers[l].value_width, head.values);
    }
  SequenceCache copy(sequence.pool());
  SH_RETURN_IF_ERROR(copy.restore(rows, sequence.identity()));
  return copy;
}

/// Repetition of the text, or its continuation where the chat template shows no turns.
Result<Replay> scale_replay(const Engine& engine, std::span<const int32_t> text,
                            std::span<const int32_t> following) {
  auto repeated = text_replay(engine, text, {0, static_cast<int64_t>(text.size())}, kPredicted);
  if (repeated.ok() || repeated.error().kind != ErrorKind::unsupported) return repeated;
  Replay replay;
  replay.parts.push_back({{following.begin(), following.end()}, 0});
  return replay;
}

}  // namespace

Result<VerdictScale> measure_verdict_scale(Executor& executor, std::span<const int32_t> ids,
                                           const std::atomic<bool>* cancel) {
  VerdictScale scale;
  const auto n = static_cast<int64_t>(ids.size());
  if (n < kLeastText) return scale;
  // Of a short text a fifth is left to be predicted.
  const auto n_text = static_cast<size_t>(std::min(kText, n - n / 5));
  const std::span<const int32_t> text = ids.first(n_text);
  const std::span<const int32_t> following =
      ids.subspan(n_text, std::min(static_cast<size_t>(kPredicted), ids.size() - n_text));
  SH_ASSIGN(const Replay replay, scale_replay(executor.engine(), text, following));

  kv::KvLayout layout = executor.engine().kv_layout();
  layout.key_type = layout.value_type = DType::f16;
  // Two caches of the text, and parts of the replay with tail blocks of their own; memory is used as it is
  // touched.
  int64_t n_rows = 4 * kText + static_cast<int64_t>(replay.opening.size());
  for (const Replay::Part& part : replay.parts)
    n_rows += static_cast<int64_t>(part.ids.size()) + 4 * kv::kBlockRows;
  SH_ASSIGN(const auto pool, kv::BlockPool::create(layout, layout.bytes_per_token() * n_rows));
  SequenceCache sequence(*pool);
  SH_RETURN_IF_ERROR(executor.prefill(sequence, text));
  SH_ASSIGN(const ReplayReference reference,
            ReplayReference::record(executor, sequence, replay, kPredicted, kMaxReplayBytes, cancel));
  const std::array<std::pair<DType, double*>, 2> formats = {
      {{DType::q8_0, &scale.kl_q8}, {DType::q4_0, &scale.kl_q4}}};
  for (const auto& [dtype, kl] : formats) {
    SH_ASSIGN(const SequenceCache coarse, rounded(executor, sequence, tensor_format(dtype)));
    SH_ASSIGN(const ReplayCheck check, reference.compare(executor, coarse, cancel));
    *kl = check.kl_mean;
  }
  return scale;
}

Verdict verdict_of(const ReplayCheck& check, const VerdictScale& scale, ReplayKind kind) {
  if (check.n_tokens < kLeastTokens) return Verdict::unknown;
  if (std::isnan(scale.kl_q8) || std::isnan(scale.kl_q4)) return Verdict::unknown;
  if (!std::isfinite(check.kl_mean)) return Verdict::reject;
  if (check.kl_mean <= scale.kl_q8) return Verdict::transparent;
  if (check.kl_mean <= scale.kl_q4 && check.confident_flips < kConfidentFlips) return Verdict::good;
  const double least = kind == ReplayKind::answers ? kGistTop1Answers : kGistTop1Repetition;
  return check.top1 >= least ? Verdict::gist : Verdict::reject;
}

Result<VerdictScale> VerdictScales::get(Executor& executor, std::span<const int32_t> ids,
                                        const std::atomic<bool>* cancel) {
  const std::lock_guard lock(mutex_);
  if (std::isnan(scale_.kl_q8)) {
    SH_ASSIGN(scale_, measure_verdict_scale(executor, ids, cancel));
  }
  return scale_;
}

}  // namespace sh::engine
