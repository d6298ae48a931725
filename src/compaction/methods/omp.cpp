// SPDX-License-Identifier: MIT
#include "compaction/method.h"

namespace sh::compaction {

extern const CompactionMethod methods_omp;
const CompactionMethod methods_omp = {
    .name = "omp",
    .summary = "As solver, with rows picked one after the other by what attention mass is still missing.",
    .source = "Attention Matching, arXiv 2602.16284, with orthogonal matching pursuit",
    .queries = QuerySource::repeat_prefill,
    .score = RowScore::max_or_unasked,
    .weighting = Weighting::attention_share,
    .selection = Selection::omp,
    .fit = Fit::both,
    .budget = BudgetPolicy::global,
    .reread_fraction = 0.018,
    .max_reread_tokens = 128,
    .n_sinks = 4,
    .n_recent = 4,
};

}  // namespace sh::compaction
