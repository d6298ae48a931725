// SPDX-License-Identifier: MIT
// Qwen 2 and 2.5: as Llama, with halves-paired rope and biases on q, k and v.
// Source:  Yang et al., "Qwen2 Technical Report", arXiv 2407.10671; GGUF specification (keys, names).
#include "models/layers.h"
#include "models/tiny.h"

namespace sh::models {

namespace {

struct Qwen2Layer {
  Vector attn_norm, ffn_norm;
  AttentionWeights attn;
  GatedFfnWeights ffn;
};

class Qwen2Model final : public Model {
 public:
  explicit Qwen2Model(const WeightStore& store) : store_(store) {}

  Result<void> bind() {
    Hyperparams hyper(store_.file(), "qwen2");
    SH_ASSIGN(config_, read_decoder_config(hyper, ops::RopeConfig::Pairs::halves));
    SH_RETURN_IF_ERROR(hyper.finish());

    TensorBinder binder(store_);
    SH_ASSIGN(embeddings_, bind_embeddings(binder, config_));
    SH_ASSIGN(output_norm_, binder.vector("output_norm.weight", config_.n_embd));
    for (int32_t layer = 0; layer < config_.n_layer; ++layer) {
      Qwen2Layer l;
      SH_ASSIGN(l.attn_norm, binder.vector(block_name(layer, "attn_norm.weight"), config_.n_embd));
      SH_ASSIGN(l.attn, bind_attention(binder, config_, layer));
      SH_RETURN_IF_ERROR(bind_qkv_biases(binder, layer, true, l.attn));
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
      const Qwen2Layer& l = layers_[static_cast<size_t>(layer)];
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
  std::vector<Qwen2Layer> layers_;
};

Result<std::unique_ptr<Model>> load(const WeightStore& store) {
  auto model = std::make_unique<Qwen2Model>(store);
  SH_RETURN_IF_ERROR(model->bind());
  return std::unique_ptr<Model>(std::move(model));
}

Result<std::vector<std::byte>> tiny(uint64_t seed) {
  TinyModel model("qwen2", "qwen2", {}, seed);
  model.decoder_tensors();
  const TinySizes& s = model.sizes();
  for (int32_t layer = 0; layer < s.n_layer; ++layer) {
    model.vector(block_name(layer, "attn_q.bias"), s.n_heads * s.head_width, 0.0, 0.3);
    model.vector(block_name(layer, "attn_k.bias"), s.n_kv_heads * s.head_width, 0.0, 0.3);
    model.vector(block_name(layer, "attn_v.bias"), s.n_kv_heads * s.head_width, 0.0, 0.3);
  }
  return model.to_bytes();
}

}  // namespace

extern const ArchDef arch_qwen2;
const ArchDef arch_qwen2{.gguf_name = "qwen2", .load = load, .tiny = tiny};

}  // namespace sh::models
