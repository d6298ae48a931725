// SPDX-License-Identifier: MIT
#include "compaction/method.h"

namespace sh::compaction {

extern const CompactionMethod methods_random;
const CompactionMethod methods_random = {
    .name = "random",
    .summary = "Baseline: rows drawn at random.",
    .source = "a floor for every selection",
    .queries = QuerySource::none,
    .score = RowScore::random,
    .weighting = Weighting::none,
    .fit = Fit::none,
    .budget = BudgetPolicy::uniform,
    .n_sinks = 4,
    .n_recent = 4,
};

}  // namespace sh::compaction
