// SPDX-License-Identifier: MIT
// Files that must not load, one way of being broken each, and the message that says so.
#include <array>
#include <functional>

#include "models/model_fixture.h"

namespace sh::models {
namespace {

/// A copy of a file under construction, to be spoilt before it is written.
struct Draft {
  std::map<std::string, gguf::Value> metadata;
  std::vector<gguf::TensorInfo> tensors;

  gguf::TensorInfo& tensor(const std::string& name) {
    const auto found = std::find_if(tensors.begin(), tensors.end(), [&](const auto& t) { return t.name == name; });
    SH_CHECK(found != tensors.end(), "the draft has no such tensor");
    return *found;
  }
  void erase_tensor(const std::string& name) {
    std::erase_if(tensors, [&](const auto& t) { return t.name == name; });
  }
};

const ArchDef& architecture(const std::string& name) {
  for (const ArchDef* def : architectures())
    if (def->gguf_name == name) return *def;
  SH_CHECK(false, "no such architecture");
}

/// The toy file of an architecture, spoilt and parsed again.
struct SpoiltFile {
  SpoiltFile(const TinyFile& tiny, const std::function<void(Draft&)>& spoil)
      : bytes(write(tiny, spoil)), file(gguf::File::parse(bytes, "broken.gguf").value()) {}

  static std::vector<std::byte> write(const TinyFile& tiny, const std::function<void(Draft&)>& spoil) {
    Draft draft{tiny.file.metadata(), {tiny.file.tensors().begin(), tiny.file.tensors().end()}};
    spoil(draft);
    gguf::Writer writer;
    for (const auto& [key, value] : draft.metadata) writer.set(key, value);
    for (const gguf::TensorInfo& t : draft.tensors) writer.add_tensor(t.name, t.dtype, t.shape, t.data);
    return writer.to_bytes();
  }

  std::vector<std::byte> bytes;
  gguf::File file;
};

std::string load_error(const std::string& arch, const std::function<void(Draft&)>& spoil) {
  const TinyFile tiny(architecture(arch), 3);
  const SpoiltFile spoilt(tiny, spoil);
  const Result<std::unique_ptr<Model>> model = load_model(spoilt.file);
  return model.ok() ? "loaded" : model.error().message;
}

gguf::Value integer(int64_t value) {
  return gguf::Value(value);
}
gguf::Value number(double value) {
  return gguf::Value(value);
}
gguf::Value text(const std::string& value) {
  return gguf::Value(value);
}

struct Case {
  const char* name;
  const char* arch;
  std::function<void(Draft&)> spoil;
  std::vector<std::string> expected;  // parts of the message
};

const std::vector<Case>& cases() {
  static const std::vector<Case> all = {
      {"UnknownArchitecture",
       "llama",
       [](Draft& d) { d.metadata["general.architecture"] = text("galactic"); },
       {"broken.gguf", "general.architecture", "\"galactic\"", "llama, qwen2, qwen3"}},
      {"NoArchitecture",
       "llama",
       [](Draft& d) { d.metadata.erase("general.architecture"); },
       {"general.architecture"}},
      {"MissingTensor",
       "llama",
       [](Draft& d) { d.erase_tensor("blk.1.ffn_up.weight"); },
       {"blk.1.ffn_up.weight is missing", "[64, 96]"}},
      {"MissingBias",
       "qwen2",
       [](Draft& d) { d.erase_tensor("blk.2.attn_k.bias"); },
       {"blk.2.attn_k.bias is missing", "[64]"}},
      {"MissingHeadNorm",
       "qwen3",
       [](Draft& d) { d.erase_tensor("blk.0.attn_q_norm.weight"); },
       {"blk.0.attn_q_norm.weight is missing", "[32]"}},
      {"WrongShape",
       "llama",
       [](Draft& d) {
         d.tensor("blk.0.attn_k.weight").shape = {32, 128};
       },
       {"blk.0.attn_k.weight", "expected shape [64, 64]", "[32, 128]"}},
      {"QuantisedNorm",
       "llama",
       [](Draft& d) {
         gguf::TensorInfo& norm = d.tensor("output_norm.weight");
         norm.dtype = DType::q8_0;
         norm.data = norm.data.first(68);
       },
       {"output_norm.weight", "expected f32, f16 or bf16", "q8_0"}},
      {"ExtraTensor",
       "llama",
       [](Draft& d) {
         gguf::TensorInfo extra = d.tensor("blk.0.attn_norm.weight");
         extra.name = "blk.0.post_attention_norm.weight";
         d.tensors.push_back(extra);
       },
       {"blk.0.post_attention_norm.weight", "1 tensor"}},
      {"UnknownScalingType",
       "llama",
       [](Draft& d) { d.metadata["llama.rope.scaling.type"] = text("spiral"); },
       {"llama.rope.scaling.type", "none, linear or yarn", "\"spiral\""}},
      {"LogitScale",
       "llama",
       [](Draft& d) { d.metadata["llama.logit_scale"] = number(0.25); },
       {"llama.logit_scale = 0.25", "not supported"}},
      {"SlidingWindow",
       "qwen3",
       [](Draft& d) { d.metadata["qwen3.attention.sliding_window"] = integer(512); },
       {"qwen3.attention.sliding_window = 512", "not supported"}},
      {"MissingKey",
       "qwen2",
       [](Draft& d) { d.metadata.erase("qwen2.block_count"); },
       {"qwen2.block_count", "missing"}},
      {"WrongType",
       "llama",
       [](Draft& d) { d.metadata["llama.block_count"] = text("three"); },
       {"llama.block_count"}},
      {"ZeroHeads",
       "llama",
       [](Draft& d) { d.metadata["llama.attention.head_count"] = integer(0); },
       {"llama.attention.head_count", "got 0"}},
      {"ZeroKvHeads",
       "llama",
       [](Draft& d) { d.metadata["llama.attention.head_count_kv"] = integer(0); },
       {"llama.attention.head_count_kv", "got 0"}},
      {"UnevenGroups",
       "llama",
       [](Draft& d) { d.metadata["llama.attention.head_count_kv"] = integer(3); },
       {"4 query heads", "3 key/value heads"}},
      {"HugeLayers",
       "llama",
       [](Draft& d) { d.metadata["llama.block_count"] = integer(int64_t{1} << 40); },
       {"llama.block_count", "expected 1 to 4096", "1099511627776"}},
      {"NegativeWidth",
       "llama",
       [](Draft& d) { d.metadata["llama.embedding_length"] = integer(-64); },
       {"llama.embedding_length", "got -64"}},
      {"OddRotation",
       "llama",
       [](Draft& d) { d.metadata["llama.rope.dimension_count"] = integer(7); },
       {"llama.rope.dimension_count", "even", "7"}},
      {"NanEpsilon",
       "llama",
       [](Draft& d) { d.metadata["llama.attention.layer_norm_rms_epsilon"] = number(NAN); },
       {"llama.attention.layer_norm_rms_epsilon", "nan"}},
      {"ShortLayerArray",
       "llama",
       [](Draft& d) {
         d.metadata["llama.attention.head_count_kv"] = gguf::Array{std::vector<int64_t>{2, 2}};
       },
       {"llama.attention.head_count_kv", "one value a layer (3)", "got 2"}},
      {"BadLayerArray",
       "llama",
       [](Draft& d) {
         d.metadata["llama.attention.head_count_kv"] = gguf::Array{std::vector<int64_t>{2, 2, -2}};
       },
       {"llama.attention.head_count_kv[2]", "got -2"}},
      {"ExpertsWithoutCount",
       "llama",
       [](Draft& d) { d.metadata["llama.expert_count"] = integer(4); },
       {"llama.expert_used_count", "missing"}},
      {"MoreUsedThanExperts",
       "llama",
       [](Draft& d) {
         d.metadata["llama.expert_count"] = integer(4);
         d.metadata["llama.expert_used_count"] = integer(5);
       },
       {"llama.expert_used_count", "expected 1 to 4", "got 5"}},
      {"ZeroDivisor",
       "llama",
       [](Draft& d) {
         static const std::array<float, 16> divisors{};
         d.tensors.push_back({"rope_freqs.weight", DType::f32, {16}, std::as_bytes(std::span(divisors))});
       },
       {"rope_freqs.weight", "positive", "got 0"}},
      {"VocabularyOfOtherSize",
       "llama",
       [](Draft& d) {
         d.metadata["tokenizer.ggml.tokens"] = gguf::Array{std::vector<std::string>{"a", "b"}};
       },
       {"token_embd.weight", "expected shape [64, 2]"}},
  };
  return all;
}

class Broken : public testing::TestWithParam<size_t> {};

TEST_P(Broken, MessageSaysWhat) {
  const Case& c = cases()[GetParam()];
  const std::string message = load_error(c.arch, c.spoil);
  for (const std::string& part : c.expected)
    EXPECT_NE(message.find(part), std::string::npos) << "\"" << part << "\" in: " << message;
}

INSTANTIATE_TEST_SUITE_P(File, Broken, testing::Range(size_t{0}, cases().size()),
                         [](const auto& c) { return std::string(cases()[c.param].name); });

TEST(Whole, UnspoiltDraftsLoad) {
  for (const ArchDef* def : architectures()) EXPECT_EQ(load_error(def->gguf_name, [](Draft&) {}), "loaded");
}

TEST(Whole, HostileValuesOfAnyKeyGiveAnErrorOrAModelThatRuns) {
  constexpr int64_t kHuge = int64_t{1} << 62;
  const std::vector<gguf::Value> hostile = {integer(0),
                                            integer(-1),
                                            integer(1),
                                            integer(2),
                                            integer(INT32_MAX),
                                            integer(kHuge),
                                            gguf::Value(UINT64_MAX),
                                            number(0.0),
                                            number(-1.0),
                                            number(1e-300),
                                            number(1e308),
                                            number(NAN),
                                            number(INFINITY),
                                            text(""),
                                            text("yarn"),
                                            gguf::Value(true),
                                            gguf::Array{std::vector<int64_t>{}},
                                            gguf::Array{std::vector<int64_t>{kHuge, 0, -1}},
                                            gguf::Array{std::vector<double>{NAN}},
                                            gguf::Array{std::vector<std::string>{""}}};
  for (const ArchDef* def : architectures()) {
    const std::string prefix = std::string(def->gguf_name) + ".";
    std::vector<std::string> keys;
    const TinyFile tiny(*def, 3);
    for (const auto& [key, value] : tiny.file.metadata()) keys.push_back(key);
    for (const char* name :
         {"expert_count", "expert_used_count", "rope.dimension_count", "rope.scaling.type", "rope.scaling.factor",
          "rope.scaling.original_context_length", "rope.scaling.attn_factor", "rope.scale_linear", "vocab_size"})
      keys.push_back(prefix + name);
    int n_loaded = 0, n_refused = 0;
    for (const std::string& key : keys)
      for (const gguf::Value& value : hostile) {
        const SpoiltFile spoilt(tiny, [&](Draft& d) { d.metadata[key] = value; });
        const Result<std::unique_ptr<Model>> model = load_model(spoilt.file);
        if (!model.ok()) {
          EXPECT_FALSE(model.error().message.empty()) << key;
          ++n_refused;
          continue;
        }
        ++n_loaded;
        Runner runner(spoilt.file, supported_kernels().front(), 1);
        kv::SequenceCache sequence = runner.new_sequence();
        runner.feed(sequence, {1, 2, 0});
      }
    EXPECT_GT(n_loaded, 0);
    EXPECT_GT(n_refused, 200);
  }
}

TEST(Whole, LayersMayDifferInKvHeads) {
  const std::string message = load_error("llama", [](Draft& d) {
    d.metadata["llama.attention.head_count_kv"] = gguf::Array{std::vector<int64_t>{2, 1, 2}};
    for (const char* name : {"blk.1.attn_k.weight", "blk.1.attn_v.weight"}) {
      gguf::TensorInfo& tensor = d.tensor(name);
      tensor.shape = {64, 32};
      tensor.data = tensor.data.first(64 * 32 * 2);
    }
  });
  EXPECT_EQ(message, "loaded");
}

}  // namespace
}  // namespace sh::models
