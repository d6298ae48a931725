// SPDX-License-Identifier: MIT
// The log: lines to stderr, "minutes.seconds.ms.us LETTER text". Results of a command go to stdout, never through here.
#pragma once

#include <fmt/format.h>

#include <string>

namespace sh {

enum class LogLevel { output = 0, error = 1, warning = 2, info = 3, trace = 4, debug = 5 };

void set_log_level(LogLevel level);
LogLevel log_level();
/// Writes the line if `level` is at or below the current level. Threads: safe.
void log_line(LogLevel level, const std::string& text);

template <typename... Args>
void log_error(fmt::format_string<Args...> format, Args&&... args) {
  log_line(LogLevel::error, fmt::format(format, std::forward<Args>(args)...));
}
template <typename... Args>
void log_warning(fmt::format_string<Args...> format, Args&&... args) {
  log_line(LogLevel::warning, fmt::format(format, std::forward<Args>(args)...));
}
template <typename... Args>
void log_info(fmt::format_string<Args...> format, Args&&... args) {
  log_line(LogLevel::info, fmt::format(format, std::forward<Args>(args)...));
}
template <typename... Args>
void log_debug(fmt::format_string<Args...> format, Args&&... args) {
  if (log_level() >= LogLevel::debug) log_line(LogLevel::debug, fmt::format(format, std::forward<Args>(args)...));
}

}  // namespace sh
