// SPDX-License-Identifier: MIT
// Any bytes as a chat template: it must parse or fail, and a parsed one must render or fail, within its limits.
#include <cstdint>
#include <cstdlib>
#include <string>

#include "chat/chat_template.h"

namespace {

sh::chat::PromptInput fixed_input() {
  sh::chat::PromptInput input;
  input.messages = *sh::parse_json(R"([
    {"role": "system", "content": "Be kind, ünd brief."},
    {"role": "user", "content": [{"type": "text", "text": "Hi 🤔"}]},
    {"role": "assistant", "content": null, "reasoning_content": "Hm.",
     "tool_calls": [{"id": "call00001", "type": "function",
                     "function": {"name": "add", "arguments": "{\"a\": 2, \"b\": [1.5, null]}"}}]},
    {"role": "tool", "tool_call_id": "call00001", "name": "add", "content": "3.5"},
    {"role": "user", "content": "And 9?"}])");
  input.tools = *sh::parse_json(R"([{"type": "function", "function": {"name": "add", "description": "Adds.",
    "parameters": {"type": "object", "properties": {"a": {"type": "number"}}, "required": ["a"]}}}])");
  input.kwargs =
      *sh::parse_json(R"({"x": -3, "f": 0.5, "s": "a b  c", "l": [3, 1, 2], "d": {"k": "v", "n": null}})");
  input.bos_token = "<s>";
  input.eos_token = "</s>";
  input.now_unix_seconds = 1741964966;
  return input;
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  // Small limits: every limit is reached often, and a run stays fast.
  sh::chat::RenderLimits limits;
  limits.max_steps = 100'000;
  limits.max_output_bytes = 1u << 20;
  limits.max_live_bytes = 8u << 20;
  static const sh::chat::PromptInput input = fixed_input();
  const auto parsed =
      sh::chat::ChatTemplate::parse(std::string(reinterpret_cast<const char*>(data), size), limits);
  if (!parsed.ok()) return 0;
  for (const auto& prompt : {(*parsed)->render(input), (*parsed)->apply(input)})
    if (prompt.ok() && prompt->size() > limits.max_output_bytes) std::abort();
  return 0;
}
