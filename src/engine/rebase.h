// SPDX-License-Identifier: MIT
// Positions of a conversation that has outgrown what the model was trained for, moved closer together.
#pragma once

#include "engine/executor.h"
#include "kv/sequence_cache.h"

namespace sh::engine {

/// Squeezes the positions of compacted rows, so that the conversation goes on within the trained range. Rows
/// before `keep_end` keep theirs; rows from there to compacted_end() move from p to keep_end +
/// floor((p - keep_end) * c) with c = (new_compacted_end - keep_end) / (compacted_end() - keep_end); all later
/// rows move by the same amount. Keys are turned to their new positions and encoded anew; compacted_end() and
/// next_pos() become smaller, and tokens that follow take positions from there. Commits whole or leaves the
/// sequence as it was; n_compactions() does not count it, n_logical() stays.
///
/// Moving all rows by the same amount is exact under RoPE, squeezing is not. Measured on scribe, 8x self_study:
/// after c = 0.5 and 0.25 it keeps 41 and 41 of 41 answers at 1024 tokens (KL 0.03, 0.04), 41 and 42 of 43 at 4096
/// (0.08, 0.06). Past its reliable range (8096 tokens, then 4000 more) it pays: of 25 answers on the old text 15
/// are right without, 21 with c = 0.5, 23 with 0.25; of 30 on the new text 28, 26, 26. Every time keys are rounded
/// once more: a KL of 8e-7 for f16 keys, 1e-4 for q8_0, 7e-3 for q4_0 (16 times: 2e-4, 2e-2, 0.1), so rarely and
/// far is better than often and little.
///
/// Layers with a window see only rows near the end: all their rows move as the latest do, and what would fall
/// below position 0 is dropped. Where the window is longer than what the conversation becomes, they are squeezed,
/// too, and rows that the window hides are dropped.
/// Errors: invalid_argument (0 <= keep_end <= new_compacted_end <= compacted_end() expected), out_of_memory (rows
///         shared with another sequence).
/// Cost:   one pass over the cache, and a copy of it on the heap meanwhile.
Result<void> rebase(Executor& executor, kv::SequenceCache& sequence, kv::Pos keep_end, kv::Pos new_compacted_end);

}  // namespace sh::engine
