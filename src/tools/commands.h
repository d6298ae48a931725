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

int complete_command(Arguments arguments);
int chat_command(Arguments arguments);
int bench_command(Arguments arguments);
int tokenize_command(Arguments arguments);
int inspect_command(Arguments arguments);
int logits_command(Arguments arguments);
int make_model_command(Arguments arguments);
int make_recall_command(Arguments arguments);
int compact_eval_command(Arguments arguments);
int profile_command(Arguments arguments);
int serve_command(Arguments arguments);

/// Reads a command's arguments into `params` and sets the log up. Gives the exit status if there is nothing more to do: 0 after --help or
/// --version, 1 after an error.
std::optional<int> read_params(engine::Command command, Arguments arguments, engine::ProgramParams& params);
/// "error: ..." to stderr, whatever the log level; the exit status 1.
int report_error(const Error& error);
/// 0, or report_error().
int exit_status(const Result<void>& result);
std::string version_text();

}  // namespace sh::tools
