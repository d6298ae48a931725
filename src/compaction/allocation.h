// SPDX-License-Identifier: MIT
// The accounting under a budget, shared by its policies.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "compaction/budget.h"

namespace sh::compaction {

/// Rows of a head that may be kept.
int64_t count_keepable(std::span<const float> scores);

/// Gives rows to heads one at a time; a head that opens a new block pays for it from what all heads share.
class Allocation {
 public:
  explicit Allocation(const BudgetRequest& request);

  int64_t blocks_left() const { return blocks_left_; }  // negative if the fixed rows alone are too many
  bool has_rows_left() const { return rows_left_ > 0; }
  /// No more rows than so many can be taken by all heads together.
  int64_t n_most() const;
  int64_t spare(size_t head) const { return spare_[head]; }  // rows that fit into blocks already paid for
  bool is_full(size_t head) const { return kept_[head] == n_keepable_[head]; }
  int64_t n_keepable(size_t head) const { return n_keepable_[head]; }
  size_t n_heads() const { return kept_.size(); }
  const std::vector<int64_t>& kept() const { return kept_; }  // [n_heads]

  /// False if this head can take no more, now or later: it has all its rows, or no limit lets it have another.
  bool take(size_t head);

 private:
  int64_t block_rows_, rows_left_, blocks_left_;
  std::vector<int64_t> n_keepable_, kept_, spare_;  // [n_heads]
};

/// One row a head in turn, to those that can still take.
void share_evenly(Allocation& allocation);

/// Least sum of errors over heads. The request has a curve for each head.
std::vector<int64_t> share_by_sensitivity(const BudgetRequest& request);

}  // namespace sh::compaction
