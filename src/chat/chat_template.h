// SPDX-License-Identifier: MIT
#pragma once

#include <cstdint>
#include <memory>
#include <string>

#include "base/json.h"
#include "base/result.h"

namespace sh::chat {

/// What a prompt is made of; messages in the OpenAI form.
struct PromptInput {
  Json messages = Json::array();     // [{role, content (string or parts) , tool_calls?, ...}]
  Json tools;                        // array, or null
  Json kwargs = Json::object();      // chat_template_kwargs: variables for the template
  std::string bos_token, eos_token;  // as text
  bool add_generation_prompt = true;
  int64_t now_unix_seconds = 0;  // for strftime_now; 0 = the clock
};

/// What one render may use: templates come from model files, so a hostile one must end soon and in bounded memory.
struct RenderLimits {
  uint64_t max_steps = 50'000'000;  // about 2 s; a long agent conversation takes less than a million
  int max_depth = 500;              // nested statements, expressions and macro calls; about 3 MB of stack
  uint64_t max_output_bytes = 64u << 20;
  uint64_t max_live_bytes = 512u << 20;  // strings and containers that the template made
};

/// What a template can do, found by probing renders.
struct TemplateCapabilities {
  bool supports_system_role = false;
  bool supports_tools = false;
  bool supports_tool_calls = false;
  bool supports_parallel_tool_calls = false;
  bool supports_tool_responses = false;
  bool requires_string_content = true;            // content must be a string, not a list of parts
  bool requires_part_content = false;             // content must be a list of parts, not a string
  bool requires_string_arguments = false;         // tool-call arguments must be JSON text, not an object
  bool requires_content_with_tool_calls = false;  // content beside tool calls must be a string, not null
};

/// A chat template of a model, parsed. Threads: const members may be called at once.
class ChatTemplate {
 public:
  /// Errors: invalid_argument with row, column and the line with a caret.
  static Result<std::unique_ptr<ChatTemplate>> parse(std::string source, const RenderLimits& limits = {});
  virtual ~ChatTemplate() = default;

  /// Renders the template as it stands (blocks trimmed and left-stripped; tojson without ASCII escaping).
  /// Tool-call arguments that are JSON text of an object become objects, as transformers passes them. No `tools`
  /// variable if there are none. Errors: invalid_argument: raise_exception() of the template, an undefined
  /// operation, or a render that exceeds its step, depth or output limits.
  virtual Result<std::string> render(const PromptInput& input) const = 0;

  /// The prompt a server builds: render() plus the work-arounds that make a request fit the template (system text
  /// folded into the user turn where the template refuses the role, tool-call arguments as objects, content parts
  /// joined, enable_thinking on by default).
  virtual Result<std::string> apply(const PromptInput& input) const = 0;

  virtual const TemplateCapabilities& capabilities() const = 0;
  virtual const std::string& source() const = 0;
};

/// The ChatML template, used when a model brings none.
extern const char* const kChatMlTemplate;

}  // namespace sh::chat
