// SPDX-License-Identifier: MIT
// Prompts of 18 real templates for 9 conversations, as llama.cpp and Python's Jinja2 render them
// (tests/golden/README.md).
#include <gtest/gtest.h>
#include <stdlib.h>
#include <time.h>

#include <fstream>
#include <sstream>

#include "chat/chat_template.h"

namespace sh::chat {
namespace {

std::string read_file(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  std::stringstream text;
  text << file.rdbuf();
  return text.str();
}

/// "Error: Jinja Exception: text" -> "text".
std::string raised_text(const std::string& recorded) {
  const std::string mark = "Jinja Exception: ";
  return recorded.substr(recorded.find(mark) + mark.size());
}

void expect_prompt(const Result<std::string>& got, const Json& expected, const char* key,
                   const std::string& where) {
  const std::string error_key = std::string(key) + "_error";
  if (expected.contains(error_key)) {
    ASSERT_FALSE(got.ok()) << where;
    EXPECT_NE(got.error().message.find(raised_text(expected[error_key].get<std::string>())), std::string::npos)
        << where << ": " << got.error().message;
    return;
  }
  ASSERT_TRUE(got.ok()) << where << ": " << got.error().message;
  const Json& wanted = expected[key].is_object() ? expected["raw"] : expected[key];
  EXPECT_EQ(*got, wanted.get<std::string>()) << where;
}

TEST(ChatGolden, EveryTemplateAndConversationIsExact) {
  setenv("TZ", "UTC", 1);
  tzset();
  const std::string root = std::string(SH_SOURCE_DIR) + "/tests/golden/";
  const Json manifest = *parse_json(read_file(root + "chat_manifest.json"));
  int n_raw = 0, n_apply = 0;
  for (const auto& [file, entry] : manifest["templates"].items()) {
    auto parsed = ChatTemplate::parse(read_file(root + entry["template"].get<std::string>()));
    ASSERT_TRUE(parsed.ok()) << file << ": " << parsed.error().message;
    for (const auto& [name, expected] : entry["results"].items()) {
      const Json& conversation = manifest["conversations"][name];
      PromptInput input;
      input.messages = conversation["messages"];
      input.tools = conversation["tools"];
      input.kwargs = expected["kwargs"];
      input.bos_token = entry["bos_token"].get<std::string>();
      input.eos_token = entry["eos_token"].get<std::string>();
      input.add_generation_prompt = conversation["add_generation_prompt"].get<bool>();
      input.now_unix_seconds = 1741964966;  // 2025-03-14T15:09:26Z
      expect_prompt((*parsed)->render(input), expected, "raw", file + " " + name + " raw");
      expect_prompt((*parsed)->apply(input), expected, "apply", file + " " + name + " apply");
      ++n_raw;
      ++n_apply;
    }
  }
  EXPECT_EQ(n_raw, 18 * 9);
  EXPECT_EQ(n_apply, 18 * 9);
}

}  // namespace
}  // namespace sh::chat
