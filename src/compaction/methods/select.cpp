// SPDX-License-Identifier: MIT
#include "compaction/method.h"

namespace sh::compaction {

extern const CompactionMethod methods_select;
const CompactionMethod methods_select = {
    .name = "select",
    .summary = "Keeps the rows that a quick repetition of samples of the text attends most, with one budget over "
               "all heads; no fit.",
    .source = "maximum attention as in KVzip (arXiv 2505.23416), over queries of a repeated reading of one token "
              "in two hundred, 24 at most, each weighted by the region's share of its attention",
    .queries = QuerySource::repeat_prefill,
    .score = RowScore::max,
    .weighting = Weighting::attention_share,
    .fit = Fit::none,
    .budget = BudgetPolicy::global,
    .reread_fraction = 0.005,
    .max_reread_tokens = 24,
    .n_sinks = 4,
    .n_recent = 4,
};

}  // namespace sh::compaction
