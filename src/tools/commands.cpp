// SPDX-License-Identifier: MIT
#include "tools/commands.h"

#include <fmt/format.h>

#include <cstdio>

#include "base/build_info.h"

namespace sh::tools {

std::optional<int> read_params(engine::Command command, Arguments arguments, engine::ProgramParams& params) {
  Result<engine::ProgramParams> parsed = engine::parse_params(command, arguments);
  if (!parsed.ok()) return report_error(parsed.error());
  params = std::move(*parsed);
  if (params.wants_help) {
    fmt::print("{}", engine::help_text(command));
    return 0;
  }
  if (params.wants_version) {
    fmt::print("{}\n", version_text());
    return 0;
  }
  engine::apply_log_settings(params);
  return std::nullopt;
}

int report_error(const Error& error) {
  std::fflush(stdout);
  fmt::print(stderr, "error: {}\n", error.message);
  return 1;
}

int exit_status(const Result<void>& result) { return result.ok() ? 0 : report_error(result.error()); }

std::string version_text() {
  const BuildInfo& info = build_info();
  return fmt::format("version: {} ({})\nbuilt with {} ({})", info.version, info.commit, info.compiler, info.build_type);
}

}  // namespace sh::tools
