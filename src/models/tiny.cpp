// SPDX-License-Identifier: MIT
#include "models/tiny.h"

#include <cmath>
#include <cstring>

#include "base/utf8.h"
#include "models/layers.h"
#include "tensor/half.h"

namespace sh::models {

namespace {

/// The printable stand-in of a byte in byte-level BPE vocabularies.
/// Source:  GPT-2's byte encoder (Radford et al., 2019): printable Latin-1 stands for itself, the rest for U+0100
/// and on, in order.
std::vector<std::string> byte_pieces() {
  std::vector<std::string> pieces;
  uint32_t n_replaced = 0;
  for (uint32_t byte = 0; byte < 256; ++byte) {
    const bool is_itself = (byte >= 0x21 && byte <= 0x7E) || (byte >= 0xA1 && byte <= 0xAC) || byte >= 0xAE;
    std::string piece;
    append_utf8(piece, is_itself ? byte : 0x100 + n_replaced++);
    pieces.push_back(std::move(piece));
  }
  return pieces;
}

gguf::Value integer(int64_t value) {
  return gguf::Value(value);
}
gguf::Value number(float value) {  // f32 in the file, as llama.cpp wants it
  return gguf::Value(double{value});
}
gguf::Value text(std::string value) {
  return gguf::Value(std::move(value));
}

}  // namespace

TinyModel::TinyModel(const std::string& arch, const std::string& pre, const TinySizes& sizes, uint64_t seed)
    : arch_(arch), sizes_(sizes), rng_(seed) {
  writer_.set("general.architecture", text(arch));
  writer_.set("general.name", text("tiny " + arch));
  writer_.set("general.file_type", integer(1));
  set("block_count", integer(sizes.n_layer));
  set("context_length", integer(sizes.n_ctx));
  set("embedding_length", integer(sizes.n_embd));
  set("feed_forward_length", integer(sizes.n_ff));
  set("attention.head_count", integer(sizes.n_heads));
  set("attention.head_count_kv", integer(sizes.n_kv_heads));
  set("attention.key_length", integer(sizes.head_width));
  set("attention.value_length", integer(sizes.head_width));
  set("attention.layer_norm_rms_epsilon", number(1e-5f));
  set("rope.freq_base", number(10000.0f));
  set_vocabulary(pre);
}

void TinyModel::set_vocabulary(const std::string& pre) {
  constexpr int64_t kNormal = 1, kControl = 3;  // tokenizer.ggml.token_type
  std::vector<std::string> pieces = byte_pieces();
  std::vector<int64_t> types(pieces.size(), kNormal);
  pieces.push_back("th");
  pieces.push_back("the");
  types.resize(pieces.size(), kNormal);
  const int64_t bos = static_cast<int64_t>(pieces.size());
  for (const char* special : {"<|bos|>", "<|eos|>", "<|system|>", "<|user|>", "<|assistant|>", "<|end|>"})
    pieces.push_back(special);
  types.resize(pieces.size(), kControl);
  n_vocab_ = static_cast<int64_t>(pieces.size());
  writer_.set("tokenizer.ggml.model", text("gpt2"));
  writer_.set("tokenizer.ggml.pre", text(pre));
  writer_.set("tokenizer.ggml.tokens", gguf::Array{std::move(pieces)});
  writer_.set("tokenizer.ggml.token_type", gguf::Array{std::move(types)});
  writer_.set("tokenizer.ggml.merges", gguf::Array{std::vector<std::string>{"t h", "th e"}});
  writer_.set("tokenizer.ggml.bos_token_id", integer(bos));
  writer_.set("tokenizer.ggml.eos_token_id", integer(bos + 1));
  writer_.set("tokenizer.ggml.eot_token_id", integer(bos + 5));
  writer_.set("tokenizer.ggml.add_bos_token", gguf::Value(true));
  writer_.set("tokenizer.chat_template", text("{{ bos_token }}{% for m in messages %}{{ '<|' + m['role'] + '|>' + "
                                              "m['content'] + '<|end|>' }}{% endfor %}"
                                              "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"));
}

std::span<const std::byte> TinyModel::keep(std::vector<std::byte> bytes) {
  return data_.emplace_back(std::move(bytes));
}

void TinyModel::matrix(const std::string& name, int64_t n_in, int64_t n_out, double gain, int64_t n_stack) {
  const double deviation = gain / std::sqrt(static_cast<double>(n_in));
  std::vector<std::byte> bytes(static_cast<size_t>(n_in * n_out * n_stack) * sizeof(uint16_t));
  for (size_t at = 0; at < bytes.size(); at += sizeof(uint16_t)) {
    const uint16_t half = float_to_half(static_cast<float>(rng_.next_normal() * deviation));
    std::memcpy(bytes.data() + at, &half, sizeof half);
  }
  std::vector<int64_t> shape{n_in, n_out};
  if (n_stack > 1) shape.push_back(n_stack);
  writer_.add_tensor(name, DType::f16, std::move(shape), keep(std::move(bytes)));
}

void TinyModel::vector(const std::string& name, int64_t n, double mean, double deviation) {
  std::vector<std::byte> bytes(static_cast<size_t>(n) * sizeof(float));
  for (size_t at = 0; at < bytes.size(); at += sizeof(float)) {
    const float value = static_cast<float>(mean + rng_.next_normal() * deviation);
    std::memcpy(bytes.data() + at, &value, sizeof value);
  }
  writer_.add_tensor(name, DType::f32, {n}, keep(std::move(bytes)));
}

void TinyModel::decoder_tensors() {
  const TinySizes& s = sizes_;
  // Tied embeddings: deviation 0.4 times the norm of a unit-size row of 64 gives logits of deviation 3, far from
  // uniform.
  matrix("token_embd.weight", s.n_embd, n_vocab_, 3.0);
  vector("output_norm.weight", s.n_embd, 1.0, 0.1);
  for (int32_t layer = 0; layer < s.n_layer; ++layer) {
    const auto name = [&](const char* rest) { return block_name(layer, rest); };
    vector(name("attn_norm.weight"), s.n_embd, 1.0, 0.1);
    matrix(name("attn_q.weight"), s.n_embd, s.n_heads * s.head_width, 1.5);
    matrix(name("attn_k.weight"), s.n_embd, s.n_kv_heads * s.head_width, 1.5);
    matrix(name("attn_v.weight"), s.n_embd, s.n_kv_heads * s.head_width);
    matrix(name("attn_output.weight"), s.n_heads * s.head_width, s.n_embd);
    vector(name("ffn_norm.weight"), s.n_embd, 1.0, 0.1);
    matrix(name("ffn_gate.weight"), s.n_embd, s.n_ff);
    matrix(name("ffn_up.weight"), s.n_embd, s.n_ff);
    matrix(name("ffn_down.weight"), s.n_ff, s.n_embd);
  }
}

}  // namespace sh::models
