// SPDX-License-Identifier: MIT
// Compactions as clients see them. Numbers that were not measured are null.
#pragma once

#include <vector>

#include "base/json.h"
#include "engine/scheduler.h"

namespace sh::server {

/// Rows of the region that a head held before the compaction and holds after it, mean over heads. Before the
/// first one of a conversation they are its tokens.
struct RegionRows {
  double before = 0, kept = 0;
};
RegionRows mean_region_rows(const engine::CompactionReport& report);

/// The replay before the swap: n_tokens is 0 and the rest null when nothing was replayed.
Json check_json(const engine::ReplayCheck& check);
/// The `compaction` object of responses: sizes, seconds, errors, verdict; n_compactions as GET /slots has it.
Json compaction_json(const engine::CompactionReport& report, bool is_automatic);
/// All compactions of a request as one object: sizes before the first and after the last, seconds summed, errors
/// of the last.
Json compaction_json(const std::vector<engine::CompactionEvent>& compactions);
/// What a slot's compaction is doing: {"state": "none" | "waiting" | "running" | "done" | "failed", "progress",
/// ...}.
Json compaction_state_json(const engine::SlotStatus& slot);
/// What was forgotten: the whole report with its text, by layer and head.
Json record_json(const engine::CompactionRecord& record);

}  // namespace sh::server
