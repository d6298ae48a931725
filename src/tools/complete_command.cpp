// SPDX-License-Identifier: MIT
// shorthand complete: continues a text. The line itself is engine/generate.cpp.
#include <fmt/format.h>

#include "base/log.h"
#include "tools/bandwidth.h"
#include "tools/commands.h"
#include "tools/terminal.h"

namespace sh::tools {

namespace {

/// An answer of less than this is over before memory could be measured.
constexpr double kMinSecondsForBandwidth = 2.0;

double per_second(int64_t n, double seconds) {
  return seconds > 0 ? static_cast<double>(n) / seconds : 0;
}

std::string decode_text(engine::Engine& engine, const engine::GenerateReport& report) {
  const double bytes_per_second = per_second(report.answer_bytes, report.answer_seconds);
  std::string text =
      fmt::format("answer {} tokens {:.1f} tok/s {:.2f} GB/s", report.n_answer,
                  per_second(report.n_answer_forwards, report.answer_seconds), bytes_per_second * 1e-9);
  if (report.n_answer_forwards == 0) return text;
  const auto n_forwards = static_cast<double>(report.n_answer_forwards);
  if (fits_last_level_cache(static_cast<double>(report.answer_bytes) / n_forwards)) return text + " (in cache)";
  if (report.answer_seconds < kMinSecondsForBandwidth) return text;
  const double bandwidth = measure_read_bandwidth(engine.thread_pool());
  return text + fmt::format(" ({:.0f} % of the {:.1f} GB/s that memory gives)", 100 * bytes_per_second / bandwidth,
                            bandwidth * 1e-9);
}

std::string result_line(engine::Engine& engine, const engine::Conversation& conversation,
                        const engine::GenerateReport& report) {
  return fmt::format(
      "prompt {} tokens {:.1f} tok/s | {} | cache {} | compactions {} | kernels {} | logits {:016x}",
      report.n_prompt, per_second(report.n_prompt, report.prompt_seconds), decode_text(engine, report),
      usage_text(conversation.cache().usage()), report.compactions.size(), engine.kernels().name,
      report.logits_hash);
}

Result<int> run(engine::ProgramParams& params) {
  SH_ASSIGN(const auto engine, engine::Engine::open(params.engine));
  log_opening(*engine, params.n_keep);
  const std::vector<int32_t> prompt = engine::encode_opening(*engine, params.prompt);
  if (prompt.empty())
    return Error{ErrorKind::invalid_argument, "the prompt is empty; give one with -p TEXT or -f FILE"};
  if (params.displays_prompt) show_text(params.prompt);

  engine::Conversation conversation(*engine, engine->compacts_automatically());
  ProgressLine progress;
  const std::atomic<bool>& cancel = catch_interrupts();
  engine::GenerateHooks hooks = terminal_hooks(progress, cancel);
  hooks.on_compacted = [&progress](const engine::CompactionReport& compaction) {
    progress.clear();
    log_info("{}", compaction_text(compaction));
  };
  SH_ASSIGN(const engine::GenerateReport report,
            engine::generate(*engine, conversation, prompt, generate_options(params), hooks));
  progress.clear();
  show_text("\n");
  for (const std::string& failure : report.compaction_failures) log_warning("not compacted: {}", failure);
  if (log_level() >= LogLevel::info) fmt::print(stderr, "{}\n", result_line(*engine, conversation, report));
  if (report.stop_reason == engine::StopReason::context_full)
    log_warning("the answer was cut: {}", conversation.end_reason(params.n_keep));
  return report.stop_reason == engine::StopReason::cancelled ? kExitInterrupted : 0;
}

}  // namespace

int complete_command(Arguments arguments) {
  engine::ProgramParams params;
  if (const std::optional<int> status = read_params(engine::kComplete, arguments, params)) return *status;
  const Result<int> status = run(params);
  return status.ok() ? *status : report_error(status.error());
}

}  // namespace sh::tools
