// SPDX-License-Identifier: MIT
#include <fmt/format.h>

#include <cstdio>

#include "base/log.h"
#include "tools/bench.h"
#include "tools/commands.h"
#include "tools/terminal.h"

namespace sh::tools {

namespace {

Result<void> run(const engine::ProgramParams& params) {
  const engine::BenchParams& bench = params.bench;
  SH_ASSIGN(BenchOptions options, bench_options(params));
  ProgressLine progress;
  options.on_progress = [&](const std::string& text) {
    if (bench.shows_progress)
      fmt::print(stderr, "shorthand bench: {}\n", text);
    else
      progress.show(text);
  };
  BenchWriter out(stdout, bench.format, options), err(stderr, bench.error_format, options);
  const Result<void> done = run_bench(options, [&](const BenchResult& result) {
    progress.clear();
    out.add(result);
    err.add(result);
  });
  progress.clear();
  out.end();
  err.end();
  return done;
}

}  // namespace

int bench_command(Arguments arguments) {
  engine::ProgramParams params;
  if (const std::optional<int> status = read_params(engine::kBench, arguments, params)) return *status;
  if (params.bench.lists_devices) {  // as llama-bench says it of a machine without any
    fmt::print("Available devices:\n  (none)\n");
    return 0;
  }
  return exit_status(run(params));
}

}  // namespace sh::tools
