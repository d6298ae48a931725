// SPDX-License-Identifier: MIT
#pragma once

#include <string_view>

#include "chat/jinja_ast.h"

namespace sh::chat {

/// Parses a template. Unknown statements are errors here; unknown filters and tests only when a render reaches
/// them, as in Jinja2. Throws TemplateError; tags and expressions nested deeper than 150 levels are refused,
/// because everything after recurses over them. Source: Jinja2 documentation, "Template Designer Documentation".
TemplateTree parse_template(std::string_view source);

}  // namespace sh::chat
