// SPDX-License-Identifier: MIT
// The sub-commands of the program; one file each in tools/. A command gets the arguments after its name and returns the exit status.
#pragma once

#include <span>
#include <string>

namespace sh::tools {

using Arguments = std::span<const std::string>;

int compact_eval_command(Arguments arguments);

}  // namespace sh::tools
