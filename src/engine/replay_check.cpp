// SPDX-License-Identifier: MIT
#include "engine/replay_check.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

#include "base/clock.h"
#include "engine/engine.h"
#include "engine/logit_compare.h"
#include "engine/reference_steps.h"

namespace sh::engine {

namespace {

using kv::SequenceCache;

// Of a long part only the beginning is compared while others can still be taken: many parts say more than many
// tokens of one.
constexpr int64_t kTokensPerPart = 32;
// Tokens of a text for each that is compared, and the fewest of a check: one part.
constexpr int64_t kTextPerReplayToken = 100, kLeastReplayTokens = kTokensPerPart;
// Logits of the compacted cache that are held at once.
constexpr int64_t kMaxFreshBytes = int64_t{64} << 20;

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

int64_t n_replay_tokens(const compaction::CompactionMethod& method, const CompactionRequest& request,
                        int64_t n_text) {
  const bool has_limit = request.max_kl > 0 || request.target.kl > 0;
  const bool is_validated = method.fit != compaction::Fit::none && !method.reads_sample(n_text);
  if (!has_limit && !request.validates.value_or(is_validated)) return 0;
  if (has_limit || method.queries.has(compaction::QuerySource::self_study)) return kMaxReplayTokens;
  return std::clamp(n_text / kTextPerReplayToken, kLeastReplayTokens, kMaxReplayTokens);
}

ReplayReference ReplayReference::plan(const Replay& replay, int64_t n_vocab, int64_t max_tokens,
                                      int64_t max_bytes) {
  const int64_t bytes_a_token = n_vocab * static_cast<int64_t>(sizeof(float));
  const int64_t n_most = std::max<int64_t>(0, std::min(max_tokens, max_bytes / bytes_a_token));
  ReplayReference reference;
  reference.n_wanted_ = max_tokens;
  reference.opening_ = replay.opening;
  const std::vector<int64_t> shares = share_out(replay, n_most);
  int64_t n_rows = 0;
  for (size_t i = 0; i < shares.size(); ++i) {
    const Replay::Part& part = replay.parts[i];
    // The last token of the share is predicted, not fed.
    const int64_t n_fed = std::max<int64_t>(1, part.n_prompt) + shares[i] - 1;
    reference.compared_.emplace_back(n_fed - shares[i], n_fed);
    if (shares[i] == 0) continue;
    reference.parts_.push_back({{part.ids.begin(), part.ids.begin() + n_fed}, shares[i]});
    n_rows += shares[i];
  }
  reference.logits_ = Mat<float>(n_rows, n_vocab);
  return reference;
}

Result<void> ReplayReference::feed(Executor& executor, const SequenceCache& sequence,
                                   const FeedOptions& options) const {
  std::vector<Stretch> stretches;
  for (const Part& part : parts_) {
    const auto n = static_cast<int64_t>(part.ids.size());
    stretches.push_back({part.ids, n - part.n_compared, n});
  }
  const auto fed = feed_behind(executor, sequence, opening_, stretches, options);
  if (!fed.ok()) return fed.error();
  return {};
}

Result<ReplayReference> ReplayReference::record(Executor& executor, const SequenceCache& full,
                                                const Replay& replay, int64_t max_tokens, int64_t max_bytes,
                                                const std::atomic<bool>* cancel) {
  const Stopwatch watch;
  ReplayReference reference = plan(replay, executor.engine().model().info().n_vocab, max_tokens, max_bytes);
  if (reference.n_tokens() == 0) return reference;
  FeedOptions options{.cancel = cancel};
  options.room = [&](int64_t first, int64_t n) { return reference.room(first, n); };
  SH_RETURN_IF_ERROR(reference.feed(executor, full, options));
  reference.seconds_ = watch.seconds();
  return reference;
}

Result<ReplayCheck> ReplayReference::compare(Executor& executor, const SequenceCache& compacted,
                                             const std::atomic<bool>* cancel) const {
  const Stopwatch watch;
  std::vector<TokenComparison> tokens(static_cast<size_t>(n_tokens()));
  if (n_tokens() > 0) {
    const auto n_vocab = static_cast<size_t>(logits_.cols);
    Mat<float> fresh;
    FeedOptions options{.cancel = cancel};
    options.max_logits =
        std::max<int64_t>(1, kMaxFreshBytes / (logits_.cols * static_cast<int64_t>(sizeof(float))));
    options.room = [&](int64_t, int64_t n) {
      if (fresh.rows < n) fresh = Mat<float>(n, logits_.cols);
      return fresh.view().slice(0, n);
    };
    options.use = [&](int64_t first, MatView<const float> logits) {
      executor.thread_pool().run(logits.rows, [&](int64_t r, int) {
        tokens[static_cast<size_t>(first + r)] =
            compare_logits(std::span(logits_.row(first + r), n_vocab), std::span(logits.row(r), n_vocab), 0);
      });
    };
    SH_RETURN_IF_ERROR(feed(executor, compacted, options));
  }
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
