// SPDX-License-Identifier: MIT
// Positions of a conversation that has outgrown what the model was trained for, moved closer together.
#pragma once

#include "engine/executor.h"
#include "kv/sequence_cache.h"

namespace sh::engine {

/// Squeezes the positions of compacted rows, so that the conversation goes on within the trained range: rows
/// before `keep_end` keep theirs, rows from there to compacted_end() move from p to keep_end + floor((p -
/// keep_end) * (new_compacted_end - keep_end) / (compacted_end() - keep_end)), and all later rows move by the same
/// amount. Keys are turned to their new positions and encoded anew; compacted_end() and next_pos() become smaller,
/// tokens that follow take positions from there. Moving all rows by the same amount is exact under RoPE, squeezing
/// is not. Layers with a window see only rows near the end: all their rows move as the latest do, and what would
/// fall below position 0 is dropped. Where the window is longer than what the conversation becomes, they are
/// squeezed, too, and rows that the window hides are dropped. Commits whole or leaves the sequence as it was;
/// n_compactions() does not count it. Every time keys are rounded once more: on scribe a KL of 8e-7 for f16 keys,
/// 1e-4 for q8_0, 7e-3 for q4_0 (16 times: 2e-4, 2e-2, 0.1), so rarely and far is better than often and little.
/// Errors: invalid_argument (0 <= keep_end <= new_compacted_end <= compacted_end() expected), out_of_memory (rows
///         shared with another sequence).
/// Cost:   one pass over the cache, and a copy of it on the heap meanwhile.
Result<void> rebase(Executor& executor, kv::SequenceCache& sequence, kv::Pos keep_end, kv::Pos new_compacted_end);

}  // namespace sh::engine
