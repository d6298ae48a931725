// SPDX-License-Identifier: MIT
#include "compaction/method.h"

namespace sh::compaction {

extern const CompactionMethod methods_snapkv;
const CompactionMethod methods_snapkv = {
    .name = "snapkv",
    .summary = "Baseline: the rows that the newest 64 tokens attend, averaged over neighbours, the same for every "
               "head.",
    .source = "SnapKV, arXiv 2404.14469",
    .queries = QuerySource::recent,
    .score = RowScore::mean,
    .weighting = Weighting::none,
    .fit = Fit::none,
    .budget = BudgetPolicy::uniform,
    .score_pool = 5,
    .n_sinks = 4,
    .n_recent = 16,
};

}  // namespace sh::compaction
