// SPDX-License-Identifier: MIT
// Shares of the kept rows that the heads of a model want, measured on one conversation.
#pragma once

#include <atomic>
#include <span>

#include "compaction/head_profile.h"
#include "engine/compaction_report.h"
#include "engine/executor.h"

namespace sh::engine {

/// Measures every head's error against its size with the request's queries, and plans the sizes of least error at
/// the request's ratio. The cache is not changed.
/// Errors: as compact_sequence().
Result<compaction::HeadProfile> measure_profile(Executor& executor, const kv::SequenceCache& sequence,
                                                std::span<const int32_t> ids, const CompactionRequest& request,
                                                const std::atomic<bool>* cancel = nullptr);

}  // namespace sh::engine
