// SPDX-License-Identifier: MIT
#include <filesystem>
#include <map>

#include "engine/reference_queries.h"
#include "engine/scribe.h"

namespace sh::engine {
namespace {

TEST(TurnTokens, ScribesTemplate) {
  const auto engine = open_scribe({.n_ctx = 64, .n_threads = 1});
  const auto turn = turn_tokens(*engine);
  ASSERT_TRUE(turn.ok()) << turn.error().message;
  EXPECT_EQ(turn->close_turn, encode(*engine, "<|end|>"));
  EXPECT_EQ(turn->user_open, encode(*engine, "<|user|>"));
  EXPECT_EQ(turn->user_close, encode(*engine, "<|end|><|assistant|>"));
  EXPECT_EQ(turn->user_open.size(), 1u);
}

// How each template writes a second user turn behind an assistant's: read off the templates. `close` is empty where a template ends the last
// turn of a conversation differently from the others; then only close + open is fixed.
struct Turn {
  std::string close, open, user_close;
};
const std::map<std::string, Turn> kTurns = {
    {"CohereForAI-c4ai-command-r7b-12-2024-tool_use",
     {"", "<|END_RESPONSE|><|END_OF_TURN_TOKEN|><|START_OF_TURN_TOKEN|><|USER_TOKEN|>", "<|END_OF_TURN_TOKEN|><|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>"}},
    {"HuggingFaceTB-SmolLM3-3B", {"<|im_end|>\n", "<|im_start|>user\n", "<|im_end|>\n<|im_start|>assistant\n"}},
    {"LFM2-8B-A1B", {"<|im_end|>\n", "<|im_start|>user\n", "<|im_end|>\n<|im_start|>assistant\n"}},
    {"Mistral-Small-3.2-24B-Instruct-2506", {"<|eos|>", "[INST]", "[/INST]"}},
    {"NousResearch-Hermes-3-Llama-3.1-8B-tool_use", {"<|im_end|>\n", "<|im_start|>user\n", "<|im_end|>\n<|im_start|>assistant\n"}},
    {"Qwen-Qwen2.5-7B-Instruct", {"<|im_end|>\n", "<|im_start|>user\n", "<|im_end|>\n<|im_start|>assistant\n"}},
    {"Qwen-Qwen3-0.6B", {"<|im_end|>\n", "<|im_start|>user\n", "<|im_end|>\n<|im_start|>assistant\n"}},
    {"Qwen3-Coder", {"<|im_end|>\n", "<|im_start|>user\n", "<|im_end|>\n<|im_start|>assistant\n"}},
    {"Qwen3.5-4B", {"<|im_end|>\n", "<|im_start|>user\n", "<|im_end|>\n<|im_start|>assistant\n<think>\n"}},
    {"deepseek-ai-DeepSeek-R1-Distill-Qwen-32B", {"<｜end▁of▁sentence｜>", "<｜User｜>", "<｜Assistant｜><think>\n"}},
    {"google-gemma-2-2b-it", {"<end_of_turn>\n", "<start_of_turn>user\n", "<end_of_turn>\n<start_of_turn>model\n"}},
    {"ibm-granite-granite-3.3-2B-Instruct", {"<|end_of_text|>\n", "<|start_of_role|>user<|end_of_role|>", "<|end_of_text|>\n<|start_of_role|>assistant<|end_of_role|>"}},
    {"ibm-granite-granite-4.0", {"<|end_of_text|>\n", "<|start_of_role|>user<|end_of_role|>", "<|end_of_text|>\n<|start_of_role|>assistant<|end_of_role|>"}},
    {"meta-llama-Llama-3.1-8B-Instruct", {"<|eot_id|>", "<|start_header_id|>user<|end_header_id|>\n\n", "<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n"}},
    {"meta-llama-Llama-3.2-3B-Instruct", {"<|eot_id|>", "<|start_header_id|>user<|end_header_id|>\n\n", "<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n"}},
    {"microsoft-Phi-3.5-mini-instruct", {"", "<|end|>\n<|user|>\n", "<|end|>\n<|assistant|>\n"}},
    {"mistralai-Mistral-Nemo-Instruct-2407", {"<|eos|>", "[INST]", "[/INST]"}},
    {"openai-gpt-oss-120b", {"<|end|>", "<|start|>user<|message|>", "<|end|><|start|>assistant"}},
};

TEST(TurnTokens, TemplatesOfOtherModels) {
  size_t n_templates = 0;
  for (const auto& entry : std::filesystem::directory_iterator(std::string(SH_SOURCE_DIR) + "/tests/golden/chat")) {
    const std::string name = entry.path().stem();
    SCOPED_TRACE(name);
    ++n_templates;
    const auto engine = open_scribe({.n_ctx = 64, .n_threads = 1, .chat_template = read_file(entry.path()).value()});
    ASSERT_NE(engine, nullptr);
    const auto turn = turn_tokens(*engine);
    ASSERT_TRUE(turn.ok()) << turn.error().message;
    ASSERT_TRUE(kTurns.contains(name));
    const Turn& expected = kTurns.at(name);
    const std::string close = text_of(*engine, turn->close_turn), open = text_of(*engine, turn->user_open);
    EXPECT_EQ(close + open, expected.close + expected.open);
    if (!expected.close.empty()) {
      EXPECT_EQ(open, expected.open);
    }
    EXPECT_EQ(text_of(*engine, turn->user_close), expected.user_close);
  }
  EXPECT_EQ(n_templates, kTurns.size());
}

TEST(TurnTokens, ATemplateWithoutTurnsIsAnError) {
  for (const char* source : {"{{ 'always the same' }}", "{% for m in messages %}{{ m['content'] | length }}{% endfor %}", "{{ raise_exception('no') }}"}) {
    const auto engine = open_scribe({.n_ctx = 64, .n_threads = 1, .chat_template = source});
    ASSERT_NE(engine, nullptr) << source;
    const auto turn = turn_tokens(*engine);
    ASSERT_FALSE(turn.ok()) << source;
    EXPECT_GT(turn.error().message.size(), 5u);
  }
}

}  // namespace
}  // namespace sh::engine
