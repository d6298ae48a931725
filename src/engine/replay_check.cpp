// SPDX-License-Identifier: MIT
#include "engine/replay_check.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

#include "base/cancel.h"
#include "base/clock.h"
#include "engine/logit_compare.h"
#include "engine/reference_steps.h"
#include "engine/token_batch.h"

namespace sh::engine {

namespace {

using kv::SequenceCache;

// Of a long part only the beginning is compared while others can still be taken: many parts say more than many
// tokens of one.
constexpr int64_t kTokensPerPart = 32;

Error check_cancelled() {
  return {ErrorKind::cancelled, "the replay that compares a compacted cache was cancelled; nothing has changed"};
}

/// 0 .. n-1 in an order of which every beginning is spread evenly: counters with their bits reversed.
std::vector<size_t> spread_order(size_t n) {
  std::vector<size_t> order;
  size_t n_bits = 0;
  while ((size_t{1} << n_bits) < n) ++n_bits;
  for (size_t i = 0; i < size_t{1} << n_bits; ++i) {
    size_t reversed = 0;
    for (size_t bit = 0; bit < n_bits; ++bit) reversed |= ((i >> bit) & 1) << (n_bits - 1 - bit);
    if (reversed < n) order.push_back(reversed);
  }
  return order;
}

int64_t n_answer_tokens(const Replay::Part& part) {
  // The first token of a part that begins with its answer has no prediction from the part itself.
  return static_cast<int64_t>(part.ids.size()) - std::max<int64_t>(1, part.n_prompt);
}

/// How many answer tokens of each part are compared, 0 for parts that are left out.
std::vector<int64_t> share_out(const Replay& replay, int64_t max_tokens) {
  std::vector<int64_t> shares(replay.parts.size(), 0);
  const auto n_parts = static_cast<int64_t>(replay.parts.size());
  const int64_t share = std::max(kTokensPerPart, max_tokens / std::max<int64_t>(1, n_parts));
  int64_t n_left = max_tokens;
  for (const size_t i : spread_order(replay.parts.size())) {
    shares[i] = std::clamp<int64_t>(n_answer_tokens(replay.parts[i]), 0, std::min(share, n_left));
    n_left -= shares[i];
  }
  return shares;
}

ReplayCheck summarise(std::span<const TokenComparison> tokens) {
  constexpr double kNaN = std::numeric_limits<double>::quiet_NaN();
  ReplayCheck check{.n_tokens = static_cast<int64_t>(tokens.size())};
  if (tokens.empty()) return check;
  std::vector<double> kls;
  double n_same = 0, n_confident = 0, n_flips = 0;
  for (const TokenComparison& t : tokens) {
    kls.push_back(t.kl);
    n_same += t.is_same_top1;
    n_confident += t.is_confident;
    n_flips += t.is_confident && !t.is_same_top1;
  }
  if (!std::all_of(kls.begin(), kls.end(), [](double kl) { return std::isfinite(kl); })) {
    check.kl_mean = check.kl_median = check.kl_p99 = check.top1 = check.confident_flips = kNaN;
    return check;
  }
  check.kl_mean = mean(kls);
  check.kl_median = quantile(kls, 0.5);
  check.kl_p99 = quantile(kls, 0.99);
  check.top1 = n_same / static_cast<double>(tokens.size());
  check.confident_flips = n_confident > 0 ? n_flips / n_confident : 0;
  return check;
}

}  // namespace

/// Feeds opening and parts to forks of the sequence; visit(first row, logits [n, n_vocab]) is called with the
/// predictions of neighbouring rows of the reference.
template <typename Visit>
Result<void> ReplayReference::feed(Executor& executor, const SequenceCache& sequence,
                                   const std::atomic<bool>* cancel, Visit&& visit) const {
  const auto n_ubatch = static_cast<size_t>(executor.engine().options().n_ubatch);
  const int64_t n_vocab = executor.engine().model().info().n_vocab;
  SequenceCache base = sequence.fork();
  if (!opening_.empty()) SH_RETURN_IF_ERROR(executor.prefill(base, opening_));

  size_t begin = 0, n_side_by_side = parts_.size();
  while (begin < parts_.size()) {
    if (is_cancelled(cancel)) return check_cancelled();
    // As many parts as one batch holds; a part that is longer than a batch goes alone, in several.
    size_t end = begin, n_batch = 0;
    while (end < parts_.size() && end - begin < n_side_by_side &&
           (end == begin || n_batch + parts_[end].ids.size() <= n_ubatch))
      n_batch += parts_[end++].ids.size();
    std::vector<SequenceCache> forks;
    for (size_t i = begin; i < end; ++i) forks.push_back(base.fork());
    for (size_t from = 0; from < n_batch; from += n_ubatch) {
      const bool is_alone = end - begin == 1;
      TokenBatch batch;
      for (size_t i = begin; i < end; ++i) {
        const Part& part = parts_[i];
        const size_t first = is_alone ? from : 0;
        const size_t n = is_alone ? std::min(n_ubatch, part.ids.size() - from) : part.ids.size();
        const size_t first_compared = part.ids.size() - static_cast<size_t>(part.n_compared);
        const size_t row = batch.ids.size();
        batch.add(forks[i - begin], std::span(part.ids).subspan(first, n), false);
        for (size_t k = std::max(first, first_compared); k < first + n; ++k)
          batch.logit_rows.push_back(static_cast<int32_t>(row + k - first));
      }
      Mat<float> logits(static_cast<int64_t>(batch.logit_rows.size()), n_vocab);
      const auto done = executor.forward(batch.view(), logits.view());
      if (!done.ok() && done.error().kind == ErrorKind::out_of_memory && end - begin > 1) {
        n_side_by_side = (end - begin + 1) / 2;
        end = begin;
        break;
      }
      SH_RETURN_IF_ERROR(done);
      const int64_t first_compared = static_cast<int64_t>(parts_[begin].ids.size()) - parts_[begin].n_compared;
      const int64_t n_before = is_alone ? std::max<int64_t>(0, static_cast<int64_t>(from) - first_compared) : 0;
      if (logits.rows > 0) visit(parts_[begin].first_row + n_before, logits);
    }
    begin = end;
  }
  return {};
}

Result<ReplayReference> ReplayReference::record(Executor& executor, const SequenceCache& full,
                                                const Replay& replay, int64_t max_tokens, int64_t max_bytes,
                                                const std::atomic<bool>* cancel) {
  const Stopwatch watch;
  const int64_t n_vocab = executor.engine().model().info().n_vocab;
  const int64_t bytes_a_token = n_vocab * static_cast<int64_t>(sizeof(float));
  const int64_t n_most = std::max<int64_t>(0, std::min(max_tokens, max_bytes / bytes_a_token));
  ReplayReference reference;
  reference.opening_ = replay.opening;
  const std::vector<int64_t> shares = share_out(replay, n_most);
  int64_t n_rows = 0;
  for (size_t i = 0; i < shares.size(); ++i) {
    if (shares[i] == 0) continue;
    const Replay::Part& part = replay.parts[i];
    // The last token of the share is predicted, not fed.
    const int64_t n_fed = std::max<int64_t>(1, part.n_prompt) + shares[i] - 1;
    reference.parts_.push_back({{part.ids.begin(), part.ids.begin() + n_fed}, shares[i], n_rows});
    n_rows += shares[i];
  }
  reference.logits_ = Mat<float>(n_rows, n_vocab);
  if (n_rows == 0) return reference;
  SH_RETURN_IF_ERROR(reference.feed(executor, full, cancel, [&](int64_t first_row, const Mat<float>& logits) {
    std::copy(logits.data.begin(), logits.data.end(), reference.logits_.row(first_row));
  }));
  reference.seconds_ = watch.seconds();
  return reference;
}

Result<ReplayCheck> ReplayReference::compare(Executor& executor, const SequenceCache& compacted,
                                             const std::atomic<bool>* cancel) const {
  const Stopwatch watch;
  std::vector<TokenComparison> tokens(static_cast<size_t>(n_tokens()));
  const auto n_vocab = static_cast<size_t>(logits_.cols);
  if (n_tokens() > 0)
    SH_RETURN_IF_ERROR(feed(executor, compacted, cancel, [&](int64_t first_row, const Mat<float>& logits) {
      executor.thread_pool().run(logits.rows, [&](int64_t r, int) {
        tokens[static_cast<size_t>(first_row + r)] =
            compare_logits(std::span(logits_.row(first_row + r), n_vocab), std::span(logits.row(r), n_vocab), 0);
      });
    }));
  ReplayCheck check = summarise(tokens);
  check.seconds = watch.seconds();
  return check;
}

Result<Replay> text_replay(const Engine& engine, std::span<const int32_t> ids, Span text, int64_t n_tokens) {
  const auto n = static_cast<int64_t>(ids.size());
  if (text.begin < 0 || text.end > n || text.begin >= text.end || n_tokens < 1)
    return Error{
        ErrorKind::invalid_argument,
        fmt::format("replay: {} tokens of the text from {} to {} cannot be repeated, the conversation has {}",
                    n_tokens, text.begin, text.end, n)};
  Replay replay;
  SH_ASSIGN(replay.opening, repeat_opening(engine, ids));
  const int64_t length = text.end - text.begin;
  const int64_t n_pieces =
      std::clamp<int64_t>((n_tokens + kSamplePiece - 1) / kSamplePiece, 1, (length + kSamplePiece - 1) / kSamplePiece);
  const int64_t n_piece = std::min({kSamplePiece, n_tokens, length});
  for (const auto& [from, to] : spread_pieces(text.begin, text.end, n_pieces, n_piece))
    replay.parts.push_back(repeat_part(ids, from, to));
  return replay;
}

}  // namespace sh::engine
