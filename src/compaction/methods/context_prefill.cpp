// SPDX-License-Identifier: MIT
#include "compaction/method.h"

namespace sh::compaction {

extern const CompactionMethod methods_context_prefill;
const CompactionMethod methods_context_prefill = {
    .name = "context_prefill",
    .summary = "As solver, with the queries of reading the text itself.",
    .source = "Attention Matching, arXiv 2602.16284, context-prefill queries",
    .queries = QuerySource::prefill,
    .score = RowScore::max,
    .weighting = Weighting::attention_share,
    .fit = Fit::both,
    .budget = BudgetPolicy::global,
    .n_sinks = 4,
    .n_recent = 4,
};

}  // namespace sh::compaction
