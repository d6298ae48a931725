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
  SH_ASSIGN(BenchOptions options, bench_options(params));
  ProgressLine progress;
  options.on_progress = [&progress](const std::string& text) { progress.show(text); };
  const std::string& format = params.bench.format;
  std::vector<BenchResult> results;
  if (format == "json") fmt::print("[\n");
  const auto on_result = [&](const BenchResult& result) {
    progress.clear();
    const Json row = bench_json(options, result);
    if (format == "json") fmt::print("{}{}", results.empty() ? "" : ",\n", dump_json(row, 2));
    if (format == "jsonl") fmt::print("{}\n", dump_json(row));
    if (format == "csv") fmt::print("{}{}", results.empty() ? bench_csv_header(row) : "", bench_csv_row(row));
    std::fflush(stdout);
    results.push_back(result);
  };
  const Result<void> done = run_bench(options, on_result);
  progress.clear();
  if (format == "json") fmt::print("\n]\n");
  if (format == "md" && !results.empty()) fmt::print("{}", bench_markdown(options, results));
  return done;
}

}  // namespace

int bench_command(Arguments arguments) {
  engine::ProgramParams params;
  if (const std::optional<int> status = read_params(engine::kBench, arguments, params)) return *status;
  return exit_status(run(params));
}

}  // namespace sh::tools
