// SPDX-License-Identifier: MIT
// Asks one cache what its document's references ask, and what it costs to decode from it.
#pragma once

#include <string>
#include <utility>
#include <vector>

#include "base/result.h"
#include "tools/eval_cell.h"
#include "tools/eval_subject.h"

namespace sh::tools {

/// A cache and what runs it: quantised caches have an engine of their own.
struct Probe {
  engine::Engine* engine;
  const kv::SequenceCache* cache;
};

/// References [first, first + count).
struct ReferenceRange {
  size_t first = 0, count = 0;
};
/// One item a reference, in their order, from copies of the cache. Errors: out_of_memory.
Result<std::vector<EvalItem>> measure_items(const Probe& probe, Subject& subject, ReferenceRange range,
                                            const std::string& method, double ratio);

/// Tokens a second of decoding from each of two caches, alternating, medians of the repeats.
Result<std::pair<double, double>> decode_speeds(const Probe& a, const Probe& b);

}  // namespace sh::tools
