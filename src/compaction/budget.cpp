// SPDX-License-Identifier: MIT
#include "compaction/budget.h"

#include <fmt/format.h>

#include <algorithm>
#include <limits>
#include <numeric>

namespace sh::compaction {
namespace {

struct Candidate {
  float score;
  int32_t head;
  int32_t row;
};

// Gives rows to heads one at a time; a head that opens a new block pays for it from what all heads share.
class Allocation {
 public:
  Allocation(std::span<const int64_t> fixed_rows, const BudgetLimits& limits)
      : block_rows_(limits.block_rows),
        rows_left_(limits.max_region_rows < 0 ? std::numeric_limits<int64_t>::max() : limits.max_region_rows),
        blocks_left_(limits.max_blocks < 0 ? std::numeric_limits<int64_t>::max() : limits.max_blocks),
        kept_(fixed_rows.size(), 0),
        spare_(fixed_rows.size()) {
    for (size_t head = 0; head < fixed_rows.size(); ++head) {
      const int64_t n_blocks = (fixed_rows[head] + block_rows_ - 1) / block_rows_;
      spare_[head] = n_blocks * block_rows_ - fixed_rows[head];
      blocks_left_ -= n_blocks;
    }
  }
  int64_t blocks_left() const { return blocks_left_; }
  bool has_rows_left() const { return rows_left_ > 0; }
  const std::vector<int64_t>& kept() const { return kept_; }

  /// False if this head can take no more: nothing is spare and no block is left.
  bool take(size_t head) {
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

 private:
  int64_t block_rows_, rows_left_, blocks_left_;
  std::vector<int64_t> kept_;
  std::vector<int64_t> spare_;  // [n_heads] rows that fit into blocks already paid for
};

bool can_be_kept(float score) {
  return score > -std::numeric_limits<float>::infinity();
}

// One row a head in turn, so that no head is more than one row ahead of another that could still take.
void share_evenly(std::span<const std::vector<float>> scores, Allocation& allocation) {
  std::vector<int64_t> n_keepable(scores.size());
  for (size_t head = 0; head < scores.size(); ++head)
    n_keepable[head] = std::count_if(scores[head].begin(), scores[head].end(), can_be_kept);
  std::vector<size_t> open(scores.size());
  std::iota(open.begin(), open.end(), size_t{0});
  while (!open.empty()) {
    std::vector<size_t> still_open;
    for (const size_t head : open) {
      if (!allocation.has_rows_left()) return;
      if (allocation.kept()[head] < n_keepable[head] && allocation.take(head)) still_open.push_back(head);
    }
    open = std::move(still_open);
  }
}

void share_by_score(std::span<const std::vector<float>> scores, Allocation& allocation) {
  std::vector<Candidate> candidates;
  for (size_t head = 0; head < scores.size(); ++head)
    for (size_t row = 0; row < scores[head].size(); ++row)
      if (can_be_kept(scores[head][row]))
        candidates.push_back({scores[head][row], static_cast<int32_t>(head), static_cast<int32_t>(row)});
  std::sort(candidates.begin(), candidates.end(), [](const Candidate& a, const Candidate& b) {
    if (a.score != b.score) return a.score > b.score;
    return a.head != b.head ? a.head < b.head : a.row < b.row;
  });
  for (const Candidate& candidate : candidates) {
    if (!allocation.has_rows_left()) return;
    allocation.take(static_cast<size_t>(candidate.head));
  }
}

}  // namespace

Result<std::vector<int64_t>> plan_budget(BudgetPolicy policy, std::span<const std::vector<float>> scores,
                                         std::span<const int64_t> fixed_rows, const BudgetLimits& limits) {
  SH_CHECK(scores.size() == fixed_rows.size(), "one count of fixed rows a head");
  if (limits.max_region_rows < -1 || limits.max_blocks < -1 || limits.block_rows < 1)
    return Error{
        ErrorKind::invalid_argument,
        fmt::format(
            "compaction budget: {} rows, {} blocks of {} rows; limits are counts, or -1 for none, and a block "
            "has at least one row",
            limits.max_region_rows, limits.max_blocks, limits.block_rows)};
  if (limits.max_region_rows < 0 && limits.max_blocks < 0)
    return Error{ErrorKind::invalid_argument,
                 "compaction budget: neither a number of rows nor of blocks is given"};
  Allocation allocation(fixed_rows, limits);
  if (allocation.blocks_left() < 0)
    return Error{
        ErrorKind::invalid_argument,
        fmt::format(
            "compaction budget: the rows that must stay need {} blocks of {} rows, {} more than the {} allowed; "
            "ask for a lower ratio or pin less",
            limits.max_blocks - allocation.blocks_left(), limits.block_rows, -allocation.blocks_left(),
            limits.max_blocks)};
  if (policy == BudgetPolicy::uniform)
    share_evenly(scores, allocation);
  else
    share_by_score(scores, allocation);
  return allocation.kept();
}

}  // namespace sh::compaction
