// SPDX-License-Identifier: MIT
#include "compaction/method.h"

namespace sh::compaction {

extern const CompactionMethod methods_chunked;
const CompactionMethod methods_chunked = {
    .name = "chunked",
    .summary = "As solver, fitted in stretches of the text on their own: for long contexts.",
    .source = "Attention Matching, arXiv 2602.16284, chunked compaction over the cache of one prefill",
    .queries = QuerySource::repeat_prefill,
    .score = RowScore::max_or_unasked,
    .weighting = Weighting::attention_share,
    .fit = Fit::both,
    .budget = BudgetPolicy::global,
    .schedule = Schedule::chunked,
    .reread_fraction = 0.03,
    .n_sinks = 4,
    .n_recent = 4,
};

}  // namespace sh::compaction
