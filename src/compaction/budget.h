// SPDX-License-Identifier: MIT
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "base/result.h"
#include "compaction/method.h"

namespace sh::compaction {

/// What may be kept, over all heads together. A limit of -1 does not bind; at least one must.
struct BudgetLimits {
  int64_t max_region_rows = -1;  // sum over heads of kept region rows
  int64_t max_blocks = -1;       // sum over heads of ceil((fixed + kept) / block_rows): real memory
  int32_t block_rows = 16;
};

/// Rows to keep of each head under the limits; a head keeps its best. `global` takes rows in the order of their
/// scores over all heads, `uniform` one row a head in turn. A head that needs a new block takes it from what all
/// share; when none is left, blocks that are paid for are filled. Ties go to the lower head, then the lower row. A
/// head may get 0. Under one limit, raising it never takes a row away. Rows of score -inf or NaN are never kept.
/// Shapes:  scores[h] is [T_h], higher is more wanted; fixed_rows [n_heads].
/// Cost:    O(N log N) for N rows of all heads.
/// Errors:  invalid_argument when even the fixed rows exceed max_blocks (says by how much), or no limit is given.
Result<std::vector<int64_t>> plan_budget(BudgetPolicy policy, std::span<const std::vector<float>> scores,
                                         std::span<const int64_t> fixed_rows, const BudgetLimits& limits);

}  // namespace sh::compaction
