// SPDX-License-Identifier: MIT
#include "tools/terminal.h"

#include <fmt/format.h>
#include <signal.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <cstdio>

#include "base/log.h"
#include "engine/conversation.h"

namespace sh::tools {

namespace {

std::atomic<bool> is_interrupted{false};

void on_interrupt(int) {
  if (is_interrupted.exchange(true)) _exit(kExitInterrupted);
}

constexpr int kBarCells = 20;

/// "[########............]"
std::string bar_text(double fraction) {
  const auto n_full = static_cast<size_t>(std::clamp(fraction, 0.0, 1.0) * kBarCells);
  return "[" + std::string(n_full, '#') + std::string(kBarCells - n_full, '.') + "]";
}

}  // namespace

std::atomic<bool>& catch_interrupts() {
  struct sigaction action = {};
  action.sa_handler = on_interrupt;  // no SA_RESTART: a read that waits for input returns
  sigemptyset(&action.sa_mask);
  sigaction(SIGINT, &action, nullptr);
  return is_interrupted;
}

void reset_interrupt() {
  is_interrupted = false;
}

void show_text(std::string_view text) {
  std::fwrite(text.data(), 1, text.size(), stdout);
  std::fflush(stdout);
}

ProgressLine::ProgressLine() : is_terminal_(isatty(STDERR_FILENO) == 1) {}

void ProgressLine::show(const std::string& text) {
  if (!is_terminal_) return;
  const size_t padding = width_ > text.size() ? width_ - text.size() : 0;
  fmt::print(stderr, "\r{}{}", text, std::string(padding, ' '));
  std::fflush(stderr);
  width_ = text.size();
}

void ProgressLine::clear() {
  if (width_ == 0) return;
  fmt::print(stderr, "\r{}\r", std::string(width_, ' '));
  std::fflush(stderr);
  width_ = 0;
}

engine::GenerateHooks terminal_hooks(ProgressLine& progress, const std::atomic<bool>& cancel) {
  engine::GenerateHooks hooks;
  hooks.cancel = &cancel;
  hooks.on_text = [&progress](std::string_view text) {
    progress.clear();
    show_text(text);
  };
  hooks.on_prompt = [&progress](int64_t n_done, int64_t n_prompt) {
    progress.show(fmt::format("reading {} of {} tokens", n_done, n_prompt));
  };
  hooks.on_compaction = [&progress](const char* stage, double fraction) {
    if (std::string_view(stage) == "done")
      progress.clear();
    else
      progress.show(fmt::format("compacting {} {:.0f} % ({})", bar_text(fraction), fraction * 100, stage));
  };
  return hooks;
}

engine::GenerateOptions generate_options(const engine::ProgramParams& params) {
  engine::GenerateOptions options;
  options.sampling = params.sampling;
  options.n_predict = params.n_predict;
  options.stop = params.chat.reverse_prompts;
  options.ignore_eos = params.ignore_eos;
  options.n_keep = params.n_keep;
  return options;
}

void log_opening(const engine::Engine& engine, int64_t n_keep) {
  for (const std::string& line : engine.describe()) log_info("{}", line);
  log_info("{}", engine.describe_conversations());
  if (const std::string held = engine::held_rows_text(engine, n_keep); !held.empty()) log_warning("{}", held);
}

std::string size_text(int64_t bytes) {
  const auto value = static_cast<double>(bytes);
  if (bytes >= int64_t{1} << 30) return fmt::format("{:.2f} GiB", value / (1 << 30));
  if (bytes >= int64_t{1} << 20) return fmt::format("{:.2f} MiB", value / (1 << 20));
  return fmt::format("{:.1f} KiB", value / (1 << 10));
}

std::string usage_text(const kv::CacheUsage& usage) {
  return fmt::format("{} tokens in {:.0f} rows, {}", usage.n_logical, usage.n_physical, size_text(usage.bytes));
}

namespace {

std::string verdict_text(engine::Verdict verdict) {
  return verdict == engine::Verdict::unknown ? "no verdict" : engine::name_of(verdict);
}

}  // namespace

std::string compaction_text(const engine::CompactionReport& report) {
  std::string text = fmt::format(
      "compacted by '{}' after {} tokens: {:.0f} -> {:.0f} rows a head{}, {} -> {} ({:.2f}x of all bytes) in "
      "{:.2f} "
      "s",
      report.method, report.n_logical, report.rows_before, report.rows_after, engine::shortfall_text(report),
      size_text(report.bytes_before), size_text(report.bytes_after), report.real_ratio, report.total_seconds);
  if (!std::isnan(report.heldout_fitted))
    text += fmt::format(", held-out error {:.3f} (unfitted {:.3f})", report.heldout_fitted, report.heldout_plain);
  if (report.check.n_tokens > 0)
    text += fmt::format(", {}: KL {:.2g} on {} replayed tokens{}", verdict_text(report.check.verdict),
                        report.check.kl_mean, report.check.n_tokens,
                        report.check.is_of_compacted ? ", against the compacted cache before" : "");
  if (report.check.n_fits_dropped > 0)
    text += fmt::format(", {} of {} fits taken back for --compact-max-kl", report.check.n_fits_dropped,
                        report.heads.size());
  return text;
}

}  // namespace sh::tools
