// SPDX-License-Identifier: MIT
// The operations a forward pass is made of, parallel over a thread pool. The one seam that a second device would implement.
// Results do not depend on the number of threads or on what else is in the batch.
#pragma once

#include <cstdint>
#include <initializer_list>
#include <span>
#include <vector>

#include "base/aligned.h"
#include "base/mat_view.h"
#include "base/result.h"
#include "base/thread_pool.h"
#include "gguf/gguf.h"
#include "kernels/kernel_set.h"
#include "kv/sequence_cache.h"
#include "tensor/packed.h"

namespace sh::ops {

/// A weight matrix [n_out, n_in] in any format, or a stack of them (experts); a view into the model file or, packed,
/// into memory in the layout of tensor/packed.h.
struct Weight {
  DType dtype = DType::f32;
  const std::byte* data = nullptr;
  int64_t n_in = 0;
  int64_t n_out = 0;
  int64_t n_stack = 1;  // experts
  bool is_packed = false;
  int64_t row_bytes() const { return sh::row_bytes(dtype, n_in); }
  int64_t matrix_bytes() const { return is_packed ? packed_bytes(dtype, n_out, n_in) : n_out * row_bytes(); }
  const std::byte* expert(int64_t index) const { return data + index * matrix_bytes(); }
  explicit operator bool() const { return data != nullptr; }
};

/// Rows that products read, in the forms that their weights want: floats, 8-bit codes, or both.
struct Activations {
  int64_t n = 0, n_in = 0;
  const float* x = nullptr;  // [n, n_in], `stride` floats apart; null: not wanted
  int64_t stride = 0;
  const std::byte* q8 = nullptr;  // [n] rows of `q8_row_bytes` in ActivationForm::q8; null: not wanted
  int64_t q8_row_bytes = 0;
};
/// Memory for them.
struct ActivationBuffer {
  AlignedBuffer<float> x;
  AlignedBuffer<std::byte> q8;
};

/// Weight rows [row_begin, row_end) of one expert (0 where there is no stack) and n tokens from `first` on: what
/// one task multiplies.
struct ProductPart {
  const Weight* weight;
  int64_t expert, first, n, row_begin, row_end;
};
/// Scratch of moe().
struct ExpertScratch {
  // The (token, slot) pairs of a batch ordered by expert, so that every expert's weights are read once.
  std::vector<int64_t> first;    // [n_expert + 1] pairs of expert e: [first[e], first[e + 1])
  std::vector<int64_t> token;    // [n_pairs] by pair
  std::vector<int64_t> pair_of;  // [n, n_used]
  std::vector<int64_t> next;     // [n_expert] while pairs are ordered
  std::vector<ProductPart> tasks;
  ActivationBuffer inputs;        // [n_pairs, n_embd]
  AlignedBuffer<float> products;  // [n_pairs, n_embd] of down
};

/// Tools of a forward pass, and its scratch, which is kept from pass to pass so that decoding a token allocates
/// nothing; one per executor.
struct OpContext {
  ThreadPool* pool = nullptr;
  const kernels::KernelSet* kernels = nullptr;
  ActivationBuffer input;                           // of activations_of()
  ActivationBuffer hidden;                          // of gated_linear() and moe()
  std::vector<AlignedBuffer<float>> worker_scratch; // one a worker
  AlignedBuffer<float> partial;                     // attend(): partial outputs of row splits
  std::vector<std::vector<kernels::KvBlockView>> worker_blocks;  // attend(): block list of a tile, one a worker
  ExpertScratch experts;
};

/// The RMS norm of rows, y = x / sqrt(mean(x²) + eps) · weight, as an input of products: activations_of() computes
/// it.
struct Normed {
  MatView<const float> x;
  const float* weight;  // [x.cols]
  float eps;
};
/// Rows in every form that the `readers` want, made once for all of them: a row is normed and coded in one go.
/// Valid until the next call, which linear() of a matrix makes too.
Activations activations_of(OpContext& ctx, MatView<const float> x, std::initializer_list<const Weight*> readers);
Activations activations_of(OpContext& ctx, const Normed& input, std::initializer_list<const Weight*> readers);

/// y[t, :] = W x[t, :] (+ bias). Shapes: x [n, n_in], y [n, n_out], bias [n_out] or null.
/// Needs: w among the readers that x was made for.
void linear(OpContext& ctx, const Weight& w, const Activations& x, MatView<float> y, const float* bias = nullptr);
void linear(OpContext& ctx, const Weight& w, MatView<const float> x, MatView<float> y, const float* bias = nullptr);
/// Several products of the same input (q, k, v).
struct LinearOut {
  const Weight* weight;
  MatView<float> out;
  const float* bias;  // or null
};
void linear_many(OpContext& ctx, const Activations& x, std::span<const LinearOut> outs);

/// The two products of a gated feed-forward layer.
struct GatedWeights {
  const Weight *gate, *up;
  const float *gate_bias = nullptr, *up_bias = nullptr;  // [n_out] or null
};
/// silu(gate x) · up x in the forms that the `readers` want. The task that has multiplied some rows of both
/// matrices also activates and codes them. Valid until the next call, or moe().
Activations gated_linear(OpContext& ctx, const Activations& x, const GatedWeights& w,
                         std::initializer_list<const Weight*> readers);

/// Rows of an embedding table: y[t, :] = W[ids[t], :]. Needs: ids inside the table.
void embed(OpContext& ctx, const Weight& table, std::span<const int32_t> ids, MatView<float> y);
/// RMS norm of every head on its own: x [n, n_heads * width], weight [width].
void rms_norm_heads(OpContext& ctx, MatView<float> x, int64_t width, const float* weight, float eps);
void add(OpContext& ctx, MatView<const float> a, MatView<float> b);  // b += a

/// How positions become angles.
struct RopeConfig {
  enum class Pairs { adjacent, halves } pairs = Pairs::adjacent;
  int32_t n_dims = 0;                // rotated elements of each head, from the front
  float base = 10000.0f;
  float position_scale = 1.0f;       // linear scaling: angle uses pos · position_scale
  std::vector<float> divisors;       // rope_freqs.weight: [n_dims / 2] or empty
  // YaRN (Peng et al., arXiv 2309.00071); factor 0: off.
  float yarn_factor = 0.0f;
  int32_t yarn_original_context = 0;
  float yarn_beta_fast = 32.0f, yarn_beta_slow = 1.0f;
  float yarn_ext_factor = 1.0f;
  float attention_factor = 1.0f;     // multiplies cos and sin
};
/// cos and sin of every token's angles. Shapes: [n, n_dims / 2] each. Angles in double, so that long positions keep their phase.
struct RopeTable {
  Mat<float> cos, sin;
  std::vector<double> frequencies;  // [n_dims / 2] radians per position
};
/// Replaces table.
void rope_table(const RopeConfig& config, std::span<const kv::Pos> pos, RopeTable& table);
/// x [n, n_heads * width], in place.
void rope(OpContext& ctx, const RopeConfig& config, const RopeTable& table, int64_t width, MatView<float> x);

/// Moves rotated keys of one KV head to other positions: row i, rotated for position p, becomes the key of
/// p + deltas[i] up to the rounding of f32. The magnitude factor, which it has already, is not applied again;
/// a row with delta 0 keeps its bits.
/// Shapes: keys [n, key_width], deltas [n] of either sign.
/// Cost:   cos and sin of every pair once for each run of rows with the same delta.
void shift_rope(const RopeConfig& config, std::span<const int32_t> deltas, MatView<float> keys);

/// Sees what attention computed, layer by layer: the source of reference queries. It may also change the rows of
/// the layer that it is shown; all later layers then run on what this one has become. A forward over the reference
/// tokens can so compact every layer for the queries that the layers compacted before it give rise to (on-policy),
/// in one pass of L layers instead of L passes.
/// Source:  on-policy compaction, arXiv 2602.16284.
class AttentionTap {
 public:
  virtual ~AttentionTap() = default;
  /// The batch's own rows are in the caches. Returns true when it has changed rows of this layer, in whichever
  /// sequences: the same queries then attend again, over the rows as they are now, and the tap is not asked again.
  /// Shapes: queries [n, n_heads * key_width] after norm and rope, unscaled; lse [n, n_heads] over all visible
  /// rows; out [n, n_heads * value_width].
  virtual bool on_attention(int32_t layer, MatView<const float> queries, MatView<const float> lse,
                            MatView<const float> out) = 0;
  virtual bool wants_layer(int32_t layer) const = 0;
};

struct AttendArgs {
  int32_t layer;
  int32_t n_heads;                    // query heads; head h reads KV head h / (n_heads / n_kv_heads)
  MatView<const float> queries;       // [n, n_heads * key_width]
  std::span<const kv::Pos> pos;       // [n]
  std::span<kv::SequenceCache* const> sequences;  // [n]; tokens of one sequence are neighbours
  float scale;
  float softcap = 0.0f;
  MatView<float> out;                 // [n, n_heads * value_width]
  MatView<float> lse;                 // [n, n_heads], or empty
};
/// Attention of a batch over the caches of its sequences (the batch's own rows are already appended). Blocks that several sequences
/// share are read once for all of them.
void attend(OpContext& ctx, const AttendArgs& args);

/// Mixture of experts: for each token the sum over its chosen experts of weight · down(silu(gate x) · up x).
struct MoeArgs {
  const Weight* gate;   // stacks [n_expert]
  const Weight* up;
  const Weight* down;
  Activations x;                          // [n, n_embd] for gate and up
  MatView<const int32_t> expert_ids;      // [n, n_used]
  MatView<const float> expert_weights;    // [n, n_used]
  MatView<float> y;                       // [n, n_embd], overwritten; may be the rows that x was made of
};
void moe(OpContext& ctx, const MoeArgs& args);
/// Softmax over all experts, the n_used largest (ties: lowest index), weights renormalised to sum 1 if asked.
void route_softmax(MatView<const float> logits, bool renormalise, MatView<int32_t> expert_ids, MatView<float> expert_weights);

}  // namespace sh::ops
