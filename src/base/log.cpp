// SPDX-License-Identifier: MIT
#include "base/log.h"

#include <atomic>
#include <cstdio>

#include "base/clock.h"

namespace sh {

namespace {
std::atomic<LogLevel> current_level{LogLevel::info};
const int64_t start_us = now_us();
}  // namespace

void set_log_level(LogLevel level) { current_level.store(level, std::memory_order_relaxed); }
LogLevel log_level() { return current_level.load(std::memory_order_relaxed); }

void log_line(LogLevel level, const std::string& text) {
  if (level > log_level()) return;
  constexpr char kLetters[] = {' ', 'E', 'W', 'I', 'T', 'D'};
  const int64_t us = now_us() - start_us;
  const std::string line =
      fmt::format("{}.{:02}.{:03}.{:03} {} {}\n", us / 60'000'000, us / 1'000'000 % 60, us / 1000 % 1000, us % 1000,
                  kLetters[static_cast<int>(level)], text);
  std::fwrite(line.data(), 1, line.size(), stderr);  // one call a line, so that threads do not mix their lines
}

}  // namespace sh
