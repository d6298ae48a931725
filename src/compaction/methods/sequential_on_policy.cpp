// SPDX-License-Identifier: MIT
#include "compaction/method.h"

namespace sh::compaction {

extern const CompactionMethod methods_sequential_on_policy;
const CompactionMethod methods_sequential_on_policy = {
    .name = "sequential_on_policy",
    .alias = "sequential",
    .summary =
        "As self_study, rows chosen and fitted layer by layer with the queries asked over the compacted "
        "layers before.",
    .source = "Attention Matching, arXiv 2602.16284, on-policy queries, in one pass over the layers",
    .queries = QuerySource::self_study,
    .score = RowScore::max_or_unasked,
    .weighting = Weighting::attention_share,
    .fit = Fit::both,
    .budget = BudgetPolicy::global,
    .schedule = Schedule::layer_sequential,
    .n_sinks = 4,
    .n_recent = 4,
};

}  // namespace sh::compaction
