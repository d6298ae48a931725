// SPDX-License-Identifier: MIT
// What reference queries see in a region: the part that scoring and fitting share.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "base/aligned.h"
#include "base/mat_view.h"
#include "base/result.h"
#include "compaction/problem.h"
#include "kernels/kernel_set.h"

namespace sh::compaction {

/// Errors: invalid_argument when shapes contradict each other, naming layer and head.
Result<void> check_shapes(const HeadProblem& problem);

/// Keys and values of region rows [begin, end), a stretch of for_stretches().
inline MatView<const float> keys_of(const HeadProblem& problem, int64_t begin, int64_t end) {
  return problem.reader != nullptr ? problem.reader->keys(begin, end) : problem.keys.slice(begin, end - begin);
}
inline MatView<const float> values_of(const HeadProblem& problem, int64_t begin, int64_t end) {
  return problem.reader != nullptr ? problem.reader->values(begin, end) : problem.values.slice(begin, end - begin);
}
/// 256 KiB of a width of 128, decoded: keys or values of a stretch stay in the second cache.
inline constexpr int64_t kStretchRows = 512;
/// fn(begin, end) for stretches that a reader gives at once, or for all rows where they lie ready.
template <typename Fn>
void for_stretches(const HeadProblem& problem, Fn&& fn) {
  const int64_t n_rows = problem.keys.rows, n = problem.reader != nullptr ? kStretchRows : n_rows;
  for (int64_t begin = 0; begin < n_rows; begin += n) fn(begin, begin + n < n_rows ? begin + n : n_rows);
}

/// Rows whose key, value and bias are finite (and keys and values below 1e15). Others have no place in a softmax:
/// they count as absent and are never kept.
std::vector<uint8_t> finite_rows(const HeadProblem& problem);

/// Indices of queries that are finite (and below 1e15), increasing, at most `max_queries`: of more, one is drawn
/// from each of as many equal stretches. Drawn, not strided, because queries of a group's heads lie interleaved
/// and a stride would pick the same head every time.
std::vector<int64_t> pick_queries(const HeadProblem& problem, int64_t max_queries);

bool has_nonfinite_query(const HeadProblem& problem);

/// Softmax of one region for tiles of queries.
class RegionSoftmax {
 public:
  RegionSoftmax(const HeadProblem& problem, const kernels::KernelSet& kernels);

  /// Queries that compute() takes at once: the tile stays within the cache.
  int64_t max_tile() const { return max_tile_; }

  /// Computes exp(score - maximum) of every region row for each query; what the query does not see has 0.
  /// A query whose scores overflow has lse NaN, one that sees nothing lse -inf; both have zero weights.
  void compute(std::span<const int64_t> queries);

  const float* weights(int64_t i) const { return scores_.data() + i * n_rows_; }  // [T] of the tile's query i
  MatView<const float> weights_of_tile(int64_t n) const { return {scores_.data(), n, n_rows_}; }
  float sum(int64_t i) const { return sum_[static_cast<size_t>(i)]; }  // of weights(i)
  float lse(int64_t i) const { return lse_[static_cast<size_t>(i)]; }

  /// π: the part of the query's whole attention that the region gets; 1 when the problem does not say.
  float share(int64_t query, float lse_of_region) const;
  /// Scores of some rows for one query, with mask and bias, not exponentiated: -inf where it sees nothing.
  void scores_of(int64_t query, std::span<const int32_t> rows, float* out) const;

  const HeadProblem& problem() const { return problem_; }
  const std::vector<uint8_t>& row_is_finite() const { return row_is_finite_; }
  int64_t n_finite_rows() const { return n_finite_rows_; }
  /// Values of a stretch, rows that are not finite replaced by 0.
  MatView<const float> values(int64_t begin, int64_t end);
  /// Rows that a reader gives are looked at when they are read for something else: a pass over all of them only to
  /// see that they are finite was a tenth of a selection. So weights may have been computed with rows whose values
  /// turn out not to be finite. Reads what was not read yet; true, once, if there were such rows: then all that was
  /// computed before has to be computed again.
  bool found_late();
  /// All values in the same way. Needs: they lie ready.
  MatView<const float> values() const { return clean_values_.rows > 0 ? clean_values_.view() : problem_.values; }

 private:
  int64_t n_visible(int64_t query) const;
  void look_at(MatView<const float> rows, int64_t begin);
  void finish_row(float* scores, int64_t n_visible, int64_t i);

  HeadProblem problem_;  // borrows what the caller's borrows
  const kernels::KernelSet& kernels_;
  int64_t n_rows_, max_tile_, n_finite_rows_ = 0;
  std::vector<uint8_t> row_is_finite_;
  int64_t n_keys_seen_, n_values_seen_;  // rows that were looked at, from the first on
  bool found_late_ = false;
  Mat<float> clean_values_;
  std::vector<float> queries_;  // [max_tile, d]
  /// The thread's buffer for as long as this lives: a fresh one for each of hundreds of heads is 1 MiB of page
  /// faults every time (a third of a score pass of 42 queries where a fault takes 15 us).
  class Lease {
   public:
    explicit Lease(size_t n);
    ~Lease();
    Lease(const Lease&) = delete;
    Lease& operator=(const Lease&) = delete;
    float* data() { return buffer_.data(); }
    const float* data() const { return buffer_.data(); }

   private:
    AlignedBuffer<float> buffer_;
  };
  Lease scores_;  // [max_tile, T]
  std::vector<float> sum_, lse_;
};

}  // namespace sh::compaction
