// SPDX-License-Identifier: MIT
#include "compaction/method.h"

namespace sh::compaction {

extern const CompactionMethod methods_truncate;
const CompactionMethod methods_truncate = {
    .name = "truncate",
    .summary = "Baseline: keeps only the most recent rows; the start is forgotten.",
    .source = "what a context shift does",
    .queries = QuerySource::none,
    .score = RowScore::recency,
    .weighting = Weighting::none,
    .fit = Fit::none,
    .budget = BudgetPolicy::uniform,
    .n_sinks = 0,
    .n_recent = 0,
};

}  // namespace sh::compaction
