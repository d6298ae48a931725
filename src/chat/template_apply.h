// SPDX-License-Identifier: MIT
// From a request to what a template can take: the work-arounds of a chat server.
#pragma once

#include <functional>

#include "chat/chat_template.h"

namespace sh::chat {

/// Renders exactly these messages and tools.
using RenderExactly = std::function<Result<std::string>(const PromptInput&)>;

/// Finds out by small renders what a template can do. Cost: about ten renders.
TemplateCapabilities probe_capabilities(const RenderExactly& render);

/// Messages with every tool-call argument that is JSON text of an object parsed.
Json with_parsed_arguments(const Json& messages);

/// The request in the form that the template takes. Errors: invalid_argument for messages that are no list of
/// objects with a role, or for content parts other than text in a template that takes text only.
Result<PromptInput> fit_to_template(const PromptInput& input, const TemplateCapabilities& capabilities,
                                    const std::string& template_source);

/// What single formats need after the render; a table in template_formats.cpp.
void apply_format_rules(const std::string& template_source, const PromptInput& input, std::string& prompt);

}  // namespace sh::chat
