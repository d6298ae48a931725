// SPDX-License-Identifier: MIT
#include "chat/template_apply.h"

#include <fmt/format.h>

namespace sh::chat {

namespace {

// Words that no template contains by itself.
constexpr const char* kSystemWord = "zqsystemzq";
constexpr const char* kUserWord = "zquserzq";
constexpr const char* kToolWord = "zqtoolzq";
constexpr const char* kOtherToolWord = "zqothertoolzq";
constexpr const char* kKeyWord = "zqkeyzq";
constexpr const char* kResultWord = "zqresultzq";
// Mistral's templates want ids of nine characters.
constexpr const char* kCallId = "call00001";
constexpr const char* kOtherCallId = "call00002";

Json message(const char* role, Json content) {
  return {{"role", role}, {"content", std::move(content)}};
}

Json text_part(const std::string& text) {
  return {{"type", "text"}, {"text", text}};
}

/// A list. Not `Json{a}`: compilers differ on whether that copies or wraps.
template <typename... Items>
Json list_of(Items... items) {
  Json list = Json::array();
  (list.push_back(std::move(items)), ...);
  return list;
}

Json tool_definition() {
  return {{"type", "function"},
          {"function",
           {{"name", kToolWord},
            {"description", "A tool."},
            {"parameters",
             {{"type", "object"},
              {"properties", {{kKeyWord, {{"type", "string"}, {"description", "A text."}}}}},
              {"required", list_of(kKeyWord)}}}}}};
}

Json tool_call(const char* id, const char* name, bool as_text) {
  const Json arguments = {{kKeyWord, "x"}};
  const Json passed = as_text ? Json(arguments.dump()) : arguments;
  return {{"id", id}, {"type", "function"}, {"function", {{"name", name}, {"arguments", passed}}}};
}

/// A question, calls of tools and, for each, a result.
Json tool_conversation(Json content, const Json& calls) {
  Json messages = list_of(message("user", kUserWord));
  Json assistant = message("assistant", std::move(content));
  assistant["tool_calls"] = calls;
  messages.push_back(std::move(assistant));
  for (const Json& call : calls) {
    Json result = message("tool", kResultWord);
    result["tool_call_id"] = call["id"];
    result["name"] = call["function"]["name"];
    messages.push_back(std::move(result));
  }
  return messages;
}

bool has(const Result<std::string>& prompt, const std::string& text) {
  return prompt.ok() && prompt.value().find(text) != std::string::npos;
}

}  // namespace

TemplateCapabilities probe_capabilities(const RenderExactly& render) {
  const auto probe = [&](Json messages, bool with_tools = false) {
    PromptInput input;
    input.messages = std::move(messages);
    if (with_tools) input.tools = list_of(tool_definition());
    input.kwargs["enable_thinking"] = true;
    input.now_unix_seconds = 1;
    return render(input);
  };
  TemplateCapabilities can;
  can.supports_system_role =
      has(probe(list_of(message("system", kSystemWord), message("user", kUserWord))), kSystemWord);

  // A list that was printed as it is shows the keys of its parts.
  const auto takes_content = [&](const Json& content) {
    const auto prompt = probe(list_of(message("user", content)));
    return has(prompt, kUserWord) && !has(prompt, "'type'") && !has(prompt, "\"type\"");
  };
  const bool takes_parts = takes_content(list_of(text_part(kUserWord)));
  can.requires_string_content = !takes_parts;
  can.requires_part_content = takes_parts && !takes_content(kUserWord);

  can.supports_tools = has(probe(list_of(message("user", kUserWord)), true), kToolWord);
  const Json call = list_of(tool_call(kCallId, kToolWord, false));
  const Json text_call = list_of(tool_call(kCallId, kToolWord, true));
  // Without tool definitions, so that the words can only come from the call.
  const auto objects = probe(tool_conversation("", call)), texts = probe(tool_conversation("", text_call));
  const std::string quoted_key = fmt::format("\"{}\"", kKeyWord), python_key = fmt::format("'{}'", kKeyWord);
  const bool objects_work = has(objects, kToolWord) && has(objects, kKeyWord);
  const bool texts_work = has(texts, kToolWord) && has(texts, quoted_key);
  can.requires_string_arguments = texts_work && (!objects_work || has(objects, python_key));
  can.supports_tool_calls = objects_work || texts_work;
  const auto& used = can.requires_string_arguments ? texts : objects;
  can.supports_tool_responses = has(used, kResultWord);
  if (!can.supports_tool_calls) return can;

  const bool as_text = can.requires_string_arguments;
  const Json calls =
      list_of(tool_call(kCallId, kToolWord, as_text), tool_call(kOtherCallId, kOtherToolWord, as_text));
  const auto parallel = probe(tool_conversation("", calls));
  can.supports_parallel_tool_calls = has(parallel, kToolWord) && has(parallel, kOtherToolWord);
  const auto without_content = probe(tool_conversation(nullptr, as_text ? text_call : call));
  can.requires_content_with_tool_calls =
      !has(without_content, kToolWord) || (has(without_content, "None") && !has(used, "None"));
  return can;
}

Json with_parsed_arguments(const Json& messages) {
  Json out = messages;
  if (!out.is_array()) return out;
  for (Json& one : out) {
    if (!one.is_object() || !one.contains("tool_calls") || !one["tool_calls"].is_array()) continue;
    for (Json& call : one["tool_calls"]) {
      if (!call.is_object()) continue;
      Json& function = call.contains("function") && call["function"].is_object() ? call["function"] : call;
      if (!function.contains("arguments") || !function["arguments"].is_string()) continue;
      const Result<Json> arguments = parse_json(function["arguments"].get_ref<const std::string&>());
      if (arguments.ok() && arguments->is_object()) function["arguments"] = *arguments;
    }
  }
  return out;
}

namespace {

Json with_text_arguments(Json messages) {
  for (Json& one : messages) {
    if (!one.contains("tool_calls") || !one["tool_calls"].is_array()) continue;
    for (Json& call : one["tool_calls"])
      if (call.is_object() && call.contains("function") && call["function"].is_object() &&
          call["function"].contains("arguments") && !call["function"]["arguments"].is_string())
        call["function"]["arguments"] = dump_json(call["function"]["arguments"]);
  }
  return messages;
}

Result<void> check_messages(const Json& messages) {
  if (!messages.is_array() || messages.empty())
    return Error{ErrorKind::invalid_argument, "messages: expected a list with at least one message"};
  for (size_t i = 0; i < messages.size(); ++i)
    if (!messages[i].is_object() || !messages[i].contains("role") || !messages[i]["role"].is_string())
      return Error{ErrorKind::invalid_argument, fmt::format("messages[{}]: expected an object with a role", i)};
  return {};
}

/// The texts of a list of parts, one a line.
Result<std::string> join_parts(const Json& parts, size_t i_message) {
  std::string text;
  for (size_t i = 0; i < parts.size(); ++i) {
    const Json& part = parts[i];
    const bool is_text = part.is_object() && part.contains("text") && part["text"].is_string() &&
                         (!part.contains("type") || part["type"] == "text");
    if (!is_text)
      return Error{
          ErrorKind::invalid_argument,
          fmt::format("messages[{}].content[{}]: the chat template of this model takes text only", i_message, i)};
    if (i > 0) text += '\n';
    text += part["text"].get_ref<const std::string&>();
  }
  return text;
}

Result<void> fit_content(Json& one, size_t i_message, const TemplateCapabilities& can) {
  const bool has_calls = one.contains("tool_calls") && one["tool_calls"].is_array() && !one["tool_calls"].empty();
  const bool is_missing = !one.contains("content") || one["content"].is_null();
  if (has_calls && is_missing && can.requires_content_with_tool_calls) one["content"] = "";
  if (!one.contains("content")) return {};
  Json& content = one["content"];
  if (content.is_array() && can.requires_string_content) {
    SH_ASSIGN(std::string text, join_parts(content, i_message));
    content = std::move(text);
  } else if (content.is_string() && can.requires_part_content) {
    content = list_of(text_part(content.get<std::string>()));
  }
  return {};
}

/// Puts `text` before the content of a message, on lines of its own.
void prepend_text(Json& one, const std::string& text) {
  Json& content = one["content"];
  if (content.is_array())
    content.insert(content.begin(), text_part(text + "\n"));
  else
    content = text + "\n" + (content.is_string() ? content.get<std::string>() : "");
}

std::string text_of(const Json& content) {
  if (content.is_string()) return content.get<std::string>();
  std::string text;
  if (!content.is_array()) return text;
  for (const Json& part : content)
    if (part.is_object() && part.contains("text") && part["text"].is_string())
      text += part["text"].get<std::string>();
  return text;
}

/// Every system text moves into the next user message; one that none follows becomes a user message.
Json with_folded_system(const Json& messages) {
  Json out = Json::array();
  std::string pending;
  bool has_pending = false;
  for (const Json& one : messages) {
    if (one["role"] == "system") {
      if (has_pending) pending += '\n';
      pending += text_of(one.contains("content") ? one["content"] : Json());
      has_pending = true;
      continue;
    }
    out.push_back(one);
    if (one["role"] != "user" || !has_pending) continue;
    prepend_text(out.back(), pending);
    pending.clear();
    has_pending = false;
  }
  if (has_pending) out.push_back(message("user", pending));
  return out;
}

}  // namespace

Result<PromptInput> fit_to_template(const PromptInput& input, const TemplateCapabilities& can,
                                    const std::string& template_source) {
  SH_RETURN_IF_ERROR(check_messages(input.messages));
  PromptInput fitted = input;
  fitted.messages = with_parsed_arguments(input.messages);
  if (can.requires_string_arguments) fitted.messages = with_text_arguments(std::move(fitted.messages));
  const bool knows_developer = template_source.find("developer") != std::string::npos;
  for (size_t i = 0; i < fitted.messages.size(); ++i) {
    Json& one = fitted.messages[i];
    SH_RETURN_IF_ERROR(fit_content(one, i, can));
    if (one["role"] == "developer" && !knows_developer) one["role"] = "system";
  }
  if (!can.supports_system_role) fitted.messages = with_folded_system(fitted.messages);
  // Reasoning models think unless the request says otherwise; templates differ in what they take a missing
  // variable for.
  if (!fitted.kwargs.is_object()) fitted.kwargs = Json::object();
  if (!fitted.kwargs.contains("enable_thinking")) fitted.kwargs["enable_thinking"] = true;
  return fitted;
}

}  // namespace sh::chat
