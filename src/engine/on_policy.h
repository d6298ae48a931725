// SPDX-License-Identifier: MIT
// Compaction layer by layer inside one forward: each layer meets the queries that the model asks over the compacted
// layers before it.
#pragma once

#include <span>
#include <vector>

#include "compaction/compactor.h"
#include "engine/reference_queries.h"
#include "engine/region_plan.h"

namespace sh::engine {

struct LayerwiseInput {
  const kv::SequenceCache* sequence = nullptr;
  const Replay* replay = nullptr;
  std::span<const HeadPlan> plans;                    // layer-major
  std::span<const std::vector<float>> scores;         // of the queries over the uncompacted cache, one a plan
  std::span<const int64_t> budget;                    // one a plan
  std::span<const std::vector<int32_t>> given_rows;   // one a plan to keep these rows, or empty to choose anew
};

/// Feeds the replay once, all its conversations as one forward. In each layer the queries are those over the compacted
/// layers before, while the layer itself is still whole: its heads are solved, the layer is exchanged under the
/// running forward, and attention runs again over the compacted rows.
/// Returns what replaces each plan's region. The sequence is unchanged.
/// Errors: invalid_argument without a replay; out_of_memory; cancelled.
/// Cost:   one forward of at most 8192 tokens, and the solve; the activations of those tokens are in memory at once.
/// Source: arXiv 2602.16284, on-policy compaction, which runs the layers before each one again; here they run once.
Result<std::vector<compaction::CompactHead>> solve_layer_by_layer(Executor& executor,
                                                                  const compaction::CompactionMethod& method,
                                                                  const LayerwiseInput& input,
                                                                  const compaction::SolveOptions& options,
                                                                  const compaction::SolveContext& context);

}  // namespace sh::engine
