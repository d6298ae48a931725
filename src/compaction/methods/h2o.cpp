// SPDX-License-Identifier: MIT
#include "compaction/method.h"

namespace sh::compaction {

extern const CompactionMethod methods_h2o;
const CompactionMethod methods_h2o = {
    .name = "h2o",
    .summary = "Baseline: the rows that all later tokens attended most on average, the same for every head.",
    .source = "H2O, arXiv 2306.14048",
    .queries = QuerySource::prefill,
    .score = RowScore::mean,
    .weighting = Weighting::none,
    .fit = Fit::none,
    .budget = BudgetPolicy::uniform,
    .n_sinks = 4,
    .n_recent = 4,
};

}  // namespace sh::compaction
