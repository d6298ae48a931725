// SPDX-License-Identifier: MIT
// How many rows each head keeps.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "base/result.h"
#include "compaction/error_curve.h"
#include "compaction/method.h"

namespace sh::compaction {

/// What may be kept, over all heads together. A size of -1 does not bind; at least one size or the error must be
/// given.
struct BudgetLimits {
  int64_t max_region_rows = -1;  // sum over heads of kept region rows
  int64_t max_blocks = -1;       // sum over heads of ceil((fixed + kept) / block_rows): real memory
  int32_t block_rows = 16;
  double max_head_error = 0;  // > 0: a target instead of a size, for the 99th percentile of each head's curve
};

/// What an error curve says of a size: which of its numbers a budget minimises.
enum class CurveError { mean_square, p99, worst };
std::span<const double> errors_of(const ErrorCurve& curve, CurveError which);

struct BudgetRequest {
  BudgetPolicy policy = BudgetPolicy::global;
  std::span<const std::vector<float>> scores;  // [n_heads][T_h], higher is more wanted; -inf and NaN: never kept
  std::span<const int64_t> fixed_rows;         // [n_heads] rows outside the region, in the same blocks
  std::span<const ErrorCurve> curves;          // [n_heads] for sensitivity and for max_head_error, else empty
  std::span<const float> shares;               // [n_heads] for profile, not negative, else empty
  CurveError minimise = CurveError::mean_square;  // for sensitivity
  BudgetLimits limits;
};

/// Rows to keep of each head under the limits; a head keeps its best scored ones and may get 0.
///  - uniform: one row a head in turn.
///  - global: rows in the order of their scores over all heads.
///  - sensitivity: the least sum of errors over heads on the lower convex hulls of their curves (an error that
///    rises with the size counts as not rising). Rows go where one more saves most, whole blocks where blocks
///    bind; under both limits the better of the two orders.
///  - profile: the next row goes to the head that is furthest below its share (Sainte-Laguë's divisors), so that
///    rounding loses no row, and what a full head leaves goes to the others in proportion.
/// A head that needs a new block takes it from what all share; when none is left, blocks that are paid for are
/// filled. No row that the limits allow stays unused while any head has more: what a policy has no wish for is
/// shared out evenly. Ties go to the lower head, then the lower row. Under one limit, raising it never takes a row
/// away (sensitivity under blocks: never raises the sum of errors).
/// With max_head_error the policy has no say: each head keeps the least rows at which the 99th percentile of its
/// curve, linear between measured sizes, is at or below the target, or all of them; so does a head whose curve
/// was measured on no query.
/// Cost:    O(N log N) for N rows of all heads.
/// Errors:  invalid_argument when even the fixed rows exceed max_blocks (says by how much), when no limit is
/// given,
///          and when the target does not fit into the sizes (says what it needs).
Result<std::vector<int64_t>> plan_budget(const BudgetRequest& request);

}  // namespace sh::compaction
