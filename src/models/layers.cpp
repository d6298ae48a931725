// SPDX-License-Identifier: MIT
#include "models/layers.h"

#include <fmt/format.h>

#include <algorithm>

namespace sh::models {

std::string block_name(int32_t layer, const char* name) {
  return fmt::format("blk.{}.{}", layer, name);
}

Result<AttentionWeights> bind_attention(TensorBinder& binder, const DecoderConfig& config, int32_t layer) {
  AttentionWeights w;
  w.n_heads = config.n_heads[static_cast<size_t>(layer)];
  w.n_kv_heads = config.n_kv_heads[static_cast<size_t>(layer)];
  w.key_width = config.key_width;
  w.value_width = config.value_width;
  w.scale = config.attention_scale();
  w.rms_eps = config.rms_eps;
  const int64_t n_q = int64_t{w.n_heads} * w.key_width, n_k = int64_t{w.n_kv_heads} * w.key_width;
  const int64_t n_v = int64_t{w.n_kv_heads} * w.value_width, n_out = int64_t{w.n_heads} * w.value_width;
  SH_ASSIGN(w.q, binder.matrix(block_name(layer, "attn_q.weight"), config.n_embd, n_q));
  SH_ASSIGN(w.k, binder.matrix(block_name(layer, "attn_k.weight"), config.n_embd, n_k));
  SH_ASSIGN(w.v, binder.matrix(block_name(layer, "attn_v.weight"), config.n_embd, n_v));
  SH_ASSIGN(w.o, binder.matrix(block_name(layer, "attn_output.weight"), n_out, config.n_embd));
  SH_ASSIGN(w.o_bias, binder.optional_vector(block_name(layer, "attn_output.bias"), config.n_embd));
  return w;
}

Result<void> bind_qkv_biases(TensorBinder& binder, int32_t layer, bool required, AttentionWeights& w) {
  const auto bind = [&](const char* name, int64_t n) {
    return required ? binder.vector(block_name(layer, name), n)
                    : binder.optional_vector(block_name(layer, name), n);
  };
  SH_ASSIGN(w.q_bias, bind("attn_q.bias", w.q.n_out));
  SH_ASSIGN(w.k_bias, bind("attn_k.bias", w.k.n_out));
  SH_ASSIGN(w.v_bias, bind("attn_v.bias", w.v.n_out));
  return {};
}

Result<GatedFfnWeights> bind_gated_ffn(TensorBinder& binder, int32_t layer, int64_t n_embd, int64_t n_ff) {
  GatedFfnWeights w;
  SH_ASSIGN(w.gate, binder.matrix(block_name(layer, "ffn_gate.weight"), n_embd, n_ff));
  SH_ASSIGN(w.up, binder.matrix(block_name(layer, "ffn_up.weight"), n_embd, n_ff));
  SH_ASSIGN(w.down, binder.matrix(block_name(layer, "ffn_down.weight"), n_ff, n_embd));
  SH_ASSIGN(w.gate_bias, binder.optional_vector(block_name(layer, "ffn_gate.bias"), n_ff));
  SH_ASSIGN(w.up_bias, binder.optional_vector(block_name(layer, "ffn_up.bias"), n_ff));
  SH_ASSIGN(w.down_bias, binder.optional_vector(block_name(layer, "ffn_down.bias"), n_embd));
  return w;
}

Result<MoeWeights> bind_moe(TensorBinder& binder, int32_t layer, int64_t n_embd, int64_t n_ff, int64_t n_expert,
                            int64_t n_used) {
  MoeWeights w;
  w.n_used = static_cast<int32_t>(n_used);
  SH_ASSIGN(w.router, binder.matrix(block_name(layer, "ffn_gate_inp.weight"), n_embd, n_expert));
  SH_ASSIGN(w.gate, binder.stack(block_name(layer, "ffn_gate_exps.weight"), n_embd, n_ff, n_expert));
  SH_ASSIGN(w.up, binder.stack(block_name(layer, "ffn_up_exps.weight"), n_embd, n_ff, n_expert));
  SH_ASSIGN(w.down, binder.stack(block_name(layer, "ffn_down_exps.weight"), n_ff, n_embd, n_expert));
  return w;
}

Result<EmbeddingWeights> bind_embeddings(TensorBinder& binder, const DecoderConfig& config) {
  constexpr char kTokens[] = "token_embd.weight", kOutput[] = "output.weight";
  EmbeddingWeights w;
  if (binder.has(kOutput)) {
    SH_ASSIGN(w.tokens, binder.table(kTokens, config.n_embd, config.n_vocab));
    SH_ASSIGN(w.output, binder.matrix(kOutput, config.n_embd, config.n_vocab));
  } else {
    SH_ASSIGN(w.tokens, binder.matrix(kTokens, config.n_embd, config.n_vocab));
    w.output = w.tokens;
  }
  return w;
}

void attention_block(ops::OpContext& ctx, const Batch& batch, int32_t layer, const AttentionWeights& w,
                     const ops::Normed& input, const ops::RopeConfig& rope, Workspace& ws,
                     ops::AttentionTap* tap) {
  const MatView<float> q = ws.rows(ws.q, w.q.n_out), k = ws.rows(ws.k, w.k.n_out), v = ws.rows(ws.v, w.v.n_out);
  const ops::LinearOut projections[] = {
      {&w.q, q, data_or_null(w.q_bias)}, {&w.k, k, data_or_null(w.k_bias)}, {&w.v, v, data_or_null(w.v_bias)}};
  ops::linear_many(ctx, ops::activations_of(ctx, input, {&w.q, &w.k, &w.v}), projections);
  if (!w.q_norm.empty()) ops::rms_norm_heads(ctx, q, w.key_width, w.q_norm.data(), w.rms_eps);
  if (!w.k_norm.empty()) ops::rms_norm_heads(ctx, k, w.key_width, w.k_norm.data(), w.rms_eps);
  ops::rope(ctx, rope, ws.angles, w.key_width, q);
  ops::rope(ctx, rope, ws.angles, w.key_width, k);

  for_sequences(batch, [&](int64_t first, int64_t n) {
    kv::SequenceCache& cache = *batch.sequences[static_cast<size_t>(first)];
    cache.append(*ctx.kernels, layer, 0, k.slice(first, n), v.slice(first, n));
  });

  const bool is_tapped = tap != nullptr && tap->wants_layer(layer);
  const MatView<float> attn = ws.rows(ws.attn, w.o.n_in);
  const MatView<float> lse = is_tapped ? ws.rows(ws.lse, w.n_heads) : MatView<float>();
  const ops::AttendArgs args{.layer = layer,
                             .n_heads = w.n_heads,
                             .queries = q,
                             .pos = batch.pos,
                             .sequences = batch.sequences,
                             .scale = w.scale,
                             .out = attn,
                             .lse = lse};
  ops::attend(ctx, args);
  if (is_tapped && tap->on_attention(layer, q, lse, attn)) ops::attend(ctx, args);
  ops::linear(ctx, w.o, attn, ws.h, data_or_null(w.o_bias));
}

void gated_ffn(ops::OpContext& ctx, const GatedFfnWeights& w, const ops::Normed& input, Workspace& ws) {
  const ops::GatedWeights gated{&w.gate, &w.up, data_or_null(w.gate_bias), data_or_null(w.up_bias)};
  const ops::Activations x = ops::activations_of(ctx, input, {&w.gate, &w.up});
  const ops::Activations hidden = ops::gated_linear(ctx, x, gated, {&w.down});
  ops::linear(ctx, w.down, hidden, ws.h, data_or_null(w.down_bias));
}

void moe_ffn(ops::OpContext& ctx, const MoeWeights& w, const ops::Normed& input, Workspace& ws) {
  const MatView<float> router_logits = ws.rows(ws.router_logits, w.router.n_out);
  const MatView<float> weights = ws.rows(ws.expert_weights, w.n_used);
  const MatView<int32_t> ids = ws.rows(ws.expert_ids, w.n_used);
  const ops::Activations x = ops::activations_of(ctx, input, {&w.router, &w.gate, &w.up});
  ops::linear(ctx, w.router, x, router_logits);
  ops::route_softmax(router_logits, w.renormalise, ids, weights);
  ops::moe(ctx, {.gate = &w.gate,
                 .up = &w.up,
                 .down = &w.down,
                 .x = x,
                 .expert_ids = ids,
                 .expert_weights = weights,
                 .y = ws.h});
}

void output_logits(ops::OpContext& ctx, const Batch& batch, const ops::Normed& input, const ops::Weight& output,
                   Workspace& ws, MatView<float> logits) {
  const MatView<float> rows = ws.h.slice(0, std::ssize(batch.logit_rows));
  for (int64_t i = 0; i < rows.rows; ++i)
    std::copy_n(input.x.row(batch.logit_rows[static_cast<size_t>(i)]), rows.cols, rows.row(i));
  ops::linear(ctx, output, ops::activations_of(ctx, ops::Normed{rows, input.weight, input.eps}, {&output}),
              logits);
}

}  // namespace sh::models
