// SPDX-License-Identifier: MIT
#pragma once

namespace sh::engine {

/// Why an answer ended.
enum class StopReason { none, eos, limit, word, context_full, cancelled, failed };

}  // namespace sh::engine
