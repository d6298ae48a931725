// SPDX-License-Identifier: MIT
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "models/model.h"

namespace sh::engine {

/// The arrays of a models::Batch, filled sequence by sequence: each one's tokens go on at its logical end.
struct TokenBatch {
  std::vector<int32_t> ids, logit_rows;
  std::vector<kv::Pos> pos;
  std::vector<kv::SequenceCache*> sequences;

  void clear() {
    ids.clear();
    logit_rows.clear();
    pos.clear();
    sequences.clear();
  }
  void add(kv::SequenceCache& sequence, std::span<const int32_t> tokens, bool wants_last_logits) {
    for (size_t i = 0; i < tokens.size(); ++i) pos.push_back(sequence.next_pos() + static_cast<int64_t>(i));
    ids.insert(ids.end(), tokens.begin(), tokens.end());
    sequences.insert(sequences.end(), tokens.size(), &sequence);
    if (wants_last_logits) logit_rows.push_back(static_cast<int32_t>(ids.size()) - 1);
  }
  models::Batch view() const { return {ids, pos, sequences, logit_rows}; }
};

}  // namespace sh::engine
