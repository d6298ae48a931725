// SPDX-License-Identifier: MIT
// Speed of prompts and answers, at depth, before and after a compaction.
#pragma once

#include <cstdint>
#include <cstdio>
#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "base/json.h"
#include "base/result.h"
#include "engine/cost.h"
#include "engine/params.h"
#include "tools/arithmetic.h"

namespace sh::tools {

/// One setting of everything that needs the model to be opened anew.
struct BenchSetup {
  std::string model_path;
  int64_t n_batch = 0, n_ubatch = 0, n_threads = 0;
  DType type_k = DType::f16, type_v = DType::f16;
};

/// A prompt of n_prompt tokens, then an answer of n_gen, behind n_depth tokens that are not timed; the same in
/// n_parallel conversations at once, each with a cache of its own.
struct BenchTest {
  int64_t n_prompt = 0, n_gen = 0, n_depth = 0, n_parallel = 1;
  /// "pp512", "tg128 @ d4096", "pp512+tg128", "tg128 x8"
  std::string name() const;
  int64_t n_tokens() const { return (n_prompt + n_gen) * n_parallel; }
};

/// Seconds of each run of a test.
struct Samples {
  std::vector<double> seconds;
  double mean_seconds() const;
  double deviation_seconds() const;  // of the sample; 0 for one run
  /// Tokens a second, mean and deviation over the runs.
  double mean_rate(int64_t n_tokens) const;
  double deviation_rate(int64_t n_tokens) const;
};

/// The same test over a compacted cache, its runs taken in turn with the others.
struct CompactedResult {
  Samples samples;
  double bytes_per_token = 0;
  int64_t kv_bytes = 0;
  double real_ratio = 0, seconds = 0, rows_before = 0, rows_after = 0;
};

struct BenchResult {
  BenchSetup setup;
  BenchTest test;
  std::string model_type;
  int64_t model_bytes = 0, model_params = 0;
  std::string kernels;
  std::string time;  // of the start, ISO 8601, UTC
  Samples samples;
  double bytes_per_token = 0;   // that generation reads: weights, keys and values; 0 for a test with a prompt
  bool is_in_cache = false;     // what a step of generation reads stays in the processor's cache
  int64_t kv_bytes = 0;         // of the blocks of all conversations when a run ends
  engine::Operations operations;  // of one run of a test without generation; else none
  // Of this machine with this many threads; 0: not measured.
  double memory_bandwidth = 0;  // bytes a second
  ArithmeticPeaks peaks;
  std::optional<CompactedResult> compacted;
};

struct BenchOptions {
  std::vector<BenchSetup> setups;
  std::vector<BenchTest> tests;
  int64_t n_repeats = 5;
  bool warms_up = true;
  bool measures_machine = true;
  bool repacks = true;
  int64_t delay_seconds = 0;  // before each test but the first
  std::string kernels;
  std::string compact_method;  // as given, with options; "": nothing is compacted
  engine::CompactionRequest compaction;
  std::function<void(const std::string&)> on_progress;
};

/// All combinations of what the flags list.
/// Errors: invalid_argument (no model, no test, method or ratio).
Result<BenchOptions> bench_options(const engine::ProgramParams& params);
/// Runs every test with every setup and calls on_result after each.
/// Errors: those of opening a model and of running it.
Result<void> run_bench(const BenchOptions& options, const std::function<void(const BenchResult&)>& on_result);

Json bench_json(const BenchOptions& options, const BenchResult& result);
/// The same for formats without lists and objects: no samples, and a compaction's figures as fields of the row,
/// which every row has if the options ask for a compaction.
Json bench_flat_json(const BenchOptions& options, const BenchResult& result);
/// Header and row of the same fields.
std::string bench_csv_header(const Json& flat_row);
std::string bench_csv_row(const Json& flat_row);
/// A table llama_bench for rows like this one, and a row of it.
std::string bench_sql_table(const Json& flat_row);
std::string bench_sql_row(const Json& flat_row);
/// The table, with a column for each parameter that varies or differs from its default, and a footer on what it
/// was measured with.
std::string bench_markdown(const BenchOptions& options, const std::vector<BenchResult>& results);

/// Writes results as they come, in a format of -o.
class BenchWriter {
 public:
  /// `options` must outlive it.
  BenchWriter(std::FILE* file, std::string format, const BenchOptions& options);
  void add(const BenchResult& result);
  void end();

 private:
  std::FILE* file_;
  std::string format_;
  const BenchOptions& options_;
  std::vector<BenchResult> results_;
};

}  // namespace sh::tools
