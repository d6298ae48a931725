// SPDX-License-Identifier: MIT
#include "tools/commands.h"

#include <fmt/format.h>

#include <cstdio>

#include "base/build_info.h"

namespace sh::tools {

std::optional<int> read_params(engine::Command command, Arguments args, engine::ProgramParams& params) {
  Result<engine::ProgramParams> parsed = engine::parse_params(command, args);
  if (!parsed.ok()) return report_error(parsed.error());
  params = std::move(*parsed);
  if (params.wants_help) {
    std::fputs(engine::help_text(command).c_str(), stdout);
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
  fmt::print(stderr, "error: {}\n", error.message);
  return 1;
}

std::string version_text() {
  const BuildInfo& info = build_info();
  return fmt::format("version: {} ({})\nbuilt with {} ({})", info.version, info.commit, info.compiler, info.build_type);
}

}  // namespace sh::tools
