// SPDX-License-Identifier: MIT
// Byte and operation counts, against numbers worked out by hand.
#include "engine/cost.h"

#include <gtest/gtest.h>

#include "engine/engine.h"

namespace sh::engine {
namespace {

std::unique_ptr<Engine> open(const std::string& path) {
  auto engine = Engine::open({.model_path = std::string(SH_SOURCE_DIR) + path, .n_ctx = 256, .n_threads = 1});
  EXPECT_TRUE(engine.ok()) << (engine.ok() ? "" : engine.error().message);
  return std::move(*engine);
}

TEST(Cost, TiedModelReadsEveryWeight) {
  const auto engine = open("/models/scribe.gguf");
  const WeightCost cost = weight_cost(engine->file());
  EXPECT_EQ(cost.bytes, engine->file().total_tensor_bytes());
  EXPECT_EQ(cost.output_elements, 2048 * 256);
  // A layer: q and o 256·256, k and v 256·128, gate, up and down 256·512.
  EXPECT_EQ(cost.layer_elements, 5 * (2 * 256 * 256 + 2 * 256 * 128 + 3 * 256 * 512));
}

TEST(Cost, UntiedEmbeddingsAreNotRead) {
  const auto engine = open("/tests/golden/llama.gguf");
  const WeightCost cost = weight_cost(engine->file());
  const gguf::TensorInfo* embedding = engine->file().find_tensor("token_embd.weight");
  ASSERT_NE(embedding, nullptr);
  ASSERT_NE(engine->file().find_tensor("output.weight"), nullptr);
  EXPECT_EQ(cost.bytes, engine->file().total_tensor_bytes() - static_cast<int64_t>(embedding->data.size()));
}

TEST(Cost, OfExpertsOnlyTheUsedShareIsRead) {
  const auto engine = open("/tests/golden/llama-moe.gguf");
  const auto n_all = engine->file().find_int("llama.expert_count"),
             n_used = engine->file().find_int("llama.expert_used_count");
  ASSERT_TRUE(n_all.ok() && n_used.ok() && n_all->has_value() && n_used->has_value());
  ASSERT_LT(**n_used, **n_all);
  int64_t expected = 0;
  for (const gguf::TensorInfo& tensor : engine->file().tensors()) {
    const auto n_bytes = static_cast<int64_t>(tensor.data.size());
    if (tensor.name == "token_embd.weight") continue;  // this file has an output matrix
    expected += tensor.name.find("_exps") != std::string::npos ? n_bytes * **n_used / **n_all : n_bytes;
  }
  EXPECT_EQ(weight_cost(engine->file()).bytes, expected);
}

TEST(Cost, KeysAndValuesOfEveryRow) {
  const auto engine = open("/models/scribe.gguf");
  kv::SequenceCache sequence(engine->block_pool());
  EXPECT_EQ(kv_bytes_read(sequence), 0);
  const std::vector<int32_t> ids(37, 5);
  ASSERT_TRUE(engine->prefill(sequence, ids).ok());
  EXPECT_EQ(kv_bytes_read(sequence), 37 * engine->kv_layout().bytes_per_token());
  EXPECT_EQ(engine->kv_layout().bytes_per_token(),
            5 * 2 * (64 + 64) * 2);  // layers, heads, key and value widths, f16
}

TEST(Cost, OperationsOfAPrompt) {
  const auto engine = open("/models/scribe.gguf");
  const WeightCost cost = weight_cost(engine->file());
  // Two tokens behind three: 4 + 5 visible rows; 5 layers of 4 query heads, 64 wide for keys and for values.
  const double attention = 2.0 * (4 + 5) * 5 * 4 * (64 + 64);
  const double products =
      2.0 * (2.0 * static_cast<double>(cost.layer_elements) + static_cast<double>(cost.output_elements));
  const Operations operations = prefill_operations(engine->model(), cost, 2, 3);
  EXPECT_DOUBLE_EQ(operations.multiply_adds, attention + products) << "scribe's weights are halves";
  EXPECT_EQ(operations.byte_products, 0);
}

TEST(Cost, QuantisedWeightsAreMultipliedAsBytes) {
  const auto engine = open("/tests/golden/llama-q.Q8_0.gguf");
  const WeightCost cost = weight_cost(engine->file());
  EXPECT_EQ(cost.layer_elements_quantised, cost.layer_elements);
  EXPECT_EQ(cost.output_elements_quantised, cost.output_elements);
  const Operations operations = prefill_operations(engine->model(), cost, 2, 0);
  EXPECT_DOUBLE_EQ(operations.byte_products,
                   2.0 * static_cast<double>(2 * cost.layer_elements + cost.output_elements));
  EXPECT_GT(operations.multiply_adds, 0) << "attention";
}

}  // namespace
}  // namespace sh::engine
