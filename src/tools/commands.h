// SPDX-License-Identifier: MIT
// The sub-commands of the program; one file each in tools/. A command gets the arguments after its name and returns the exit status.
#pragma once

#include <optional>
#include <span>
#include <string>

#include "base/result.h"
#include "engine/params.h"

namespace sh::tools {

using Arguments = std::span<const std::string>;

int compact_eval_command(Arguments arguments);
int serve_command(Arguments arguments);

/// Parses the arguments of a command. On --help or --version prints and gives exit code 0, on an error prints it and gives 1; else fills
/// `params`, sets the log up and gives nothing.
std::optional<int> read_params(engine::Command command, Arguments arguments, engine::ProgramParams& params);
/// "error: ..." to stderr; the exit code 1.
int report_error(const Error& error);
std::string version_text();

}  // namespace sh::tools
