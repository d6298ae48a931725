// SPDX-License-Identifier: MIT
#include "compaction/method.h"

namespace sh::compaction {

extern const CompactionMethod methods_kvzip;
const CompactionMethod methods_kvzip = {
    .name = "kvzip",
    .summary = "Baseline: the rows that a full repetition of the text attends most, over all heads; no fit.",
    .source = "KVzip, arXiv 2505.23416",
    .queries = QuerySource::repeat_prefill,
    .score = RowScore::max,
    .weighting = Weighting::none,
    .fit = Fit::none,
    .budget = BudgetPolicy::global,
    .n_sinks = 4,
    .n_recent = 4,
};

}  // namespace sh::compaction
