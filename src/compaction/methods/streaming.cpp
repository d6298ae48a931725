// SPDX-License-Identifier: MIT
#include "compaction/method.h"

namespace sh::compaction {

extern const CompactionMethod methods_streaming;
const CompactionMethod methods_streaming = {
    .name = "streaming",
    .summary = "Baseline: keeps the first four rows and the most recent ones.",
    .source = "StreamingLLM, arXiv 2309.17453",
    .queries = QuerySource::none,
    .score = RowScore::recency,
    .weighting = Weighting::none,
    .fit = Fit::none,
    .budget = BudgetPolicy::uniform,
    .n_sinks = 4,
    .n_recent = 0,
};

}  // namespace sh::compaction
