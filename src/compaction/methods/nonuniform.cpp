// SPDX-License-Identifier: MIT
#include "compaction/method.h"

namespace sh::compaction {

extern const CompactionMethod methods_nonuniform;
const CompactionMethod methods_nonuniform = {
    .name = "nonuniform",
    .summary = "As solver, with budgets of layers and heads from the error that each measures at each size.",
    .source =
        "budgets per head as in Attention Matching (arXiv 2602.16284), but from this input instead of a "
        "stored file",
    .queries = QuerySource::repeat_prefill,
    .score = RowScore::max_or_unasked,
    .weighting = Weighting::attention_share,
    .fit = Fit::both,
    .budget = BudgetPolicy::sensitivity,
    .reread_fraction = 0.1,
    .n_sinks = 4,
    .n_recent = 4,
};

}  // namespace sh::compaction
