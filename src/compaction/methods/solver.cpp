// SPDX-License-Identifier: MIT
#include "compaction/method.h"

namespace sh::compaction {

extern const CompactionMethod methods_solver;
const CompactionMethod methods_solver = {
    .name = "solver",
    .summary =
        "Repeats samples of the text to learn what is attended, keeps those rows and fits biases and "
        "values to them.",
    .source = "Attention Matching, arXiv 2602.16284, with highest-attention rows and repeat-prefill queries",
    .queries = QuerySource::repeat_prefill,
    .score = RowScore::max_or_unasked,
    .weighting = Weighting::attention_share,
    .fit = Fit::both,
    .budget = BudgetPolicy::global,
    .max_reread_tokens = 32,
    .n_sinks = 4,
    .n_recent = 4,
};

}  // namespace sh::compaction
