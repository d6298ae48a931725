// SPDX-License-Identifier: MIT
// What one forward must read and compute, counted from the model file: the denominators of every GB/s and GFLOP/s
// that is printed.
#pragma once

#include <cstdint>

#include "gguf/gguf.h"
#include "kv/sequence_cache.h"
#include "models/model.h"

namespace sh::engine {

/// Weights as one token's forward uses them.
struct WeightCost {
  int64_t bytes = 0;            // read, logits included; of stacked experts the share that a token is routed to
  int64_t layer_elements = 0;   // of matrices that every token is multiplied with
  int64_t output_elements = 0;  // of the matrix that gives the logits
  // Those of them in quantised formats, which every kernel set multiplies as bytes; the others it multiplies as
  // floats.
  int64_t layer_elements_quantised = 0, output_elements_quantised = 0;
};
/// Norms and biases count as bytes only. An embedding table that is not tied to the output costs one row and is
/// left out.
WeightCost weight_cost(const gguf::File& file);

/// Bytes of keys and values that one query of each head reads, at the sequence's present length. Annotations of
/// compacted rows (8 bytes each) are not counted.
/// Cost: O(heads).
int64_t kv_bytes_read(const kv::SequenceCache& sequence);

/// Multiplications and additions, by the instructions that take them.
struct Operations {
  double byte_products = 0;
  double multiply_adds = 0;  // of floats
  double total() const { return byte_products + multiply_adds; }
};
/// Those of a prompt of n_tokens behind n_past others, logits for its last token only. Attention counts q·k and
/// weights·v over the rows that are visible, as if nothing were compacted.
Operations prefill_operations(const models::Model& model, const WeightCost& weights, int64_t n_tokens,
                              int64_t n_past);

}  // namespace sh::engine
