// SPDX-License-Identifier: MIT
// Least sum of errors over heads: rows, or whole blocks, in the order of what they save on convex error curves.
#include <algorithm>
#include <utility>

#include "compaction/allocation.h"

namespace sh::compaction {
namespace {

// Lower convex hull of a curve made non-increasing: more rows need not be worse, they could be left unused.
class Hull {
 public:
  struct Point {
    int64_t n_rows;
    double error;
  };

  Hull(std::span<const int64_t> n_rows, std::span<const double> errors) {
    for (size_t s = 0; s < n_rows.size(); ++s) {
      const Point next{n_rows[s], s == 0 ? errors[s] : std::min(errors[s], lowest_)};
      lowest_ = next.error;
      while (points_.size() >= 2 &&
             slope(points_[points_.size() - 2], points_.back()) >= slope(points_.back(), next))
        points_.pop_back();
      points_.push_back(next);
    }
  }
  const std::vector<Point>& points() const { return points_; }

  double at(int64_t n_rows) const {
    const auto right = std::lower_bound(points_.begin(), points_.end(), n_rows,
                                        [](const Point& point, int64_t n) { return point.n_rows < n; });
    if (right == points_.begin() || right->n_rows == n_rows) return right->error;
    const auto left = right - 1;
    return left->error + slope(*left, *right) * static_cast<double>(n_rows - left->n_rows);
  }
  static double slope(const Point& a, const Point& b) {
    return (b.error - a.error) / static_cast<double>(b.n_rows - a.n_rows);
  }

 private:
  std::vector<Point> points_;
  double lowest_ = 0;
};

// Rows that are taken one after the other, and what each of them (or all together, for a block) saves.
struct Piece {
  double gain;
  size_t head;
  int64_t n_rows;
};

void take_in_order_of_gain(std::vector<Piece> pieces, Allocation& allocation) {
  std::stable_sort(pieces.begin(), pieces.end(), [](const Piece& a, const Piece& b) { return a.gain > b.gain; });
  for (const Piece& piece : pieces)
    for (int64_t row = 0; row < piece.n_rows; ++row)
      if (!allocation.take(piece.head)) break;
  share_evenly(allocation);
}

std::vector<int64_t> best_rows_first(std::span<const Hull> hulls, Allocation allocation) {
  std::vector<Piece> pieces;
  for (size_t head = 0; head < hulls.size(); ++head) {
    const std::vector<Hull::Point>& points = hulls[head].points();
    for (size_t i = 1; i < points.size(); ++i) {
      const double gain = -Hull::slope(points[i - 1], points[i]);
      if (gain > 0) pieces.push_back({gain, head, points[i].n_rows - points[i - 1].n_rows});
    }
  }
  take_in_order_of_gain(std::move(pieces), allocation);
  return allocation.kept();
}

std::vector<int64_t> best_blocks_first(std::span<const Hull> hulls, int64_t block_rows, Allocation allocation) {
  // Places in blocks that the fixed rows pay for cost nothing.
  for (size_t head = 0; head < hulls.size(); ++head)
    for (int64_t n_free = allocation.spare(head); n_free > 0; --n_free) allocation.take(head);
  std::vector<Piece> pieces;
  for (size_t head = 0; head < hulls.size(); ++head)
    for (int64_t begin = allocation.kept()[head]; begin < allocation.n_keepable(head); begin += block_rows) {
      const int64_t end = std::min(begin + block_rows, allocation.n_keepable(head));
      const double gain = hulls[head].at(begin) - hulls[head].at(end);
      if (gain > 0) pieces.push_back({gain, head, end - begin});
    }
  take_in_order_of_gain(std::move(pieces), allocation);
  return allocation.kept();
}

double total_error(std::span<const Hull> hulls, std::span<const int64_t> kept) {
  double total = 0;
  for (size_t head = 0; head < hulls.size(); ++head) total += hulls[head].at(kept[head]);
  return total;
}

}  // namespace

std::vector<int64_t> share_by_sensitivity(const BudgetRequest& request) {
  std::vector<Hull> hulls;
  for (const ErrorCurve& curve : request.curves)
    hulls.emplace_back(curve.n_rows, errors_of(curve, request.minimise));
  const Allocation nothing(request);
  std::vector<int64_t> by_row = best_rows_first(hulls, nothing);
  if (request.limits.max_blocks < 0) return by_row;
  std::vector<int64_t> by_block = best_blocks_first(hulls, request.limits.block_rows, nothing);
  return total_error(hulls, by_block) <= total_error(hulls, by_row) ? by_block : by_row;
}

}  // namespace sh::compaction
