// SPDX-License-Identifier: MIT
// Whether what a command will write can be written is known before the work whose result goes there.
#pragma once

#include <string>
#include <utility>
#include <vector>

#include "base/result.h"

namespace sh::tools {

/// A flag and the path that it was given; "": none.
using NamedPath = std::pair<std::string, std::string>;
/// One entry for each path of a flag that takes several.
void add_named(std::vector<NamedPath>& all, const char* flag, const std::vector<std::string>& paths);

/// Links are followed; what is no regular file may be written twice.
/// Errors: a path that cannot be written, that two outputs share, or that is also read.
Result<void> check_outputs(const std::vector<NamedPath>& outputs, const std::vector<NamedPath>& inputs);

}  // namespace sh::tools
