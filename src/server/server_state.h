// SPDX-License-Identifier: MIT
#pragma once

#include <atomic>
#include <cstdint>
#include <string>
#include <vector>

#include "engine/params.h"
#include "engine/scheduler.h"

namespace sh::server {

/// What all handlers share. The pointers are set before `is_ready` and stay.
struct ServerState {
  engine::ProgramParams params;
  int64_t started_unix_seconds = 0;
  std::atomic<bool> is_ready{false};
  engine::Engine* engine = nullptr;
  engine::Scheduler* scheduler = nullptr;
  std::vector<int32_t> end_tokens;  // of the vocabulary: banned by ignore_eos
  std::atomic<uint64_t> next_response_id{1};
};

/// "b<commits>-<hash>", the shape that dashboards parse.
std::string system_fingerprint();

}  // namespace sh::server
