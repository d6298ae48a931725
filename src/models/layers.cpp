// SPDX-License-Identifier: MIT
#include "models/layers.h"

#include <fmt/format.h>

#include <algorithm>

namespace sh::models {

namespace {

int32_t largest(const std::vector<int32_t>& values) {
  return *std::max_element(values.begin(), values.end());
}

/// Calls fn(first, n) for every run of neighbouring tokens of one sequence.
template <typename Fn>
void for_sequences(const Batch& batch, Fn&& fn) {
  const size_t n = batch.sequences.size();
  for (size_t first = 0, end; first < n; first = end) {
    for (end = first + 1; end < n && batch.sequences[end] == batch.sequences[first];) ++end;
    fn(static_cast<int64_t>(first), static_cast<int64_t>(end - first));
  }
}

}  // namespace

std::string block_name(int32_t layer, const char* name) {
  return fmt::format("blk.{}.{}", layer, name);
}

Workspace::Workspace(const DecoderConfig& config, int64_t n_tokens_)
    : n_tokens(n_tokens_), x(n_tokens_, config.n_embd), h(n_tokens_, config.n_embd) {
  const auto sized = [&](int64_t width) { return std::vector<float>(static_cast<size_t>(n_tokens * width)); };
  const int64_t n_heads = largest(config.n_heads), n_kv_heads = largest(config.n_kv_heads);
  q = sized(n_heads * config.key_width);
  k = sized(n_kv_heads * config.key_width);
  v = sized(n_kv_heads * config.value_width);
  attn = sized(n_heads * config.value_width);
  lse = sized(n_heads);
  gate = sized(largest(config.n_ff));
  up = sized(largest(config.n_ff));
}

MatView<float> Workspace::rows(std::vector<float>& buffer, int64_t width) {
  SH_CHECK(static_cast<int64_t>(buffer.size()) >= n_tokens * width, "workspace: a layer is wider than the widest");
  return {buffer.data(), n_tokens, width};
}

Result<AttentionWeights> bind_attention(TensorBinder& binder, const DecoderConfig& config, int32_t layer) {
  AttentionWeights w;
  w.n_heads = config.n_heads[static_cast<size_t>(layer)];
  w.n_kv_heads = config.n_kv_heads[static_cast<size_t>(layer)];
  w.key_width = config.key_width;
  w.value_width = config.value_width;
  w.scale = config.attention_scale();
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
                     float rms_eps, const ops::RopeConfig& rope, const ops::RopeTable& angles, Workspace& ws,
                     ops::AttentionTap* tap) {
  const MatView<float> q = ws.rows(ws.q, w.q.n_out), k = ws.rows(ws.k, w.k.n_out), v = ws.rows(ws.v, w.v.n_out);
  const ops::LinearOut projections[] = {
      {&w.q, q, data_or_null(w.q_bias)}, {&w.k, k, data_or_null(w.k_bias)}, {&w.v, v, data_or_null(w.v_bias)}};
  ops::linear_many(ctx, ws.h.view(), projections);
  if (!w.q_norm.empty()) ops::rms_norm_heads(ctx, q, w.key_width, w.q_norm.data(), rms_eps);
  if (!w.k_norm.empty()) ops::rms_norm_heads(ctx, k, w.key_width, w.k_norm.data(), rms_eps);
  ops::rope(ctx, rope, angles, w.key_width, q);
  ops::rope(ctx, rope, angles, w.key_width, k);

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
  ops::linear(ctx, w.o, attn, ws.h.view(), data_or_null(w.o_bias));
}

void gated_ffn(ops::OpContext& ctx, const GatedFfnWeights& w, Workspace& ws) {
  const MatView<float> gate = ws.rows(ws.gate, w.gate.n_out), up = ws.rows(ws.up, w.up.n_out);
  const ops::LinearOut projections[] = {{&w.gate, gate, data_or_null(w.gate_bias)},
                                        {&w.up, up, data_or_null(w.up_bias)}};
  ops::linear_many(ctx, ws.h.view(), projections);
  ops::swiglu(ctx, gate, up, gate);
  ops::linear(ctx, w.down, gate, ws.h.view(), data_or_null(w.down_bias));
}

void moe_ffn(ops::OpContext& ctx, const MoeWeights& w, Workspace& ws) {
  Mat<float> router_logits(ws.n_tokens, w.router.n_out), weights(ws.n_tokens, w.n_used);
  Mat<int32_t> ids(ws.n_tokens, w.n_used);
  ops::linear(ctx, w.router, ws.h.view(), router_logits.view());
  ops::route_softmax(router_logits.view(), w.renormalise, ids.view(), weights.view());
  ops::moe(ctx, {.gate = &w.gate,
                 .up = &w.up,
                 .down = &w.down,
                 .x = ws.h.view(),
                 .expert_ids = ids.view(),
                 .expert_weights = weights.view(),
                 .y = ws.h.view()});
}

void output_logits(ops::OpContext& ctx, const Batch& batch, const Mat<float>& x, const Vector& norm, float rms_eps,
                   const ops::Weight& output, MatView<float> logits) {
  Mat<float> rows(static_cast<int64_t>(batch.logit_rows.size()), x.cols);
  for (int64_t i = 0; i < rows.rows; ++i) {
    const float* row = x.row(batch.logit_rows[static_cast<size_t>(i)]);
    std::copy(row, row + x.cols, rows.row(i));
  }
  ops::rms_norm(ctx, rows.view(), norm.data(), rms_eps, rows.view());
  ops::linear(ctx, output, rows.view(), logits);
}

}  // namespace sh::models
