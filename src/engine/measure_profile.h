// SPDX-License-Identifier: MIT
// Shares of the kept rows that the heads of a model want: measured on conversations, kept in a file, read back.
#pragma once

#include <atomic>
#include <span>
#include <string>

#include "compaction/head_profile.h"
#include "engine/compact_sequence.h"

namespace sh::engine {

/// How the request's budget shares out rows on one conversation at its ratio. The cache is not changed.
/// Errors: as compact_sequence(); invalid_argument for a budget that measures nothing (uniform, profile).
Result<compaction::HeadProfile> measure_profile(Executor& executor, const kv::SequenceCache& sequence,
                                                std::span<const int32_t> ids, const CompactionRequest& request,
                                                const std::atomic<bool>* cancel = nullptr,
                                                const CompactionProgress& on_progress = {});

/// Reads a profile of this model. Shares of window layers may be there or not.
/// Errors: not_found, io; invalid_argument naming the file (malformed, of another model, a head that is missing or
///         that the model has not).
Result<compaction::HeadProfile> load_profile(const Engine& engine, const std::string& path);

}  // namespace sh::engine
