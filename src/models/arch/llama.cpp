// SPDX-License-Identifier: MIT
// Llama and what shares its line: Llama 1-3, Mistral, SmolLM, and Mixtral by its mixture of experts.
// Source:  Touvron et al., arXiv 2302.13971; Jiang et al., "Mixtral of Experts", arXiv 2401.04088; GGUF
// specification (keys, names).
#include <fmt/format.h>

#include <cmath>
#include <optional>

#include "models/layers.h"
#include "models/tiny.h"

namespace sh::models {

namespace {

struct LlamaLayer {
  Vector attn_norm, ffn_norm;
  AttentionWeights attn;
  std::optional<GatedFfnWeights> ffn;  // one of the two
  std::optional<MoeWeights> moe;
};

class LlamaModel final : public Model {
 public:
  explicit LlamaModel(const WeightStore& store) : store_(store) {}

  Result<void> bind() {
    Hyperparams hyper(store_.file(), "llama");
    SH_ASSIGN(config_, read_decoder_config(hyper, ops::RopeConfig::Pairs::adjacent));
    SH_ASSIGN(const int64_t n_expert, hyper.int_or("expert_count", 0, 0, 4096));
    SH_ASSIGN(const int64_t n_used, hyper.int_or("expert_used_count", 0, n_expert > 0 ? 1 : 0, n_expert));
    if (n_expert > 0 && n_used == 0)
      return Error{ErrorKind::corrupt, "key llama.expert_used_count is missing: the model has experts"};
    SH_RETURN_IF_ERROR(hyper.finish());

    TensorBinder binder(store_);
    SH_ASSIGN(embeddings_, bind_embeddings(binder, config_));
    SH_ASSIGN(output_norm_, binder.vector("output_norm.weight", config_.n_embd));
    SH_ASSIGN(config_.rope.divisors, binder.optional_vector("rope_freqs.weight", config_.rope.n_dims / 2));
    for (const float divisor : config_.rope.divisors)
      if (!(divisor > 0.0f) || std::isinf(divisor))
        return Error{ErrorKind::corrupt,
                     fmt::format("tensor rope_freqs.weight: expected positive divisors, got {}", divisor)};
    for (int32_t layer = 0; layer < config_.n_layer; ++layer) {
      const int32_t n_ff = config_.n_ff[static_cast<size_t>(layer)];
      LlamaLayer l;
      SH_ASSIGN(l.attn_norm, binder.vector(block_name(layer, "attn_norm.weight"), config_.n_embd));
      SH_ASSIGN(l.attn, bind_attention(binder, config_, layer));
      SH_RETURN_IF_ERROR(bind_qkv_biases(binder, layer, false, l.attn));
      SH_ASSIGN(l.ffn_norm, binder.vector(block_name(layer, "ffn_norm.weight"), config_.n_embd));
      if (n_expert > 0) {
        SH_ASSIGN(l.moe, bind_moe(binder, layer, config_.n_embd, n_ff, n_expert, n_used));
      } else {
        SH_ASSIGN(l.ffn, bind_gated_ffn(binder, layer, config_.n_embd, n_ff));
      }
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
      const LlamaLayer& l = layers_[static_cast<size_t>(layer)];
      attention_block(ctx, batch, layer, l.attn, norm_of_x(l.attn_norm), config_.rope, ws, tap);
      ops::add(ctx, ws.h, ws.x);

      if (l.moe) moe_ffn(ctx, *l.moe, norm_of_x(l.ffn_norm), ws);
      if (l.ffn) gated_ffn(ctx, *l.ffn, norm_of_x(l.ffn_norm), ws);
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
  std::vector<LlamaLayer> layers_;
};

Result<std::unique_ptr<Model>> load(const WeightStore& store) {
  auto model = std::make_unique<LlamaModel>(store);
  SH_RETURN_IF_ERROR(model->bind());
  return std::unique_ptr<Model>(std::move(model));
}

Result<std::vector<std::byte>> tiny(uint64_t seed) {
  TinyModel model("llama", "gpt-2", {}, seed);
  model.decoder_tensors();
  return model.to_bytes();
}

}  // namespace

extern const ArchDef arch_llama;
const ArchDef arch_llama{.gguf_name = "llama", .load = load, .tiny = tiny};

}  // namespace sh::models
