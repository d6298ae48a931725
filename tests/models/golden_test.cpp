// SPDX-License-Identifier: MIT
// Logits of tiny random models against those of llama.cpp (tests/golden/README.md): every tensor, hyperparameter
// and position counts.
#include "models/model_fixture.h"

namespace sh::models {
namespace {

std::vector<int32_t> ids_of(const Json& json) {
  return json.get<std::vector<int32_t>>();
}

/// The prompt in pieces of `chunk`, then greedy steps: row 0 is the distribution after the prompt.
Mat<float> decode(Runner& runner, const std::vector<int32_t>& prompt, int64_t chunk, int64_t n_steps,
                  const std::vector<int32_t>& fed) {
  kv::SequenceCache sequence = runner.new_sequence();
  Mat<float> all(n_steps, runner.model->info().n_vocab);
  const auto keep = [&](int64_t step, const Mat<float>& logits) {
    std::copy(logits.row(logits.rows - 1), logits.row(logits.rows - 1) + logits.cols, all.row(step));
  };
  for (int64_t at = 0, n = static_cast<int64_t>(prompt.size()); at < n; at += chunk)
    keep(0, runner.feed(sequence, {prompt.begin() + at, prompt.begin() + std::min(n, at + chunk)}));
  for (int64_t step = 1; step < n_steps; ++step)
    keep(step, runner.feed(sequence, {fed[static_cast<size_t>(step) - 1]}));
  return all;
}

class Golden : public testing::TestWithParam<const char*> {};

TEST_P(Golden, PrefillAndDecodeGiveThePeersLogits) {
  const Json golden = golden_models("manifest.json").at(GetParam());
  const gguf::File file = open_golden(golden.at("file").get<std::string>());
  const std::vector<int32_t> prompt = ids_of(golden.at("tokens")), greedy = ids_of(golden.at("greedy"));
  const double tolerance =
      golden.at("tolerance_abs").get<double>();  // 1e-3; two builds of the peer differ by 1e-5
  for (const kernels::KernelSet* set : supported_kernels()) {
    Runner runner(file, set);
    kv::SequenceCache sequence = runner.new_sequence();
    const Difference whole = compare(runner.feed(sequence, prompt), golden_matrix(golden.at("logits")));
    EXPECT_LT(whole.max, tolerance) << set->name;
    const Mat<float> steps =
        decode(runner, prompt, golden.at("chunk").get<int64_t>(), static_cast<int64_t>(greedy.size()), greedy);
    const Difference decoded = compare(steps, golden_matrix(golden.at("decode_logits")));
    EXPECT_LT(decoded.max, tolerance) << set->name;
    for (int64_t step = 0; step < steps.rows; ++step)
      EXPECT_EQ(argmax(steps.row(step), steps.cols), greedy[static_cast<size_t>(step)])
          << set->name << " step " << step;
    std::printf("%-16s %-8s prefill max %.2e  decode max %.2e\n", GetParam(), set->name, whole.max, decoded.max);
  }
}

INSTANTIATE_TEST_SUITE_P(Models, Golden,
                         testing::Values("llama", "llama-hd32", "llama-ropefreqs", "llama-bias", "llama-yarn",
                                         "llama-moe", "qwen2", "qwen3"),
                         [](const auto& golden) {
                           std::string name = golden.param;
                           std::replace(name.begin(), name.end(), '-', '_');
                           return name;
                         });

TEST(GoldenCache, Q8CacheLiesAtTheIdealOfRoundedRows) {
  const Json golden = golden_models("manifest.json").at("llama-hd32");
  const gguf::File file = open_golden(golden.at("file").get<std::string>());
  const Mat<float> ideal = golden_matrix(golden.at("variants").at("kv-q8_0").at("logits_ideal"));
  for (const kernels::KernelSet* set : supported_kernels()) {
    Runner runner(file, set, 2, DType::q8_0);
    kv::SequenceCache sequence = runner.new_sequence();
    const Mat<float> logits = runner.feed(sequence, ids_of(golden.at("tokens")));
    const Difference d = compare(logits, ideal);
    // Below 1e-3 unless a value tips at a rounding boundary, which moves logits by up to 6e-2
    // (tests/golden/README.md).
    EXPECT_LT(d.max, 6e-2) << set->name;
    EXPECT_LT(d.rms, 5e-3) << set->name;
    std::printf("kv-q8_0          %-8s max %.2e rms %.2e\n", set->name, d.max, d.rms);
  }
}

TEST(Scribe, LoadsAndDescribesItself) {
  const gguf::File file = gguf::File::open(std::string(SH_SOURCE_DIR) + "/models/scribe.gguf").value();
  const Runner runner(file);
  const ModelInfo& info = runner.model->info();
  EXPECT_EQ(info.name, "scribe");
  EXPECT_EQ(info.file_type, "F16");
  EXPECT_EQ(info.n_layer, 5);
  EXPECT_EQ(info.n_vocab, 2048);
  EXPECT_EQ(info.n_ctx_train, 8192);
  EXPECT_EQ(info.n_params, 2048 * 256 + 256 + 5 * (2 * 256 + 2 * 256 * 256 + 2 * 256 * 128 + 3 * 256 * 512));
}

class QuantisedGolden : public testing::TestWithParam<const char*> {};

TEST_P(QuantisedGolden, LogitsLieNearThoseOfDequantisedWeights) {
  const Json golden = golden_models("quant_manifest.json").at(GetParam());
  const gguf::File file = open_golden(golden.at("file").get<std::string>());
  const Mat<float> exact = golden_matrix(golden.at("logits_f32_weights"));
  // Activations rounded to 8 bits: twice what the peer's kernels, which do the same, are away. 16-bit weights
  // leave them in f32.
  const bool is_half = golden.at("arch").get<std::string>() == "qwen3";
  const double max_allowed = is_half ? 1e-3 : 2.0 * golden.at("max_abs_diff_native_vs_f32_weights").get<double>();
  const double rms_allowed = is_half ? 1e-3 : 2.0 * golden.at("rms_diff_native_vs_f32_weights").get<double>();
  const std::vector<int32_t> greedy = ids_of(golden.at("greedy"));
  const int64_t n_clear = golden.at("greedy_leading_steps_with_gap_over_0.5").get<int64_t>();
  for (const kernels::KernelSet* set : supported_kernels()) {
    Runner runner(file, set);
    kv::SequenceCache sequence = runner.new_sequence();
    const Difference d = compare(runner.feed(sequence, ids_of(golden.at("tokens"))), exact);
    EXPECT_LT(d.max, max_allowed) << set->name;
    EXPECT_LT(d.rms, rms_allowed) << set->name;
    const Mat<float> steps =
        decode(runner, ids_of(golden.at("tokens")), golden.at("chunk").get<int64_t>(), n_clear, greedy);
    for (int64_t step = 0; step < n_clear; ++step)
      EXPECT_EQ(argmax(steps.row(step), steps.cols), greedy[static_cast<size_t>(step)])
          << set->name << " step " << step;
    std::printf("%-16s %-8s max %.2e rms %.2e (allowed %.2e %.2e)\n", GetParam(), set->name, d.max, d.rms,
                max_allowed, rms_allowed);
  }
}

INSTANTIATE_TEST_SUITE_P(Models, QuantisedGolden,
                         testing::Values("llama-q.Q4_K_M", "llama-q.Q8_0", "llama-q.Q4_0", "llama-q.IQ4_XS",
                                         "qwen3.F16", "qwen3.BF16"),
                         [](const auto& golden) {
                           std::string name = golden.param;
                           std::replace_if(
                               name.begin(), name.end(), [](char c) { return c == '-' || c == '.'; }, '_');
                           return name;
                         });

}  // namespace
}  // namespace sh::models
