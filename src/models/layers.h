// SPDX-License-Identifier: MIT
// Parts that forward passes share. An architecture's file names its tensors and puts these in order.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "models/config.h"
#include "models/model.h"
#include "models/weights.h"
#include "models/workspace.h"

namespace sh::models {

/// Projections of one attention block, and norms of every query and key head where the architecture has them.
struct AttentionWeights {
  int32_t n_heads = 0, n_kv_heads = 0, key_width = 0, value_width = 0;
  float scale = 0.0f, rms_eps = 0.0f;
  ops::Weight q, k, v, o;
  Vector q_bias, k_bias, v_bias, o_bias;  // empty: none
  Vector q_norm, k_norm;                  // [key_width], empty: none
};
/// Matrices, and the output bias if the file has one; the caller binds the rest.
Result<AttentionWeights> bind_attention(TensorBinder& binder, const DecoderConfig& config, int32_t layer);
/// q, k and v biases. Errors: corrupt when one is missing and `required`.
Result<void> bind_qkv_biases(TensorBinder& binder, int32_t layer, bool required, AttentionWeights& w);

/// down(silu(gate x) · up x)
struct GatedFfnWeights {
  ops::Weight gate, up, down;
  Vector gate_bias, up_bias, down_bias;
};
/// Biases are taken where the file has them.
Result<GatedFfnWeights> bind_gated_ffn(TensorBinder& binder, int32_t layer, int64_t n_embd, int64_t n_ff);

/// Experts behind a softmax router.
struct MoeWeights {
  ops::Weight router, gate, up, down;
  int32_t n_used = 0;
  bool renormalise = true;
};
Result<MoeWeights> bind_moe(TensorBinder& binder, int32_t layer, int64_t n_embd, int64_t n_ff, int64_t n_expert,
                            int64_t n_used);

/// token_embd.weight, and output.weight or the same table again where the file has none (tied).
struct EmbeddingWeights {
  ops::Weight tokens, output;
};
Result<EmbeddingWeights> bind_embeddings(TensorBinder& binder, const DecoderConfig& config);

/// "blk.<layer>.<name>"
std::string block_name(int32_t layer, const char* name);

// Steps of a forward pass: each reads the norm of the residual stream and leaves its output in ws.h.

/// input -> q, k, v with biases and head norms, rotated. Keys and values go into the caches, then attention runs
/// over them: h = W_o attend(q) + bias. The tap sees queries and attention outputs of the layers it wants; where
/// it has changed the layer's rows, attention runs again.
void attention_block(ops::OpContext& ctx, const Batch& batch, int32_t layer, const AttentionWeights& w,
                     const ops::Normed& input, const ops::RopeConfig& rope, Workspace& ws, ops::AttentionTap* tap);
void gated_ffn(ops::OpContext& ctx, const GatedFfnWeights& w, const ops::Normed& input, Workspace& ws);
void moe_ffn(ops::OpContext& ctx, const MoeWeights& w, const ops::Normed& input, Workspace& ws);
/// Output norm and head for the rows whose logits are wanted; ws.h is lost.
void output_logits(ops::OpContext& ctx, const Batch& batch, const ops::Normed& input, const ops::Weight& output,
                   Workspace& ws, MatView<float> logits);

/// Facts for ModelInfo that every architecture takes from the same places.
ModelInfo describe_model(const gguf::File& file, const DecoderConfig& config);

}  // namespace sh::models
