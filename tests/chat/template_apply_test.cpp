// SPDX-License-Identifier: MIT
// What templates can do, found by probing, and how a request is fitted to them.
#include <gtest/gtest.h>

#include <fstream>
#include <sstream>

#include "chat/chat_template.h"

namespace sh::chat {
namespace {

std::unique_ptr<ChatTemplate> parsed(const std::string& source) {
  auto result = ChatTemplate::parse(source);
  EXPECT_TRUE(result.ok()) << result.error().message;
  return std::move(result).value();
}

std::unique_ptr<ChatTemplate> golden(const std::string& name) {
  std::ifstream file(std::string(SH_SOURCE_DIR) + "/tests/golden/chat/" + name, std::ios::binary);
  std::stringstream text;
  text << file.rdbuf();
  return parsed(text.str());
}

PromptInput with_messages(const char* json) {
  PromptInput input;
  input.messages = *parse_json(json);
  input.now_unix_seconds = 1741964966;
  return input;
}

constexpr const char* kPrintContent = "{% for m in messages %}[{{ m.role }}:{{ m.content }}]{% endfor %}";

TEST(TemplateCapabilities, OfRealTemplates) {
  const auto gemma = golden("google-gemma-2-2b-it.jinja")->capabilities();
  EXPECT_FALSE(gemma.supports_system_role);
  EXPECT_FALSE(gemma.supports_tools);
  EXPECT_FALSE(gemma.supports_tool_calls);
  EXPECT_TRUE(gemma.requires_string_content);

  const auto qwen = golden("Qwen-Qwen3-0.6B.jinja")->capabilities();
  EXPECT_TRUE(qwen.supports_system_role);
  EXPECT_TRUE(qwen.supports_tools);
  EXPECT_TRUE(qwen.supports_tool_calls);
  EXPECT_TRUE(qwen.supports_parallel_tool_calls);
  EXPECT_TRUE(qwen.supports_tool_responses);
  EXPECT_TRUE(qwen.requires_string_content);
  EXPECT_FALSE(qwen.requires_string_arguments);

  const auto llama = golden("meta-llama-Llama-3.1-8B-Instruct.jinja")->capabilities();
  EXPECT_TRUE(llama.supports_tool_calls);
  EXPECT_FALSE(llama.supports_parallel_tool_calls);

  EXPECT_FALSE(golden("Mistral-Small-3.2-24B-Instruct-2506.jinja")->capabilities().requires_string_content);
  EXPECT_TRUE(golden("openai-gpt-oss-120b.jinja")->capabilities().requires_content_with_tool_calls);
  EXPECT_FALSE(golden("microsoft-Phi-3.5-mini-instruct.jinja")->capabilities().supports_tools);
}

TEST(TemplateApply, SystemTextGoesIntoTheNextUserTurn) {
  const auto tmpl = parsed(
      "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no') }}{% endif %}"
      "[{{ m.role }}:{{ m.content }}]{% endfor %}");
  EXPECT_EQ(*tmpl->apply(with_messages(R"([{"role":"system","content":"S"},{"role":"user","content":"U"}])")),
            "[user:S\nU]");
  EXPECT_EQ(*tmpl->apply(with_messages(R"([{"role":"system","content":"S"},{"role":"system","content":"T"},
    {"role":"assistant","content":"A"},{"role":"user","content":"U"}])")),
            "[assistant:A][user:S\nT\nU]");
  EXPECT_EQ(*tmpl->apply(with_messages(R"([{"role":"user","content":"U"},{"role":"system","content":"S"}])")),
            "[user:U][user:S]");
}

TEST(TemplateApply, ContentPartsAreJoinedWhereTheTemplateWantsText) {
  const auto tmpl = parsed(kPrintContent);
  EXPECT_EQ(*tmpl->apply(with_messages(
                R"([{"role":"user","content":[{"type":"text","text":"a"},{"type":"text","text":"b"}]}])")),
            "[user:a\nb]");
  const auto image =
      tmpl->apply(with_messages(R"([{"role":"user","content":[{"type":"image_url","image_url":{"url":"x"}}]}])"));
  ASSERT_FALSE(image.ok());
  EXPECT_NE(image.error().message.find("messages[0].content[0]"), std::string::npos);
}

TEST(TemplateApply, TextBecomesAPartWhereTheTemplateWantsParts) {
  const auto tmpl =
      parsed("{% for m in messages %}{% for p in m.content %}<{{ p.text }}>{% endfor %}{% endfor %}");
  EXPECT_TRUE(tmpl->capabilities().requires_part_content);
  EXPECT_EQ(*tmpl->apply(with_messages(R"([{"role":"user","content":"a"}])")), "<a>");
}

TEST(TemplateApply, ArgumentsAreTextWhereTheTemplateWantsText) {
  const auto tmpl = parsed(
      "{% for m in messages %}{{ m.content }}{% for c in m.tool_calls or [] %}"
      "{{ c.function.name + c.function.arguments }}{% endfor %}{% endfor %}");
  EXPECT_TRUE(tmpl->capabilities().requires_string_arguments);
  EXPECT_EQ(*tmpl->apply(with_messages(R"([{"role":"assistant","content":"","tool_calls":[
    {"function":{"name":"f","arguments":"{\"a\": 1}"}}]}])")),
            "f{\"a\":1}");
}

TEST(TemplateApply, ArgumentsThatAreNoObjectStayText) {
  const auto tmpl = parsed("{{ messages[0].tool_calls[0].function.arguments }}");
  EXPECT_EQ(*tmpl->render(with_messages(
                R"([{"role":"assistant","tool_calls":[{"function":{"name":"f","arguments":"not json"}}]}])")),
            "not json");
  EXPECT_EQ(*tmpl->render(with_messages(
                R"([{"role":"assistant","tool_calls":[{"function":{"name":"f","arguments":"[1]"}}]}])")),
            "[1]");
}

TEST(TemplateApply, ContentBesideToolCallsIsTextWhereItMustBe) {
  const auto tmpl = parsed(
      "{% for m in messages %}{{ '' + m.content }}{% for c in m.tool_calls or [] %}"
      "{{ c.function.name }}{{ c.function.arguments|tojson }}{% endfor %}{% endfor %}");
  EXPECT_TRUE(tmpl->capabilities().requires_content_with_tool_calls);
  EXPECT_EQ(*tmpl->apply(with_messages(R"([{"role":"assistant","content":null,"tool_calls":[
    {"function":{"name":"f","arguments":"{}"}}]}])")),
            "f{}");
}

TEST(TemplateApply, DeveloperIsSystemWhereTheTemplateDoesNotKnowIt) {
  EXPECT_EQ(*parsed(kPrintContent)->apply(with_messages(R"([{"role":"developer","content":"D"}])")), "[system:D]");
  EXPECT_EQ(*parsed(std::string("{# developer #}") + kPrintContent)
                 ->apply(with_messages(R"([{"role":"developer","content":"D"}])")),
            "[developer:D]");
}

TEST(TemplateApply, ThinkingIsOnUnlessTheRequestSaysOtherwise) {
  const auto tmpl = parsed("{{ messages[0].content }}{{ enable_thinking }}");
  PromptInput input = with_messages(R"([{"role":"user","content":"U"}])");
  EXPECT_EQ(*tmpl->apply(input), "UTrue");
  EXPECT_EQ(*tmpl->render(input), "U");
  input.kwargs["enable_thinking"] = false;
  EXPECT_EQ(*tmpl->apply(input), "UFalse");
}

TEST(TemplateApply, MalformedMessagesAreErrors) {
  const auto tmpl = parsed(kPrintContent);
  for (const char* messages : {"null", "[]", "{}", "[1]", R"([{"content":"x"}])", R"([{"role":1}])"}) {
    const auto result = tmpl->apply(with_messages(messages));
    ASSERT_FALSE(result.ok()) << messages;
    EXPECT_NE(result.error().message.find("messages"), std::string::npos);
  }
}

TEST(ChatMl, IsWhatItsFormatSays) {
  const auto tmpl = parsed(kChatMlTemplate);
  EXPECT_EQ(
      *tmpl->apply(with_messages(
          R"([{"role":"system","content":"S"},{"role":"user","content":"U"},
              {"role":"assistant","content":null}])")),
      "<|im_start|>system\nS<|im_end|>\n<|im_start|>user\nU<|im_end|>\n<|im_start|>assistant\n<|im_end|>\n<|im_"
      "start|>assistant\n");
  EXPECT_TRUE(tmpl->capabilities().supports_system_role);
  EXPECT_FALSE(tmpl->capabilities().supports_tools);
}

}  // namespace
}  // namespace sh::chat
