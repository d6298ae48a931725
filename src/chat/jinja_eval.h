// SPDX-License-Identifier: MIT
#pragma once

#include <string>
#include <utility>
#include <vector>

#include "chat/jinja_ast.h"

namespace sh::chat {

/// Renders a template with these variables. Throws TemplateError.
/// Cost: bounded by the limits of `rt` in steps, depth, output and living bytes.
std::string evaluate_template(const TemplateTree& tree, Runtime& rt,
                              const std::vector<std::pair<std::string, Value>>& variables);

}  // namespace sh::chat
