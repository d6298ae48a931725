// SPDX-License-Identifier: MIT
// shorthand make-model: a file with the shape of a well-known model and random weights. Its speed is that of the
// real one, its text is noise.
#include <fmt/format.h>

#include <algorithm>

#include "base/rng.h"
#include "gguf/gguf.h"
#include "tools/commands.h"
#include "tools/terminal.h"

namespace sh::tools {

namespace {

/// Source:  the configurations that the models were published with.
struct Shape {
  const char* arch;
  const char* name;
  int32_t n_layer, n_embd, n_heads, n_kv_heads, head_width, n_ff, n_vocab, n_ctx;
  double rope_base;
  bool is_tied;         // output = embedding table
  bool has_head_norms;  // of queries and keys
  bool has_qkv_biases;
};
constexpr Shape kShapes[] = {
    {"llama", "135M", 30, 576, 9, 3, 64, 1536, 49152, 8192, 100000, true, false, false},
    {"llama", "1B", 16, 2048, 32, 8, 64, 8192, 128256, 131072, 500000, true, false, false},
    {"llama", "3B", 28, 3072, 24, 8, 128, 8192, 128256, 131072, 500000, true, false, false},
    {"llama", "8B", 32, 4096, 32, 8, 128, 14336, 128256, 131072, 500000, false, false, false},
    {"qwen2", "0.5B", 24, 896, 14, 2, 64, 4864, 151936, 32768, 1000000, true, false, true},
    {"qwen2", "1.5B", 28, 1536, 12, 2, 128, 8960, 151936, 32768, 1000000, true, false, true},
    {"qwen2", "7B", 28, 3584, 28, 4, 128, 18944, 152064, 32768, 1000000, false, false, true},
    {"qwen3", "0.6B", 28, 1024, 16, 8, 128, 3072, 151936, 40960, 1000000, true, true, false},
    {"qwen3", "1.7B", 28, 2048, 16, 8, 128, 6144, 151936, 40960, 1000000, true, true, false},
    {"qwen3", "4B", 36, 2560, 32, 8, 128, 9728, 151936, 40960, 1000000, true, true, false},
    {"qwen3", "8B", 36, 4096, 32, 8, 128, 12288, 151936, 40960, 1000000, false, true, false},
};

Result<const Shape*> find_shape(const std::string& arch, const std::string& name) {
  std::string known;
  for (const Shape& shape : kShapes) {
    if (shape.arch == arch && shape.name == name) return &shape;
    known += fmt::format("{}{} {}", known.empty() ? "" : ", ", shape.arch, shape.name);
  }
  return Error{ErrorKind::not_found, fmt::format("--arch {} --shape {}: known are {}", arch, name, known)};
}

/// Collects tensors that all borrow from two buffers of random rows: speed depends on shapes and formats, not on
/// which weights repeat.
class RandomFile {
 public:
  RandomFile(const Shape& shape, DType dtype) : shape_(shape), dtype_(dtype) {}

  /// Errors: invalid_argument when a row is no whole number of the format's blocks.
  Result<void> build() {
    const int32_t block = tensor_format(dtype_).block_elements;
    for (const int64_t n_in :
         {int64_t{shape_.n_embd}, int64_t{shape_.n_ff}, int64_t{shape_.n_heads} * shape_.head_width})
      if (n_in % block != 0)
        return Error{
            ErrorKind::invalid_argument,
            fmt::format("--type {}: rows of {} are no multiple of its blocks of {}; choose another format",
                        tensor_format(dtype_).name, n_in, block)};
    fill_buffers();
    set_keys();
    set_vocabulary();
    add_tensors();
    return {};
  }
  Result<void> write(const std::string& path) const { return writer_.write(path); }

 private:
  void set(const std::string& name, gguf::Value value) {
    writer_.set(std::string(shape_.arch) + "." + name, std::move(value));
  }

  void fill_buffers() {
    Rng rng(1);
    std::vector<float> numbers(1 << 20);
    for (float& x : numbers)
      x = static_cast<float>(rng.next_normal() * 0.02);  // activations keep their size, about
    int64_t n_largest = int64_t{shape_.n_vocab} * shape_.n_embd;
    n_largest = std::max(n_largest, int64_t{shape_.n_ff} * shape_.n_embd);
    matrix_.resize(static_cast<size_t>(row_bytes(dtype_, n_largest)));
    const auto tile = static_cast<size_t>(row_bytes(dtype_, static_cast<int64_t>(numbers.size())));
    std::vector<std::byte> encoded(tile);
    tensor_format(dtype_).quantize(numbers.data(), static_cast<int64_t>(numbers.size()), encoded.data());
    for (size_t at = 0; at < matrix_.size(); at += tile)
      std::copy_n(encoded.begin(), std::min(tile, matrix_.size() - at),
                  matrix_.begin() + static_cast<std::ptrdiff_t>(at));
    ones_.assign(static_cast<size_t>(std::max(shape_.n_embd, shape_.n_heads * shape_.head_width)), 1.0f);
    zeros_.assign(ones_.size(), 0.0f);
  }

  void set_keys() {
    writer_.set("general.architecture", std::string(shape_.arch));
    writer_.set("general.name", fmt::format("random {} {}", shape_.arch, shape_.name));
    set("block_count", int64_t{shape_.n_layer});
    set("context_length", int64_t{shape_.n_ctx});
    set("embedding_length", int64_t{shape_.n_embd});
    set("feed_forward_length", int64_t{shape_.n_ff});
    set("attention.head_count", int64_t{shape_.n_heads});
    set("attention.head_count_kv", int64_t{shape_.n_kv_heads});
    set("attention.key_length", int64_t{shape_.head_width});
    set("attention.value_length", int64_t{shape_.head_width});
    set("attention.layer_norm_rms_epsilon", double{1e-6f});  // written as f32, as llama.cpp wants it
    set("rope.freq_base", shape_.rope_base);
  }

  /// SentencePiece with a token for every byte, so that any text can be read, and tokens of the ChatML template
  /// and of the instruction that compactions repeat a text with, so that these are as long as with a real
  /// vocabulary (15 tokens, not 101 bytes); the rest is never met.
  void set_vocabulary() {
    constexpr int64_t kNormal = 1, kUnknown = 2, kControl = 3, kUserDefined = 4,
                      kByte = 6;  // tokenizer.ggml.token_type
    std::vector<std::string> pieces = {"<unk>", "<s>", "</s>"};
    std::vector<int64_t> kinds = {kUnknown, kControl, kControl};
    for (int byte = 0; byte < 256; ++byte) pieces.push_back(fmt::format("<0x{:02X}>", byte));
    kinds.resize(pieces.size(), kByte);
    for (const char* marker : {"<|im_start|>", "<|im_end|>"}) pieces.push_back(marker);
    kinds.resize(pieces.size(), kControl);
    for (const char* word : {"user", "assistant", "system", "Repeat", " the", " text", " above", "\n"})
      pieces.push_back(word);
    kinds.resize(pieces.size(), kUserDefined);
    while (static_cast<int32_t>(pieces.size()) < shape_.n_vocab)
      pieces.push_back(fmt::format("\xE2\x96\x81unused{}", pieces.size()));
    kinds.resize(pieces.size(), kNormal);
    std::vector<double> scores(pieces.size(), 0.0);
    writer_.set("tokenizer.ggml.model", std::string("llama"));
    writer_.set("tokenizer.ggml.tokens", gguf::Array{std::move(pieces)});
    writer_.set("tokenizer.ggml.scores", gguf::Array{std::move(scores)});
    writer_.set("tokenizer.ggml.token_type", gguf::Array{std::move(kinds)});
    writer_.set("tokenizer.ggml.unknown_token_id", int64_t{0});
    writer_.set("tokenizer.ggml.bos_token_id", int64_t{1});
    writer_.set("tokenizer.ggml.eos_token_id", int64_t{2});
  }

  void matrix(const std::string& name, int64_t n_in, int64_t n_out) {
    const auto n_bytes = static_cast<size_t>(row_bytes(dtype_, n_in) * n_out);
    writer_.add_tensor(name, dtype_, {n_in, n_out}, std::span(matrix_).first(n_bytes));
  }
  void vector(const std::string& name, int64_t n, const std::vector<float>& values) {
    writer_.add_tensor(name, DType::f32, {n}, std::as_bytes(std::span(values).first(static_cast<size_t>(n))));
  }

  void add_tensors() {
    const Shape& s = shape_;
    const int64_t n_query = int64_t{s.n_heads} * s.head_width, n_kv = int64_t{s.n_kv_heads} * s.head_width;
    matrix("token_embd.weight", s.n_embd, s.n_vocab);
    vector("output_norm.weight", s.n_embd, ones_);
    if (!s.is_tied) matrix("output.weight", s.n_embd, s.n_vocab);
    for (int32_t layer = 0; layer < s.n_layer; ++layer) {
      const auto name = [&](const char* rest) { return fmt::format("blk.{}.{}", layer, rest); };
      vector(name("attn_norm.weight"), s.n_embd, ones_);
      matrix(name("attn_q.weight"), s.n_embd, n_query);
      matrix(name("attn_k.weight"), s.n_embd, n_kv);
      matrix(name("attn_v.weight"), s.n_embd, n_kv);
      if (s.has_qkv_biases) {
        vector(name("attn_q.bias"), n_query, zeros_);
        vector(name("attn_k.bias"), n_kv, zeros_);
        vector(name("attn_v.bias"), n_kv, zeros_);
      }
      if (s.has_head_norms) {
        vector(name("attn_q_norm.weight"), s.head_width, ones_);
        vector(name("attn_k_norm.weight"), s.head_width, ones_);
      }
      matrix(name("attn_output.weight"), n_query, s.n_embd);
      vector(name("ffn_norm.weight"), s.n_embd, ones_);
      matrix(name("ffn_gate.weight"), s.n_embd, s.n_ff);
      matrix(name("ffn_up.weight"), s.n_embd, s.n_ff);
      matrix(name("ffn_down.weight"), s.n_ff, s.n_embd);
    }
  }

  const Shape& shape_;
  DType dtype_;
  gguf::Writer writer_;
  std::vector<std::byte> matrix_;
  std::vector<float> ones_, zeros_;
};

Result<void> run(const engine::ProgramParams& params) {
  if (params.tool.output_path.empty())
    return Error{ErrorKind::invalid_argument, "no output given: name a file with -o FILE"};
  SH_ASSIGN(const Shape* shape, find_shape(params.tool.arch, params.tool.shape));
  RandomFile file(*shape, params.tool.dtype);
  SH_RETURN_IF_ERROR(file.build());
  SH_RETURN_IF_ERROR(file.write(params.tool.output_path));
  SH_ASSIGN(const gguf::File written, gguf::File::open(params.tool.output_path));
  fmt::print("{}: {} {}, {} in {} tensors, weights random\n", params.tool.output_path, shape->arch, shape->name,
             size_text(written.total_tensor_bytes()), written.tensors().size());
  return {};
}

}  // namespace

int make_model_command(Arguments arguments) {
  engine::ProgramParams params;
  if (const std::optional<int> status = read_params(engine::kMakeModel, arguments, params)) return *status;
  return exit_status(run(params));
}

}  // namespace sh::tools
