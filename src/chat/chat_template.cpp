// SPDX-License-Identifier: MIT
#include "chat/chat_template.h"

#include <fmt/format.h>

#include <new>

#include "chat/jinja_eval.h"
#include "chat/jinja_parser.h"
#include "chat/template_apply.h"

namespace sh::chat {

const char* const kChatMlTemplate =
    "{%- for message in messages -%}\n"
    "  {{- '<|im_start|>' + message.role + '\\n' + (message.content if message.content else '') + '<|im_end|>\\n' "
    "-}}\n"
    "{%- endfor -%}\n"
    "{%- if add_generation_prompt -%}\n"
    "  {{- '<|im_start|>assistant\\n' -}}\n"
    "{%- endif -%}\n";

namespace {

/// A template file larger than this is none: the longest in the wild have about 30 KB.
constexpr size_t kMaxSourceBytes = 4u << 20;

/// Runs a part of the interpreter, whose errors are exceptions.
template <typename F>
auto guarded(std::string_view source, F&& f) -> Result<decltype(f())> {
  try {
    return f();
  } catch (const TemplateError& error) {
    return Error{ErrorKind::invalid_argument, describe_template_error(error, source)};
  } catch (const std::bad_alloc&) {
    return Error{ErrorKind::out_of_memory, "chat template: out of memory"};
  }
}

class JinjaTemplate final : public ChatTemplate {
 public:
  JinjaTemplate(std::string source, TemplateTree tree, const RenderLimits& limits)
      : source_(std::move(source)), tree_(std::move(tree)), limits_(limits) {
    capabilities_ = probe_capabilities([this](const PromptInput& input) { return render_exactly(input); });
  }

  Result<std::string> render(const PromptInput& input) const override {
    PromptInput parsed = input;
    parsed.messages = with_parsed_arguments(input.messages);
    return render_exactly(parsed);
  }

  Result<std::string> apply(const PromptInput& input) const override {
    SH_ASSIGN(PromptInput fitted, fit_to_template(input, capabilities_, source_));
    SH_ASSIGN(std::string prompt, render_exactly(fitted));
    apply_format_rules(source_, fitted, prompt);
    return prompt;
  }

  const TemplateCapabilities& capabilities() const override { return capabilities_; }
  const std::string& source() const override { return source_; }

 private:
  Result<std::string> render_exactly(const PromptInput& input) const {
    return guarded(tree_.source, [&] {
      Runtime runtime(limits_, input.now_unix_seconds);
      std::vector<std::pair<std::string, Value>> variables = {
          {"messages", runtime.from_json(input.messages)},
          {"bos_token", Value::constant(input.bos_token)},
          {"eos_token", Value::constant(input.eos_token)},
          {"add_generation_prompt", Value::boolean(input.add_generation_prompt)}};
      if (input.tools.is_array() && !input.tools.empty())
        variables.emplace_back("tools", runtime.from_json(input.tools));
      if (input.kwargs.is_object())
        for (const auto& [name, value] : input.kwargs.items())
          variables.emplace_back(name, runtime.from_json(value));
      return evaluate_template(tree_, runtime, variables);
    });
  }

  std::string source_;
  TemplateTree tree_;
  RenderLimits limits_;
  TemplateCapabilities capabilities_;
};

}  // namespace

Result<std::unique_ptr<ChatTemplate>> ChatTemplate::parse(std::string source, const RenderLimits& limits) {
  if (source.size() > kMaxSourceBytes)
    return Error{ErrorKind::invalid_argument,
                 fmt::format("chat template: {} bytes, at most {} are taken", source.size(), kMaxSourceBytes)};
  SH_ASSIGN(TemplateTree tree, guarded(source, [&] { return parse_template(source); }));
  return Result<std::unique_ptr<ChatTemplate>>(
      std::make_unique<JinjaTemplate>(std::move(source), std::move(tree), limits));
}

}  // namespace sh::chat
