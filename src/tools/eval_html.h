// SPDX-License-Identifier: MIT
// The result of compact-eval as one page that needs nothing from the network.
#pragma once

#include <string>

#include "base/json.h"

namespace sh::tools {

/// A page with the table, plots of quality against real compression and against seconds, error per layer and head,
/// and recall by depth and kind, from the object that compact-eval writes (docs/compact-eval.md). What is null or
/// missing is left out, never drawn as 0. The object itself stands in the page as JSON. Optional beside rows[]:
/// `heads[]` of {context, method, ratio, layer, head, rows, error}, `depths[]` of {context, method, ratio, depth,
/// n, recall} and `kinds[]` of {context, method, ratio, kind, n, recall}.
std::string eval_html(const Json& result);

}  // namespace sh::tools
