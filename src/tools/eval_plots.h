// SPDX-License-Identifier: MIT
// The drawings of compact-eval's page; each section is "" when nothing of it was measured.
#pragma once

#include <string>
#include <vector>

#include "tools/eval_result.h"
#include "tools/svg_plot.h"

namespace sh::tools::eval_page {

/// Metrics against real compression, with intervals; a figure for each context.
std::string quality_section(const Json& result, const Choices& choices);
/// Answers and median KL against seconds; a figure for each context and ratio.
std::string seconds_section(const Json& result, const Choices& choices);
/// A map of errors by layer and head: indices into the choices, and the cells.
struct HeatMap {
  size_t context = 0, method = 0;
  double ratio = 0;
  std::vector<HeatCell> cells;
};
/// One for each context, method and ratio whose heads were measured, in this order.
std::vector<HeatMap> heat_maps(const Json& result, const Choices& choices);
/// Error per layer and head; a figure for each map.
std::string heat_section(const std::vector<HeatMap>& maps, const Choices& choices);
/// Answers by depth and by kind; a figure for each context and ratio.
std::string recall_sections(const Json& result, const Choices& choices);

}  // namespace sh::tools::eval_page
