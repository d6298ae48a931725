// SPDX-License-Identifier: MIT
#include "compaction/budget.h"

#include <fmt/format.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <limits>
#include <numeric>
#include <queue>

#include "base/check.h"
#include "compaction/allocation.h"

namespace sh::compaction {
namespace {

bool can_be_kept(float score) {
  return score > -std::numeric_limits<float>::infinity();
}

int64_t limit_or_unlimited(int64_t limit) {
  return limit < 0 ? std::numeric_limits<int64_t>::max() : limit;
}

int64_t n_blocks(int64_t n_rows, int64_t block_rows) {
  return (n_rows + block_rows - 1) / block_rows;
}

/// A row, so that the better one is the smaller number: the score's bits turned round, then heads and rows in
/// their order.
using Candidate = uint64_t;
Candidate candidate_of(float score, size_t index) {
  const auto bits = std::bit_cast<uint32_t>(score + 0.0f);  // -0 is 0
  const uint32_t ascending = (bits & 0x80000000u) != 0 ? ~bits : bits | 0x80000000u;
  return (uint64_t{~ascending} << 32) | index;
}

/// Rows over all heads from the best score down. Only as many as can be taken are gathered and sorted, by the
/// count of candidates with the same upper bits: of a million rows an eighth, 36 -> 13 ms.
void share_by_score(std::span<const std::vector<float>> scores, Allocation& allocation) {
  constexpr int kBinBits = 16;
  const auto bin_of = [](Candidate candidate) { return static_cast<size_t>(candidate >> (64 - kBinBits)); };
  std::vector<size_t> first;  // [n_heads] candidates before the head's
  std::vector<int64_t> n_in_bin(size_t{1} << kBinBits, 0);
  size_t n_rows = 0;
  for (const std::vector<float>& of_head : scores) {
    first.push_back(n_rows);
    n_rows += of_head.size();
    for (const float score : of_head)
      if (can_be_kept(score)) ++n_in_bin[bin_of(candidate_of(score, 0))];
  }
  SH_CHECK(n_rows <= std::numeric_limits<uint32_t>::max(), "rows over all heads are numbered in 32 bits");
  // Where blocks run out before rows, what is left goes to heads with room in theirs: ever longer stretches, as
  // fewer and fewer candidates can still be taken.
  std::vector<Candidate> stretch;
  int64_t n_stretch = 0;
  for (size_t begin = 0, end = 0; begin < n_in_bin.size() && allocation.n_most() > 0; begin = end) {
    const int64_t n_wanted = std::max(2 * n_stretch, allocation.n_most());
    for (n_stretch = 0; end < n_in_bin.size() && n_stretch < n_wanted; ++end) n_stretch += n_in_bin[end];
    stretch.clear();
    stretch.reserve(static_cast<size_t>(n_stretch));
    for (size_t head = 0; head < scores.size(); ++head)
      for (size_t row = 0; row < scores[head].size(); ++row) {
        const Candidate candidate = candidate_of(scores[head][row], first[head] + row);
        const size_t bin = bin_of(candidate);
        if (bin >= begin && bin < end && can_be_kept(scores[head][row])) stretch.push_back(candidate);
      }
    std::sort(stretch.begin(), stretch.end());
    for (auto next = stretch.begin(); next != stretch.end() && allocation.has_rows_left(); ++next) {
      const auto index = static_cast<size_t>(*next & std::numeric_limits<uint32_t>::max());
      const auto head = std::upper_bound(first.begin(), first.end(), index) - first.begin() - 1;
      allocation.take(static_cast<size_t>(head));
    }
  }
}

void share_by_profile(std::span<const float> shares, Allocation& allocation) {
  struct Claim {
    double rows_per_share;  // after half of the next row: what Sainte-Laguë's divisors order by
    size_t head;
    bool operator<(const Claim& other) const {  // the queue's top is the greatest
      return rows_per_share != other.rows_per_share ? rows_per_share > other.rows_per_share : head > other.head;
    }
  };
  std::priority_queue<Claim> claims;
  const auto claim_next = [&](size_t head) {
    claims.push({(static_cast<double>(allocation.kept()[head]) + 0.5) / static_cast<double>(shares[head]), head});
  };
  for (size_t head = 0; head < shares.size(); ++head)
    if (shares[head] > 0) claim_next(head);
  while (!claims.empty() && allocation.has_rows_left()) {
    const size_t head = claims.top().head;
    claims.pop();
    if (allocation.take(head)) claim_next(head);
  }
  share_evenly(allocation);
}

// The least rows at which the curve is at or below the target, linear between its sizes: as errors fall ever more
// slowly, that is on the safe side.
int64_t rows_for(const ErrorCurve& curve, double target) {
  if (curve.n_queries == 0) return curve.n_rows.back();
  const size_t n_sizes = curve.n_rows.size();
  size_t s = 0;
  while (s < n_sizes && !(curve.p99[s] <= target)) ++s;
  if (s == n_sizes) return curve.n_rows.back();
  if (s == 0) return 0;
  const double above = curve.p99[s - 1], below = curve.p99[s];
  const int64_t gap = curve.n_rows[s] - curve.n_rows[s - 1];
  const double n_more = std::ceil(static_cast<double>(gap) * (above - target) / (above - below));
  return curve.n_rows[s - 1] + std::clamp<int64_t>(static_cast<int64_t>(n_more), 1, gap);
}

Result<std::vector<int64_t>> meet_target(const BudgetRequest& request) {
  const BudgetLimits& limits = request.limits;
  std::vector<int64_t> kept;
  int64_t n_rows_needed = 0, n_blocks_needed = 0;
  for (size_t head = 0; head < request.curves.size(); ++head) {
    kept.push_back(rows_for(request.curves[head], limits.max_head_error));
    n_rows_needed += kept.back();
    n_blocks_needed += n_blocks(request.fixed_rows[head] + kept.back(), limits.block_rows);
  }
  if (n_rows_needed <= limit_or_unlimited(limits.max_region_rows) &&
      n_blocks_needed <= limit_or_unlimited(limits.max_blocks))
    return kept;
  std::string allowed;
  if (limits.max_region_rows >= 0) allowed = fmt::format("{} rows", limits.max_region_rows);
  if (limits.max_blocks >= 0)
    allowed += fmt::format("{}{} blocks", allowed.empty() ? "" : " and ", limits.max_blocks);
  return Error{ErrorKind::invalid_argument,
               fmt::format("compaction budget: an error of at most {} in every head needs {} rows in {} blocks of "
                           "{} rows, but {} are allowed; ask for a lower ratio or allow a larger error",
                           limits.max_head_error, n_rows_needed, n_blocks_needed, limits.block_rows, allowed)};
}

Result<void> check_limits(const BudgetLimits& limits) {
  if (limits.max_region_rows < -1 || limits.max_blocks < -1 || limits.block_rows < 1)
    return Error{
        ErrorKind::invalid_argument,
        fmt::format(
            "compaction budget: {} rows, {} blocks of {} rows; limits are counts, or -1 for none, and a block "
            "has at least one row",
            limits.max_region_rows, limits.max_blocks, limits.block_rows)};
  if (!(limits.max_head_error >= 0) || !std::isfinite(limits.max_head_error))
    return Error{ErrorKind::invalid_argument,
                 fmt::format("compaction budget: a target of {} for the error of a head; expected a positive "
                             "number, or 0 for no target",
                             limits.max_head_error)};
  if (limits.max_region_rows < 0 && limits.max_blocks < 0 && limits.max_head_error == 0)
    return Error{ErrorKind::invalid_argument,
                 "compaction budget: neither a number of rows nor of blocks nor a target for the error is given"};
  return {};
}

void check_inputs(const BudgetRequest& request) {
  const size_t n_heads = request.scores.size();
  SH_CHECK(request.fixed_rows.size() == n_heads, "one count of fixed rows a head");
  if (request.policy == BudgetPolicy::sensitivity || request.limits.max_head_error > 0) {
    SH_CHECK(request.curves.size() == n_heads, "one error curve a head");
    for (size_t head = 0; head < n_heads; ++head) {
      const ErrorCurve& curve = request.curves[head];
      SH_CHECK(!curve.n_rows.empty() && curve.n_rows.front() == 0 &&
                   curve.n_rows.back() == count_keepable(request.scores[head]),
               "a curve goes from no rows to all that can be kept");
      SH_CHECK(curve.mean_square.size() == curve.n_rows.size() && curve.p99.size() == curve.n_rows.size() &&
                   curve.worst.size() == curve.n_rows.size(),
               "one error a size");
    }
  }
  if (request.policy == BudgetPolicy::profile && !(request.limits.max_head_error > 0)) {
    SH_CHECK(request.shares.size() == n_heads, "one share a head");
    for (const float share : request.shares)
      SH_CHECK(share >= 0 && std::isfinite(share), "shares are not negative");
  }
}

}  // namespace

std::span<const double> errors_of(const ErrorCurve& curve, CurveError which) {
  switch (which) {
    case CurveError::mean_square:
      return curve.mean_square;
    case CurveError::p99:
      return curve.p99;
    case CurveError::worst:
      return curve.worst;
  }
  return {};
}

int64_t count_keepable(std::span<const float> scores) {
  return std::count_if(scores.begin(), scores.end(), can_be_kept);
}

Allocation::Allocation(const BudgetRequest& request)
    : block_rows_(request.limits.block_rows),
      rows_left_(limit_or_unlimited(request.limits.max_region_rows)),
      blocks_left_(limit_or_unlimited(request.limits.max_blocks)),
      kept_(request.scores.size(), 0) {
  for (size_t head = 0; head < request.scores.size(); ++head) {
    const int64_t n_fixed = request.fixed_rows[head], n_fixed_blocks = n_blocks(n_fixed, block_rows_);
    n_keepable_.push_back(count_keepable(request.scores[head]));
    spare_.push_back(n_fixed_blocks * block_rows_ - n_fixed);
    blocks_left_ -= n_fixed_blocks;
  }
}

int64_t Allocation::n_most() const {
  const int64_t n_spare = std::accumulate(spare_.begin(), spare_.end(), int64_t{0});
  const int64_t most_blocks = (std::numeric_limits<int64_t>::max() - n_spare) / block_rows_;
  return std::min(rows_left_, n_spare + std::min(blocks_left_, most_blocks) * block_rows_);
}

bool Allocation::take(size_t head) {
  if (is_full(head) || rows_left_ == 0) return false;
  if (spare_[head] == 0) {
    if (blocks_left_ == 0) return false;
    --blocks_left_;
    spare_[head] = block_rows_;
  }
  --spare_[head];
  --rows_left_;
  ++kept_[head];
  return true;
}

void share_evenly(Allocation& allocation) {
  std::vector<size_t> open(allocation.n_heads());
  std::iota(open.begin(), open.end(), size_t{0});
  while (!open.empty()) {
    std::vector<size_t> still_open;
    for (const size_t head : open)
      if (allocation.take(head)) still_open.push_back(head);
    open = std::move(still_open);
  }
}

Result<std::vector<int64_t>> plan_budget(const BudgetRequest& request) {
  check_inputs(request);
  const BudgetLimits& limits = request.limits;
  SH_RETURN_IF_ERROR(check_limits(limits));
  Allocation allocation(request);
  if (allocation.blocks_left() < 0)
    return Error{
        ErrorKind::invalid_argument,
        fmt::format(
            "compaction budget: the rows that must stay need {} blocks of {} rows, {} more than the {} allowed; "
            "ask for a lower ratio, or keep and pin fewer tokens",
            limits.max_blocks - allocation.blocks_left(), limits.block_rows, -allocation.blocks_left(),
            limits.max_blocks)};
  if (limits.max_head_error > 0) return meet_target(request);
  switch (request.policy) {
    case BudgetPolicy::uniform:
      share_evenly(allocation);
      break;
    case BudgetPolicy::global:
      share_by_score(request.scores, allocation);
      break;
    case BudgetPolicy::sensitivity:
      return share_by_sensitivity(request);
    case BudgetPolicy::profile:
      share_by_profile(request.shares, allocation);
      break;
  }
  return allocation.kept();
}

}  // namespace sh::compaction
