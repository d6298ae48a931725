// SPDX-License-Identifier: MIT
#pragma once

#include "base/json.h"
#include "engine/compact_sequence.h"

namespace sh::server {

/// Region rows that a head holds after the compaction, mean over heads.
double mean_kept_rows(const engine::CompactionReport& report);

/// The whole report with a line for every layer and head: what was kept, and how large the errors are.
Json report_json(const engine::CompactionReport& report);

}  // namespace sh::server
