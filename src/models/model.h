// SPDX-License-Identifier: MIT
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "base/result.h"
#include "gguf/gguf.h"
#include "kv/sequence_cache.h"
#include "models/weight_store.h"
#include "ops/ops.h"

namespace sh::models {

/// Facts of a loaded model that every room may ask for.
struct ModelInfo {
  std::string arch;         // "llama"
  std::string name;         // general.name, or ""
  std::string file_type;    // "F16", "Q4_K - Medium": from general.file_type, else the commonest tensor format
  int32_t n_layer = 0, n_embd = 0, n_vocab = 0, n_head = 0;
  int32_t n_ctx_train = 0;
  int64_t n_params = 0;
  int64_t weight_bytes = 0;
};

/// Tokens of any mix of sequences. Tokens of one sequence are neighbours and in order.
struct Batch {
  std::span<const int32_t> ids;                   // [n]
  std::span<const kv::Pos> pos;                   // [n]; sequence.next_pos() + 0, 1, ... for each sequence
  std::span<kv::SequenceCache* const> sequences;  // [n]
  std::span<const int32_t> logit_rows;            // indices of tokens whose logits are wanted, increasing
};

/// Calls fn(first, n) for every run of neighbouring tokens of one sequence.
template <typename Fn>
void for_sequences(const Batch& batch, Fn&& fn) {
  const size_t n = batch.sequences.size();
  for (size_t first = 0, end; first < n; first = end) {
    for (end = first + 1; end < n && batch.sequences[end] == batch.sequences[first];) ++end;
    fn(static_cast<int64_t>(first), static_cast<int64_t>(end - first));
  }
}

struct Workspace;

/// A model ready to run: weights bound, forward pass written out in its architecture's file.
/// Threads: const; one forward at a time per OpContext and Workspace.
class Model {
 public:
  virtual ~Model() = default;
  virtual const ModelInfo& info() const = 0;
  /// One LayerLayout a layer; encodings are the caller's choice.
  virtual std::vector<kv::LayerLayout> kv_layers() const = 0;
  /// 1/sqrt(head size) unless the model says otherwise: what the solver needs.
  virtual float attention_scale(int32_t layer) const = 0;
  virtual int32_t n_query_heads(int32_t layer) const = 0;
  /// Moves keys of one KV head, as stored (after rope), by deltas[i] positions each; see ops::shift_rope().
  /// Shapes: keys [n, key_width], deltas [n].
  virtual void shift_keys(int32_t layer, std::span<const int32_t> deltas, MatView<float> keys) const = 0;

  /// Runs the batch: appends its rows to the caches (reserved by the caller, committed by the caller) and fills
  /// logits [logit_rows.size(), n_vocab].
  /// Needs: ids inside the vocabulary; reserve() done for every sequence.
  virtual void forward(ops::OpContext& ctx, Workspace& ws, const Batch& batch, MatView<float> logits,
                       ops::AttentionTap* tap) const = 0;
};

/// An architecture. One file each in models/arch/.
struct ArchDef {
  const char* gguf_name;
  /// Reads the hyperparameters, claims the tensors with their shapes, binds the weights. The model keeps a copy of
  /// `store`.
  /// Errors: corrupt or unsupported, naming the key or tensor, what was expected and what the file has. A tensor that nobody claimed
  /// is an error too: something in the file would be ignored.
  Result<std::unique_ptr<Model>> (*load)(const WeightStore& store);
  /// A toy file of this architecture with seeded random weights, for the tests over all architectures.
  Result<std::vector<std::byte>> (*tiny)(uint64_t seed);
};

std::span<const ArchDef* const> architectures();
/// Who repacks the matrices, and whose layout they get.
struct Repacking {
  const kernels::KernelSet* kernels;
  ThreadPool* pool;
};
/// Without `repacking` the matrices are read where the file has them.
/// Errors: unsupported, naming the architecture of the file and the known ones; out_of_memory.
Result<std::unique_ptr<Model>> load_model(const gguf::File& file, const Repacking* repacking = nullptr);

/// Reserves, runs and commits a batch; on error no sequence has changed.
/// Errors: out_of_memory from the pool.
Result<void> run_batch(const Model& model, ops::OpContext& ctx, Workspace& ws, const Batch& batch,
                       MatView<float> logits, ops::AttentionTap* tap = nullptr);

}  // namespace sh::models
