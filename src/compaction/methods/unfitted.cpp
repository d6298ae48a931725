// SPDX-License-Identifier: MIT
#include "compaction/method.h"

namespace sh::compaction {

extern const CompactionMethod methods_unfitted;
const CompactionMethod methods_unfitted = {
    .name = "unfitted",
    .summary = "Baseline: the rows of self_study as they are, nothing fitted.",
    .source = "shows what the fit of self_study adds",
    .queries = QuerySource::self_study,
    .score = RowScore::max_or_unasked,
    .weighting = Weighting::attention_share,
    .fit = Fit::none,
    .budget = BudgetPolicy::global,
    .n_sinks = 4,
    .n_recent = 4,
};

}  // namespace sh::compaction
