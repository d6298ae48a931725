// SPDX-License-Identifier: MIT
// What single chat formats need beyond their template, one row each.
#include <string_view>

#include "chat/template_apply.h"

namespace sh::chat {

namespace {

/// A text that a template puts at the end of a training example, where a prompt must have another one.
struct EndOfPromptRule {
  std::string_view format;
  std::string_view mark;  // the template contains it
  std::string_view training_end;
  std::string_view prompt_end;
};

constexpr EndOfPromptRule kEndOfPromptRules[] = {
    // Harmony: <|return|> is what the model emits when it is done; in a conversation every message ends in
    // <|end|>.
    // Source: OpenAI harmony response format, "Special tokens".
    {"gpt-oss", "<|channel|>", "<|return|>", "<|end|>"},
};

}  // namespace

void apply_format_rules(const std::string& template_source, const PromptInput& input, std::string& prompt) {
  for (const EndOfPromptRule& rule : kEndOfPromptRules) {
    if (input.add_generation_prompt || template_source.find(rule.mark) == std::string::npos) continue;
    if (prompt.size() < rule.training_end.size()) continue;
    const size_t at = prompt.size() - rule.training_end.size();
    if (prompt.compare(at, std::string::npos, rule.training_end) == 0)
      prompt.replace(at, std::string::npos, rule.prompt_end);
  }
}

}  // namespace sh::chat
