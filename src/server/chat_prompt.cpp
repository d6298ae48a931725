// SPDX-License-Identifier: MIT
#include "server/chat_prompt.h"

#include <fmt/format.h>

#include "server/field_reader.h"

namespace sh::server {
namespace {

Error bad_message(size_t index, const std::string& what) {
  return Error{ErrorKind::invalid_argument, fmt::format("messages[{}]: {}", index, what)};
}

/// Text of a message's content; null counts as "".
Result<std::string> text_of(const Json& message, size_t index) {
  const auto content = message.find("content");
  if (content == message.end() || content->is_null()) return std::string();
  if (content->is_string()) return content->get<std::string>();
  std::string text;
  for (const Json& part : *content)
    if (part.is_object() && part.contains("text"))
      text += part["text"].get<std::string>();
    else
      return bad_message(index, "a message that is continued must be text");
  return text;
}

Result<void> check_content(const Json& content, size_t index) {
  if (content.is_string() || content.is_null()) return {};
  if (!content.is_array())
    return bad_message(index,
                       fmt::format("content: expected a string or a list of parts, got {}", content.type_name()));
  for (const Json& part : content) {
    if (!part.is_object() || !part.contains("type") || !part["type"].is_string())
      return bad_message(index, "content: expected parts like {\"type\": \"text\", \"text\": ...}");
    const auto& type = part["type"].get_ref<const std::string&>();
    if (type != "text")
      return Error{ErrorKind::unsupported,
                   fmt::format("messages[{}]: content of type '{}' is not supported; send text", index, type)};
    if (!part.contains("text") || !part["text"].is_string())
      return bad_message(index, "content: a part of type text needs 'text', a string");
  }
  return {};
}

/// The messages, checked; the role developer is OpenAI's newer word for system.
Result<Json> checked_messages(const Json& body) {
  const auto found = body.find("messages");
  if (found == body.end() || !found->is_array() || found->empty())
    return Error{ErrorKind::invalid_argument, "messages: expected a list of at least one message"};
  Json messages = Json::array();
  for (size_t i = 0; i < found->size(); ++i) {
    Json message = (*found)[i];
    if (!message.is_object()) return bad_message(i, "expected an object");
    if (!message.contains("role") || !message["role"].is_string())
      return bad_message(i, "role: expected a string");
    if (message["role"] == "developer") message["role"] = "system";
    const bool has_tool_calls = message.contains("tool_calls") && !message["tool_calls"].is_null();
    if (has_tool_calls && !message["tool_calls"].is_array()) return bad_message(i, "tool_calls: expected a list");
    if (!has_tool_calls && !message.contains("content")) return bad_message(i, "content: the field is missing");
    if (message.contains("content")) SH_RETURN_IF_ERROR(check_content(message["content"], i));
    messages.push_back(std::move(message));
  }
  return messages;
}

/// Tools to show the model. With tool_choice "none" it sees none.
Result<Json> checked_tools(const Json& body) {
  const auto found = body.find("tools");
  if (found == body.end() || found->is_null()) return Json();
  if (!found->is_array())
    return Error{ErrorKind::invalid_argument, fmt::format("tools: expected a list, got {}", found->type_name())};
  const auto choice = body.find("tool_choice");
  if (choice == body.end() || choice->is_null() || *choice == "auto") return found->empty() ? Json() : *found;
  if (*choice == "none") return Json();
  if (*choice == "required" || choice->is_object())
    return Error{ErrorKind::unsupported,
                 "tool_choice: forcing a tool call is not supported yet; use \"auto\" or \"none\""};
  return Error{ErrorKind::invalid_argument,
               fmt::format("tool_choice: expected \"auto\", \"none\", \"required\" or an object, got {}",
                           dump_json(*choice))};
}

std::string special_text(const tokenizer::Tokenizer& tokenizer, int32_t id) {
  return id == tokenizer::kNoToken ? "" : tokenizer.piece(id, true);
}

}  // namespace

Result<std::string> render_chat(const Json& body, const chat::ChatTemplate& chat_template,
                                const tokenizer::Tokenizer& tokenizer) {
  chat::PromptInput input;
  SH_ASSIGN(input.messages, checked_messages(body));
  SH_ASSIGN(input.tools, checked_tools(body));
  input.bos_token = special_text(tokenizer, tokenizer.data().bos);
  input.eos_token = special_text(tokenizer, tokenizer.data().eos);
  FieldReader fields(body);
  if (const Json* kwargs = fields.find("chat_template_kwargs")) {
    if (!kwargs->is_object()) fields.fail("chat_template_kwargs", "an object", *kwargs);
    input.kwargs = *kwargs;
  }
  bool adds_prompt = true, continues = false;
  fields.read("add_generation_prompt", adds_prompt);
  fields.read("continue_final_message", continues);
  SH_RETURN_IF_ERROR(fields.result());
  const bool asks_prompt = fields.find("add_generation_prompt") != nullptr && adds_prompt;
  if (asks_prompt && continues)
    return Error{ErrorKind::invalid_argument,
                 "add_generation_prompt and continue_final_message cannot both be true"};

  const size_t n = input.messages.size();
  const bool ends_with_assistant =
      input.messages.back()["role"] == "assistant" && !input.messages.back().contains("tool_calls");
  const bool may_continue = continues || (fields.find("continue_final_message") == nullptr && !asks_prompt);
  if (!ends_with_assistant || !may_continue) {
    if (continues)
      return Error{ErrorKind::invalid_argument, "continue_final_message: the last message is not the assistant's"};
    input.add_generation_prompt = adds_prompt;
    return chat_template.apply(input);
  }
  if (n >= 2 && input.messages[n - 2]["role"] == "assistant")
    return bad_message(n - 1, "two assistant messages at the end cannot be continued");
  SH_ASSIGN(const std::string begun, text_of(input.messages.back(), n - 1));
  input.messages.erase(n - 1);
  input.add_generation_prompt = true;
  SH_ASSIGN(std::string prompt, chat_template.apply(input));
  return prompt + begun;
}

std::string without_added_bos(std::string prompt, const tokenizer::Tokenizer& tokenizer) {
  const std::string bos = special_text(tokenizer, tokenizer.data().bos);
  if (tokenizer.adds_bos() && prompt.starts_with(bos)) prompt.erase(0, bos.size());
  return prompt;
}

std::vector<int32_t> encode_chat(const std::string& prompt, const tokenizer::Tokenizer& tokenizer) {
  const std::string bos = special_text(tokenizer, tokenizer.data().bos);
  const bool has_bos = !bos.empty() && prompt.starts_with(bos);
  return tokenizer.encode(prompt, {.add_special = !has_bos, .parse_special = true});
}

}  // namespace sh::server
