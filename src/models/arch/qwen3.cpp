// SPDX-License-Identifier: MIT
// Qwen 3, dense: as Llama, with halves-paired rope after an RMS norm of every query and key head.
// Source:  Yang et al., "Qwen3 Technical Report", arXiv 2505.09388; GGUF specification (keys, names).
#include "models/layers.h"
#include "models/tiny.h"

namespace sh::models {

namespace {

struct Qwen3Layer {
  Vector attn_norm, ffn_norm;
  AttentionWeights attn;
  GatedFfnWeights ffn;
};

class Qwen3Model final : public Model {
 public:
  explicit Qwen3Model(const WeightStore& store) : store_(store) {}

  Result<void> bind() {
    Hyperparams hyper(store_.file(), "qwen3");
    SH_ASSIGN(config_, read_decoder_config(hyper, ops::RopeConfig::Pairs::halves));
    SH_RETURN_IF_ERROR(hyper.finish());

    TensorBinder binder(store_);
    SH_ASSIGN(embeddings_, bind_embeddings(binder, config_));
    SH_ASSIGN(output_norm_, binder.vector("output_norm.weight", config_.n_embd));
    for (int32_t layer = 0; layer < config_.n_layer; ++layer) {
      Qwen3Layer l;
      SH_ASSIGN(l.attn_norm, binder.vector(block_name(layer, "attn_norm.weight"), config_.n_embd));
      SH_ASSIGN(l.attn, bind_attention(binder, config_, layer));
      SH_ASSIGN(l.attn.q_norm, binder.vector(block_name(layer, "attn_q_norm.weight"), config_.key_width));
      SH_ASSIGN(l.attn.k_norm, binder.vector(block_name(layer, "attn_k_norm.weight"), config_.key_width));
      SH_ASSIGN(l.ffn_norm, binder.vector(block_name(layer, "ffn_norm.weight"), config_.n_embd));
      SH_ASSIGN(l.ffn, bind_gated_ffn(binder, layer, config_.n_embd, config_.n_ff[static_cast<size_t>(layer)]));
      layers_.push_back(std::move(l));
    }
    SH_RETURN_IF_ERROR(binder.finish());
    info_ = describe_model(store_.file(), config_);
    return {};
  }

  const ModelInfo& info() const override { return info_; }
  std::vector<kv::LayerLayout> kv_layers() const override { return config_.kv_layers(); }
  float attention_scale(int32_t) const override { return config_.attention_scale(); }
  int32_t n_query_heads(int32_t layer) const override { return config_.n_heads[static_cast<size_t>(layer)]; }
  void shift_keys(int32_t, std::span<const int32_t> deltas, MatView<float> keys) const override {
    ops::shift_rope(config_.rope, deltas, keys);
  }

  void forward(ops::OpContext& ctx, Workspace& ws, const Batch& batch, MatView<float> logits,
               ops::AttentionTap* tap) const override {
    ws.begin(config_.n_embd, config_.rope, batch.pos);
    const auto norm_of_x = [&](const Vector& weight) { return ops::Normed{ws.x, weight.data(), config_.rms_eps}; };
    ops::embed(ctx, embeddings_.tokens, batch.ids, ws.x);
    for (int32_t layer = 0; layer < config_.n_layer; ++layer) {
      const Qwen3Layer& l = layers_[static_cast<size_t>(layer)];
      attention_block(ctx, batch, layer, l.attn, norm_of_x(l.attn_norm), config_.rope, ws, tap);
      ops::add(ctx, ws.h, ws.x);

      gated_ffn(ctx, l.ffn, norm_of_x(l.ffn_norm), ws);
      ops::add(ctx, ws.h, ws.x);
    }
    output_logits(ctx, batch, norm_of_x(output_norm_), embeddings_.output, ws, logits);
  }

 private:
  WeightStore store_;  // keeps the memory that the weights point into
  ModelInfo info_;
  DecoderConfig config_;
  EmbeddingWeights embeddings_;
  Vector output_norm_;
  std::vector<Qwen3Layer> layers_;
};

Result<std::unique_ptr<Model>> load(const WeightStore& store) {
  auto model = std::make_unique<Qwen3Model>(store);
  SH_RETURN_IF_ERROR(model->bind());
  return std::unique_ptr<Model>(std::move(model));
}

Result<std::vector<std::byte>> tiny(uint64_t seed) {
  TinyModel model("qwen3", "qwen2", {}, seed);
  model.decoder_tensors();
  const TinySizes& s = model.sizes();
  for (int32_t layer = 0; layer < s.n_layer; ++layer) {
    model.vector(block_name(layer, "attn_q_norm.weight"), s.head_width, 1.0, 0.1);
    model.vector(block_name(layer, "attn_k_norm.weight"), s.head_width, 1.0, 0.1);
  }
  return model.to_bytes();
}

}  // namespace

extern const ArchDef arch_qwen3;
const ArchDef arch_qwen3{.gguf_name = "qwen3", .load = load, .tiny = tiny};

}  // namespace sh::models
