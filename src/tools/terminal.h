// SPDX-License-Identifier: MIT
// What the commands at a terminal share: Ctrl-C, text as it comes, a line of progress.
#pragma once

#include <atomic>
#include <cstdint>
#include <string>
#include <string_view>

#include "engine/compact_sequence.h"
#include "engine/generate.h"
#include "engine/params.h"

namespace sh::tools {

inline constexpr int kExitInterrupted = 130;  // what shells report for a program that SIGINT ended

/// From now on the first Ctrl-C sets the flag, and one more before reset_interrupt() ends the program with status
/// 130.
std::atomic<bool>& catch_interrupts();
void reset_interrupt();

/// Writes text to stdout at once.
void show_text(std::string_view text);

/// One line on stderr that is overwritten as work goes on; nothing is shown where stderr is no terminal.
class ProgressLine {
 public:
  ProgressLine();
  ~ProgressLine() { clear(); }
  void show(const std::string& text);
  void clear();

 private:
  bool is_terminal_;
  size_t width_ = 0;  // of what stands there now
};

/// Hooks of generate(): text to stdout, progress to `progress`, Ctrl-C as `cancel`.
engine::GenerateHooks terminal_hooks(ProgressLine& progress, const std::atomic<bool>& cancel);

engine::GenerateOptions generate_options(const engine::ProgramParams& params);

/// Logs what there is to know of a model and the conversations that it will hold. `n_keep`: --keep.
void log_opening(const engine::Engine& engine, int64_t n_keep);

/// "1.5 MiB"
std::string size_text(int64_t bytes);
/// "812 tokens in 203 rows, 0.6 MiB": logical, physical, real.
std::string usage_text(const kv::CacheUsage& usage);
/// "compacted 480 tokens: 480 -> 122 rows a head, ...".
std::string compaction_text(const engine::CompactionReport& report);

}  // namespace sh::tools
