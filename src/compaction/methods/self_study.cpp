// SPDX-License-Identifier: MIT
#include "compaction/method.h"

namespace sh::compaction {

extern const CompactionMethod methods_self_study;
const CompactionMethod methods_self_study = {
    .name = "self_study",
    .summary =
        "Lets the model question itself about the text, keeps the rows that it needed and fits biases and "
        "values.",
    .source = "Attention Matching, arXiv 2602.16284, with self-study queries (arXiv 2506.06266)",
    .queries = QuerySource::self_study,
    .score = RowScore::max_or_unasked,
    .weighting = Weighting::attention_share,
    .fit = Fit::both,
    .budget = BudgetPolicy::global,
    .n_sinks = 4,
    .n_recent = 4,
};

}  // namespace sh::compaction
