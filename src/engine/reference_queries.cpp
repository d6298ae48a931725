// SPDX-License-Identifier: MIT
#include "engine/reference_queries.h"

#include <algorithm>
#include <cmath>

#include "base/cancel.h"
#include "base/clock.h"
#include "engine/reference_steps.h"

namespace sh::engine {

namespace {

using kv::Pos;
using kv::SequenceCache;

// A piece of the repeated text is read from a fresh fork, so that its positions stay near the end of the context.
constexpr int64_t kRepeatPiece = 1024;

/// Pieces that hold a share of [begin, end), spread evenly.
std::vector<std::pair<int64_t, int64_t>> pieces_of(int64_t begin, int64_t end, double fraction) {
  std::vector<std::pair<int64_t, int64_t>> pieces;
  const int64_t n = end - begin;
  if (n <= 0) return pieces;
  if (fraction >= 1) {
    for (int64_t at = begin; at < end; at += kRepeatPiece)
      pieces.emplace_back(at, std::min(end, at + kRepeatPiece));
    return pieces;
  }
  const auto n_wanted = static_cast<int64_t>(std::ceil(static_cast<double>(n) * fraction));
  const int64_t n_pieces = std::max<int64_t>(1, (n_wanted + kSamplePiece - 1) / kSamplePiece);
  return spread_pieces(begin, end, n_pieces, kSamplePiece);
}

/// Feeds ids [begin, end) to the fork in steps of n_ubatch, captured.
Result<void> read_piece(Executor& executor, SequenceCache& fork, std::span<const int32_t> ids, int64_t begin,
                        int64_t end, const GatherContext& context, QueryCapture& capture) {
  const int64_t n_ubatch = executor.engine().options().n_ubatch;
  for (int64_t at = begin; at < end; at += n_ubatch) {
    if (is_cancelled(context.cancel)) return cancelled_error();
    const auto n_step = static_cast<size_t>(std::min(n_ubatch, end - at));
    const StepItem item{&fork, ids.subspan(static_cast<size_t>(at), n_step)};
    SH_RETURN_IF_ERROR(run_step(executor, std::span(&item, 1), capture, context.coverage));
  }
  return {};
}

}  // namespace

Result<QuerySets> reread(Executor& executor, const SequenceCache& sequence, std::span<const int32_t> ids,
                         Pos begin, Pos end, double fraction, const GatherContext& context, StudyStats* stats) {
  const Stopwatch watch;
  SH_CHECK(begin >= sequence.compacted_end() && end <= sequence.next_pos(), "only live rows can be read again");
  QueryCapture capture(executor.engine().model(), executor.engine().kv_layout(), context.max_query_bytes);
  const auto pieces = pieces_of(begin.value, end.value, fraction);
  int64_t n_fed = 0;
  for (const auto& [from, to] : pieces) {
    SequenceCache fork = sequence.fork();
    SH_RETURN_IF_ERROR(fork.truncate(Pos(from)));
    SH_RETURN_IF_ERROR(read_piece(executor, fork, ids, from, to, context, capture));
    n_fed += to - from;
    if (context.on_progress)
      context.on_progress(static_cast<double>(to - begin.value) / static_cast<double>(end - begin));
  }
  if (stats != nullptr) {
    stats->n_tokens += n_fed;
    stats->seconds += watch.seconds();
  }
  return capture.take();
}

Result<QuerySets> repeat_prefill(Executor& executor, const SequenceCache& sequence, std::span<const int32_t> ids,
                                 double fraction, const GatherContext& context, Replay* replay,
                                 StudyStats* stats) {
  const Stopwatch watch;
  Engine& engine = executor.engine();
  SH_ASSIGN(const std::vector<int32_t> opening, repeat_opening(engine, ids));
  QueryCapture capture(engine.model(), engine.kv_layout(), context.max_query_bytes);
  SequenceCache base = sequence.fork();
  SH_RETURN_IF_ERROR(executor.prefill(base, opening));
  auto n_fed = static_cast<int64_t>(opening.size());
  const auto n = static_cast<int64_t>(ids.size());
  if (replay != nullptr) replay->opening = opening;
  for (const auto& [from, to] : pieces_of(0, n, fraction)) {
    SequenceCache fork = base.fork();
    Replay::Part part = repeat_part(ids, from, to);
    SH_RETURN_IF_ERROR(read_piece(executor, fork, ids, from - part.n_prompt, to, context, capture));
    n_fed += static_cast<int64_t>(part.ids.size());
    if (replay != nullptr) replay->parts.push_back(std::move(part));
    if (context.on_progress) context.on_progress(static_cast<double>(to) / static_cast<double>(n));
  }
  if (stats != nullptr) {
    stats->n_tokens += n_fed;
    stats->seconds += watch.seconds();
  }
  return capture.take();
}

QuerySets merge(std::vector<QuerySets> sets) {
  QuerySets merged;
  for (QuerySets& part : sets) {
    if (merged.empty()) {
      merged = std::move(part);
      continue;
    }
    for (size_t layer = 0; layer < merged.size(); ++layer)
      for (size_t head = 0; head < merged[layer].size(); ++head) {
        QuerySet& to = merged[layer][head];
        const QuerySet& from = part[layer][head];
        const auto append = [](Mat<float>& a, const Mat<float>& b) {
          a.data.insert(a.data.end(), b.data.begin(), b.data.end());
          a.rows += b.rows;
          a.cols = b.cols;
        };
        append(to.queries, from.queries);
        append(to.out, from.out);
        to.pos.insert(to.pos.end(), from.pos.begin(), from.pos.end());
        to.lse.insert(to.lse.end(), from.lse.begin(), from.lse.end());
      }
  }
  return merged;
}

}  // namespace sh::engine
