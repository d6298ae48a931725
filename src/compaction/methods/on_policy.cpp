// SPDX-License-Identifier: MIT
#include "compaction/method.h"

namespace sh::compaction {

extern const CompactionMethod methods_on_policy;
const CompactionMethod methods_on_policy = {
    .name = "on_policy",
    .summary = "As self_study, fitted again to the queries that the model asks over layers already compacted.",
    .source = "Attention Matching, arXiv 2602.16284, on-policy queries, in one pass over the layers",
    .queries = QuerySource::self_study,
    .score = RowScore::max_or_unasked,
    .weighting = Weighting::attention_share,
    .fit = Fit::both,
    .budget = BudgetPolicy::global,
    .schedule = Schedule::on_policy,
    .n_sinks = 4,
    .n_recent = 4,
};

}  // namespace sh::compaction
