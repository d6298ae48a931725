// SPDX-License-Identifier: MIT
// The drawings of compact-eval's page; each section is "" when nothing of it was measured.
#pragma once

#include <string>

#include "tools/eval_result.h"

namespace sh::tools::eval_page {

/// Metrics against real compression, with intervals; a figure for each context.
std::string quality_section(const Json& result, const Choices& choices);
/// Answers and median KL against seconds; a figure for each context and ratio.
std::string seconds_section(const Json& result, const Choices& choices);
/// Error per layer and head; a figure for each context, method and ratio.
std::string heat_section(const Json& result, const Choices& choices);
/// Answers by depth and by kind; a figure for each context and ratio.
std::string recall_sections(const Json& result, const Choices& choices);

}  // namespace sh::tools::eval_page
