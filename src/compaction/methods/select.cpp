// SPDX-License-Identifier: MIT
#include "compaction/method.h"

namespace sh::compaction {

extern const CompactionMethod methods_select;
const CompactionMethod methods_select = {
    .name = "select",
    .summary =
        "Reads twenty tokens of the text again to see which heads look up single rows, keeps those heads' "
        "rows and what the others attend most, with one budget over all heads; no fit.",
    .source =
        "maximum attention as in KVzip (arXiv 2505.23416), over queries of a repeated reading, each weighted by "
        "the region's share of its attention; rows that a sample does not reach as in compaction/score.h",
    .queries = QuerySource::repeat_prefill,
    .score = RowScore::max_or_unasked,
    .weighting = Weighting::attention_share,
    .fit = Fit::none,
    .budget = BudgetPolicy::global,
    .max_reread_tokens = 20,
    .n_sinks = 4,
    .n_recent = 4,
};

}  // namespace sh::compaction
