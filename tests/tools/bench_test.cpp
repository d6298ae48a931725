// SPDX-License-Identifier: MIT
#include "tools/bench.h"

#include <sys/stat.h>

#include <algorithm>
#include <cmath>
#include <cstdlib>

#include "tools/bandwidth.h"
#include "tools/program.h"

namespace sh::tools {
namespace {

using Args = std::vector<std::string>;

BenchOptions options_of(const Args& args) {
  const auto params = engine::parse_params(engine::kBench, args);
  EXPECT_TRUE(params.ok()) << (params.ok() ? "" : params.error().message);
  const auto options = bench_options(*params);
  EXPECT_TRUE(options.ok()) << (options.ok() ? "" : options.error().message);
  return *options;
}

TEST(BenchOptions, DefaultsAreThoseOfLlamaBench) {
  const BenchOptions options = options_of({"-m", "x.gguf"});
  ASSERT_EQ(options.tests.size(), 2u);
  EXPECT_EQ(options.tests[0].name(), "pp512");
  EXPECT_EQ(options.tests[1].name(), "tg128");
  ASSERT_EQ(options.setups.size(), 1u);
  EXPECT_EQ(options.setups[0].n_batch, 2048);
  EXPECT_EQ(options.setups[0].n_ubatch, 512);
  EXPECT_EQ(options.n_repeats, 5);
}

TEST(BenchOptions, ListsRangesAndRepeatsGiveAllCombinations) {
  const BenchOptions options =
      options_of({"-m", "a.gguf,b.gguf", "-p", "512", "-p", "128-512*2", "-n", "1-7+3", "-pg", "64,8", "-d",
                  "0,4096", "-t", "1,2", "-ctk", "f16,q8_0", "-ctv", "f32"});
  std::vector<std::string> names;
  for (const BenchTest& test : options.tests) names.push_back(test.name());
  EXPECT_EQ(names, (std::vector<std::string>{"pp512", "pp128", "pp256", "pp512", "tg1", "tg4", "tg7", "pp64+tg8",
                                             "pp512 @ d4096", "pp128 @ d4096", "pp256 @ d4096", "pp512 @ d4096",
                                             "tg1 @ d4096", "tg4 @ d4096", "tg7 @ d4096", "pp64+tg8 @ d4096"}));
  EXPECT_EQ(options.setups.size(), 2u * 2u * 2u);
  for (const BenchSetup& setup : options.setups) EXPECT_EQ(setup.type_v, DType::f32);
}

TEST(BenchOptions, ConversationsAtOnceAreOfGenerationAlone) {
  std::vector<std::string> names;
  for (const BenchTest& test : options_of({"-m", "x", "-p", "8", "-n", "4", "-npl", "1,8", "-d", "0,16"}).tests)
    names.push_back(test.name());
  EXPECT_EQ(names,
            (std::vector<std::string>{"pp8", "tg4", "tg4 x8", "pp8 @ d16", "tg4 @ d16", "tg4 @ d16 x8"}));
  EXPECT_FALSE(engine::parse_params(engine::kBench, Args{"-m", "x", "-npl", "0"}).ok());
}

TEST(BenchOptions, HugeRangesAreRefused) {
  for (const char* range : {"1-1000000000", "0-8*2", "5-1x", "-3", "1-9+0", "1-9*1", ""})
    EXPECT_FALSE(engine::parse_params(engine::kBench, Args{"-m", "x", "-n", range}).ok()) << range;
}

TEST(Samples, MeanAndDeviationOverRuns) {
  const Samples samples{{0.5, 1.0}};  // 20 and 10 tokens a second
  EXPECT_DOUBLE_EQ(samples.mean_seconds(), 0.75);
  EXPECT_DOUBLE_EQ(samples.mean_rate(10), 15);
  EXPECT_NEAR(samples.deviation_rate(10), 7.0710678, 1e-6);  // sqrt(((20-15)² + (10-15)²) / 1)
  EXPECT_EQ(Samples{{0.5}}.deviation_rate(10), 0);
}

TEST(Bandwidth, IsAPlausibleFigureOfThisMachine) {
  ThreadPool pool(1);
  const double bytes_per_second = measure_read_bandwidth(pool);
  EXPECT_GT(bytes_per_second, 1e8);  // slower than any memory in use
  EXPECT_LT(bytes_per_second, 2e12);
}

TEST(Arithmetic, PeaksArePlausibleOrNotMeasured) {
  ThreadPool pool(1);
  const kernels::KernelSet& set = **kernels::choose_kernels("");
  const ArithmeticPeaks peaks = measure_arithmetic(pool, set.name);
  ASSERT_EQ(peaks.multiply_adds > 0, multiply_add_loop(set.name).has_value());
  ASSERT_EQ(peaks.byte_products > 0, byte_product_loop(set.name).has_value());
  for (const double peak : {peaks.multiply_adds, peaks.byte_products})
    if (peak > 0) {
      EXPECT_GT(peak, 1e8);  // operations a second of one thread
      EXPECT_LT(peak, 1e13);
    }
  EXPECT_EQ(measure_arithmetic(pool, "generic").multiply_adds, 0) << "it multiplies in no vectors of its own";
}

TEST(BenchReport, AShareOfMemoryIsOfWhatDoesNotStayInTheCache) {
  BenchResult result;
  result.test.n_gen = 10;
  result.samples.seconds = {1.0};
  result.bytes_per_token = 1e9;
  result.memory_bandwidth = 2e10;
  EXPECT_TRUE(contains(bench_markdown({}, {result}), " 50 % |"));
  EXPECT_EQ(bench_json({}, result)["memory_share"], 0.5);
  result.is_in_cache = true;
  EXPECT_TRUE(contains(bench_markdown({}, {result}), " in cache |"));
  EXPECT_TRUE(bench_json({}, result)["memory_share"].is_null());
  EXPECT_EQ(bench_json({}, result)["gb_per_s"], 10.0);
}

TEST(BenchReport, AShareOfThePeakIsOfTheInstructionsThatAFormatUses) {
  BenchResult result;
  result.test.n_prompt = 10;
  result.samples.seconds = {2.0};
  result.operations = {.byte_products = 4e11, .multiply_adds = 5e10};
  EXPECT_TRUE(bench_json({}, result)["arithmetic_share"].is_null()) << "the peaks were not measured";
  EXPECT_EQ(bench_json({}, result)["gop_per_s"], 225.0);
  result.peaks = {.multiply_adds = 1e11, .byte_products = 8e11};
  EXPECT_EQ(bench_json({}, result)["arithmetic_share"], 0.5);  // half a second of each, in two
  EXPECT_TRUE(contains(bench_markdown({}, {result}), " 50 % |"));
  result.operations = {.multiply_adds = 5e10};
  result.peaks.byte_products = 0;
  EXPECT_EQ(bench_json({}, result)["arithmetic_share"], 0.25) << "bytes are not multiplied";
}

TEST(BenchReport, FlatRowsHaveTheSameFieldsWithAndWithoutACompaction) {
  BenchOptions options;
  options.compact_method = "select:fit=none";
  BenchResult full, compacted;
  full.test.n_prompt = compacted.test.n_prompt = 8;
  full.samples.seconds = compacted.samples.seconds = {1.0};
  compacted.kv_bytes = 4 << 20;
  compacted.compacted = CompactedResult{.samples = {{0.5}}, .kv_bytes = 1 << 20, .real_ratio = 4, .seconds = 2};
  const Json a = bench_flat_json(options, full), b = bench_flat_json(options, compacted);
  EXPECT_EQ(bench_csv_header(a), bench_csv_header(b));
  EXPECT_FALSE(contains(bench_csv_row(b), "{")) << bench_csv_row(b);
  EXPECT_TRUE(a["compaction_method"].is_null());
  EXPECT_EQ(b["compaction_method"], "select:fit=none");
  EXPECT_EQ(b["compaction_kv_bytes"], 1 << 20);
  EXPECT_FALSE(contains(bench_csv_header(bench_flat_json({}, full)), "compaction_"));
  const std::string table = bench_markdown(options, {compacted});
  for (const char* part : {" 4.00 MiB |", " 1.00 MiB |", " select:fit=none |", " 4.0x |", " 2.00 |", " +100 % |"})
    EXPECT_TRUE(contains(table, part)) << part << " in\n" << table;
}

TEST(BenchReport, SqlQuotesWhatEndsAString) {
  const Json row = {{"name", "it's"}, {"n", 3}, {"is", true}, {"share", nullptr}};
  EXPECT_EQ(
      bench_sql_table(row),
      "CREATE TABLE IF NOT EXISTS llama_bench (\n  name TEXT,\n  n INTEGER,\n  is INTEGER,\n  share REAL\n);\n\n");
  EXPECT_EQ(bench_sql_row(row),
            "INSERT INTO llama_bench (name, n, is, share) VALUES ('it''s', '3', '1', NULL);\n");
}

const Args kQuick = {"bench", "-m", kScribe, "-p", "32", "-n", "4", "-pg", "16,2", "-r", "2", "--no-memory-test"};

TEST(Bench, JsonHasTheFieldsThatScriptsRead) {
  Args args = kQuick;
  for (const char* part : {"-o", "json", "-ctk", "f16,q8_0"}) args.push_back(part);
  const auto rows = parse_json(output_of(args));
  ASSERT_TRUE(rows.ok()) << rows.error().message;
  ASSERT_EQ(rows->size(), 6u);
  for (const Json& row : *rows) {
    for (const char* field :
         {"cpu_mask",       "cpu_strict",    "poll",           "n_cpu_moe",     "split_mode",
          "main_gpu",       "no_kv_offload", "devices",        "tensor_split",  "tensor_buft_overrides",
          "load_mode",      "lazy_mode",     "embeddings",     "no_op_offload", "no_host",
          "fit_target",     "fit_min_ctx",   "build_commit",   "build_number",  "cpu_info",
          "gpu_info",       "backends",      "model_filename", "model_type",    "model_size",
          "model_n_params", "n_batch",       "n_ubatch",       "n_threads",     "type_k",
          "type_v",         "n_gpu_layers",  "flash_attn",     "n_prompt",      "n_gen",
          "n_depth",        "test_time",     "avg_ns",         "stddev_ns",     "avg_ts",
          "stddev_ts",      "samples_ns",    "samples_ts"})
      EXPECT_TRUE(row.contains(field)) << field;
    EXPECT_EQ(row["samples_ns"].size(), 2u);
    EXPECT_TRUE(row["build_number"].is_number());
    EXPECT_EQ(row["model_n_params"], 3476224);
    EXPECT_GT(row["avg_ts"].get<double>(), 0);
    EXPECT_EQ(row["gb_per_s"].is_null(), row["n_prompt"] != 0) << "bytes are counted for generation";
    EXPECT_EQ(row["gop_per_s"].is_null(), row["n_gen"] != 0) << "operations are counted for prompts";
    EXPECT_TRUE(row["arithmetic_share"].is_null()) << "nothing was measured to compare with";
    const double n_tokens = row["n_prompt"].get<double>() + row["n_gen"].get<double>();
    const double bytes_of_token = 5 * 2 * (row["type_k"] == "f16" ? 2 * 64 * 2 : 68 + 64 * 2);
    EXPECT_EQ(row["kv_bytes"], std::ceil(n_tokens / 16) * 16 * bytes_of_token) << "of blocks of 16 rows";
  }
  // Generation reads all weights (embeddings are the output matrix) and the rows of at most 4 tokens.
  const double per_token = (*rows)[1]["bytes_per_token"].get<double>();
  EXPECT_GT(per_token, 6958080.0);
  EXPECT_LE(per_token, 6958080.0 + 4 * 2560);
}

TEST(Bench, MissingFilesAreNamedBeforeAnythingIsMeasured) {
  const Outcome outcome = run_program({"bench", "-m", kScribe, "-m", "/no/such.gguf", "-p", "8", "-n", "0", "-r",
                                       "1", "--no-memory-test", "-o", "csv"});
  EXPECT_EQ(outcome.status, 1);
  EXPECT_TRUE(contains(outcome.err, "/no/such.gguf")) << outcome.err;
  EXPECT_EQ(outcome.out, "");
}

TEST(Bench, CompactionIsTimedBeforeAndAfter) {
  const auto rows = parse_json(
      output_of({"bench", "-m", kScribe, "-p", "0", "-n", "4", "-d", "0,256", "-r", "2", "--no-memory-test", "-o",
                 "json", "--compact-method", "select", "--compact-ratio", "4"}));
  ASSERT_TRUE(rows.ok()) << rows.error().message;
  ASSERT_EQ(rows->size(), 2u);
  EXPECT_TRUE((*rows)[0]["compaction"].is_null()) << "there is nothing to compact at depth 0";
  const Json& compaction = (*rows)[1]["compaction"];
  ASSERT_TRUE(compaction.is_object());
  EXPECT_EQ(compaction["method"], "select");
  EXPECT_EQ(compaction["ratio"], 4.0);
  EXPECT_GE(compaction["real_ratio"].get<double>(), 4.0) << "of the whole cache's bytes";
  EXPECT_LT(compaction["real_ratio"].get<double>(), 4.5);
  EXPECT_EQ(compaction["rows_before"], 256.0);
  EXPECT_LT(compaction["kv_bytes"].get<int64_t>() * 3, (*rows)[1]["kv_bytes"].get<int64_t>());
  EXPECT_LT(compaction["rows_after"].get<double>(), 90.0);  // 64, and what the method leaves alone
  EXPECT_GT(compaction["seconds"].get<double>(), 0.0);
  EXPECT_EQ(compaction["samples_ns"].size(), 2u);
}

TEST(Bench, ARatioThatCannotBeReachedIsRefused) {
  for (const char* method : {"select", "truncate"}) {
    const Outcome outcome =
        run_program({"bench", "-m", kScribe, "-p", "0", "-n", "1", "-d", "256", "-r", "1", "--no-memory-test",
                     "--compact-method", method, "--compact-ratio", "1000"});
    EXPECT_EQ(outcome.status, 1);
    EXPECT_TRUE(contains(outcome.err, "--compact-ratio 1000 of -d 256: ")) << outcome.err;
    EXPECT_TRUE(contains(outcome.err, "ask for a lower ratio")) << outcome.err;
  }
}

TEST(BenchOptions, AMethodMayHaveOptionsOfItsOwn) {
  const BenchOptions options = options_of({"-m", "x", "-d", "64", "--compact-method", "select:fit=none"});
  EXPECT_EQ(options.compaction.method, "select");
  EXPECT_EQ(options.compaction.fit, compaction::Fit::none);
  EXPECT_EQ(options.compact_method, "select:fit=none");
  for (const char* method : {"kv:q8_0", "select:fit=all", "summary", "select:budget=profile"}) {
    const auto params =
        engine::parse_params(engine::kBench, Args{"-m", "x", "-d", "64", "--compact-method", method});
    ASSERT_TRUE(params.ok());
    const auto refused = bench_options(*params);
    ASSERT_FALSE(refused.ok()) << method;
    EXPECT_TRUE(contains(refused.error().message, "--compact-method: ")) << refused.error().message;
  }
}

TEST(Bench, ConversationsAtOnceCountTogether) {
  const auto rows = parse_json(output_of({"bench",
                                          "-m",
                                          kScribe,
                                          "-p",
                                          "0",
                                          "-n",
                                          "4",
                                          "-npl",
                                          "1,3",
                                          "-d",
                                          "32",
                                          "-r",
                                          "1",
                                          "--no-memory-test",
                                          "-o",
                                          "json",
                                          "--compact-method",
                                          "streaming",
                                          "--compact-ratio",
                                          "1"}));
  ASSERT_TRUE(rows.ok()) << rows.error().message;
  ASSERT_EQ(rows->size(), 2u);
  const Json &one = (*rows)[0], &three = (*rows)[1];
  EXPECT_EQ(one["n_parallel"], 1);
  EXPECT_EQ(three["n_parallel"], 3);
  for (const Json& row : *rows) {
    EXPECT_NEAR(row["avg_ts"].get<double>() * row["avg_ns"].get<double>() * 1e-9,
                4.0 * row["n_parallel"].get<double>(), 0.01);
    EXPECT_EQ(row["compaction"]["samples_ns"].size(), 1u);
  }
  // The weights are read once for all, 36 rows by each.
  const double weights = 6958080.0;
  const double rows_of_one = one["bytes_per_token"].get<double>() - weights;
  EXPECT_NEAR(three["bytes_per_token"].get<double>(), weights / 3 + rows_of_one, 1.0);
}

TEST(Bench, OtherFormats) {
  Args md = kQuick;
  const std::string table = output_of(md);
  for (const char* part : {"| model ", " pp32 |", " tg4 |", " pp16+tg2 |", " ± ", "build: "})
    EXPECT_TRUE(contains(table, part)) << part << " in\n" << table;
  EXPECT_FALSE(contains(table, "n_ubatch")) << "a parameter at its default has no column";
  md.insert(md.end(), {"-ub", "16"});
  EXPECT_TRUE(contains(output_of(md), "n_ubatch"));

  Args jsonl = kQuick;
  jsonl.insert(jsonl.end(), {"-o", "jsonl"});
  const std::string lines = output_of(jsonl);
  EXPECT_EQ(std::count(lines.begin(), lines.end(), '\n'), 3);
  EXPECT_TRUE(parse_json(lines.substr(0, lines.find('\n'))).ok());

  Args csv = kQuick;
  csv.insert(csv.end(), {"-o", "csv"});
  const std::string text = output_of(csv);
  EXPECT_EQ(std::count(text.begin(), text.end(), '\n'), 4);
  EXPECT_EQ(text.rfind("build_commit,build_number,", 0), 0u) << text;
  EXPECT_FALSE(contains(text, "[")) << "lists of samples have no place in a table";
}

TEST(Bench, TheStandardErrorStreamMayGetAFormatOfItsOwn) {
  const Outcome outcome = run_program({"bench", "-m", kScribe, "-p", "8", "-n", "2", "-r", "1", "--no-memory-test",
                                       "-o", "sql", "-oe", "csv", "--progress", "--delay", "1"});
  ASSERT_EQ(outcome.status, 0) << outcome.err;
  EXPECT_EQ(outcome.out.rfind("CREATE TABLE IF NOT EXISTS llama_bench (", 0), 0u) << outcome.out;
  EXPECT_EQ(std::count(outcome.out.begin(), outcome.out.end(), ';'), 3) << outcome.out;
  EXPECT_TRUE(contains(outcome.err, "build_commit,build_number,")) << outcome.err;
  EXPECT_TRUE(contains(outcome.err, "shorthand bench: waiting 1 s\n")) << outcome.err;
}

TEST(Bench, FlagsOfLlamaBenchThatChangeNothing) {
  const auto notes_of = [](Args args) {
    args.insert(args.begin(), {"-m", "x"});
    const auto params = engine::parse_params(engine::kBench, args);
    EXPECT_TRUE(params.ok()) << (params.ok() ? "" : params.error().message);
    return params.ok() ? params->notes : std::vector<std::string>{};
  };
  // What this program does anyway.
  EXPECT_TRUE(notes_of({"-embd", "0",     "-nopo", "0",         "-lzm", "auto", "-mmp",   "1",    "-fa",
                        "on",    "-nkvo", "0",     "--no-host", "0",    "-dio", "0",      "-ngl", "0",
                        "-sm",   "layer", "-dev",  "none",      "-C",   "0x0",  "--poll", "50"})
                  .empty());
  for (const Args& args :
       {Args{"--mmap", "0"}, {"-embd", "1"}, {"-fa", "off"}, {"-ngl", "99"}, {"-lm", "mlock"}}) {
    const auto notes = notes_of(args);
    ASSERT_EQ(notes.size(), 1u) << args[0];
    EXPECT_TRUE(contains(notes[0], args[1] + " has no effect: ")) << notes[0];
  }
  for (const Args& args : {Args{"-fa", "0,1"}, {"-fa", "on,off"}, {"-ngl", "0,99"}, {"-nkvo", "0,1"}}) {
    const auto notes = notes_of(args);
    ASSERT_EQ(notes.size(), 1u) << args[0];
    EXPECT_TRUE(contains(notes[0], args[1] + ": each test runs once")) << notes[0];
  }
  for (const Args& args : {Args{"-fa", "maybe"}, {"-embd", "2"}, {"-nkvo", "1,x"}, {"-oe", "xml"}, {"-o", "none"}})
    EXPECT_FALSE(engine::parse_params(engine::kBench, args).ok()) << args[0] << " " << args[1];
}

TEST(Bench, DevicesAreListedAndNothingIsDownloaded) {
  EXPECT_EQ(output_of({"bench", "--list-devices"}), "Available devices:\n  (none)\n");
  const Outcome outcome = run_program({"bench", "-hf", "someone/some-model:Q4_K_M", "--offline"});
  EXPECT_EQ(outcome.status, 1);
  EXPECT_TRUE(contains(outcome.err, "someone/some-model:Q4_K_M cannot be fetched: this program downloads nothing"))
      << outcome.err;
}

/// bench/compare with these arguments; `out` and `err` together.
Outcome compare(const std::string& arguments) {
  const std::string path = temporary("compare.out");
  const std::string command = std::string(SH_SOURCE_DIR) + "/bench/compare " + arguments + " > " + path + " 2>&1";
  const int status = WEXITSTATUS(std::system(command.c_str()));
  Outcome outcome{status, slurp(path), ""};
  unlink(path.c_str());
  EXPECT_FALSE(contains(outcome.out, "Traceback")) << outcome.out;
  return outcome;
}

/// A file, removed at the end.
struct TemporaryFile {
  TemporaryFile(const std::string& name, const std::string& text, mode_t mode = 0600) : path(temporary(name)) {
    std::ofstream(path) << text;
    chmod(path.c_str(), mode);
  }
  ~TemporaryFile() { unlink(path.c_str()); }
  std::string path;
};

/// A row of results as llama-bench writes it.
std::string row_text(const std::string& fields) {
  return R"({"model_filename": "m/x.gguf", "n_prompt": 0, "n_gen": 8, "n_depth": 0, "type_k": "f16", "type_v": "f16", )" +
         fields + "}";
}

TEST(Compare, RacesTwoProgramsTestByTest) {
  const std::string program = std::string(SH_PROGRAM) + " bench", json = temporary("compare.json");
  const std::string small = "' -- -m " + kScribe + " -p 16 -n 2 -d 0,32 -r 1 --no-memory-test";
  Outcome outcome = compare("--rounds 2 '" + program + "' '" + program + " -ctk q8_0" + small);
  EXPECT_EQ(outcome.status, 1) << "tests of different caches cannot be compared";
  EXPECT_TRUE(contains(outcome.out, "did not both run")) << outcome.out;
  outcome = compare("--rounds 2 --json " + json + " '" + program + "' '" + program + " --no-repack" + small);
  ASSERT_EQ(outcome.status, 0) << outcome.out;
  EXPECT_TRUE(contains(outcome.out, "| scribe.gguf | pp16 @ 32 | f16/f16 |")) << outcome.out;
  EXPECT_TRUE(contains(outcome.out, "| A/B | lowest to highest of 2 rounds |")) << outcome.out;
  const auto parsed = parse_json(slurp(json));
  unlink(json.c_str());
  ASSERT_TRUE(parsed.ok());
  const Json& result = *parsed;
  ASSERT_EQ(result["tests"].size(), 4u);
  for (const Json& test : result["tests"]) {
    ASSERT_EQ(test["a"].size(), 2u);
    const double first = test["a"][0].get<double>() / test["b"][0].get<double>();
    const double second = test["a"][1].get<double>() / test["b"][1].get<double>();
    EXPECT_NEAR(test["ratio"].get<double>(), (first + second) / 2, 1e-9);
    EXPECT_NEAR(test["low"].get<double>(), std::min(first, second), 1e-9);
    EXPECT_NEAR(test["high"].get<double>(), std::max(first, second), 1e-9);
  }
}

TEST(Compare, WhatAProgramListsIsPartOfATest) {
  const std::string program = std::string(SH_PROGRAM) + " bench";
  const Outcome outcome = compare("--rounds 1 '" + program + " -b 64' '" + program + " -b 128' -- -m " + kScribe +
                                  " -p 16 -n 0 -t 1,2 -ub 8,16 -r 1 --no-memory-test");
  ASSERT_EQ(outcome.status, 0) << outcome.out;
  for (const char* test : {"pp16, n_ubatch 8, n_threads 1 |", "pp16, n_ubatch 16, n_threads 2 |"})
    EXPECT_TRUE(contains(outcome.out, test)) << outcome.out;
  EXPECT_FALSE(contains(outcome.out, "n_batch")) << "what differs between A and B is what they are compared for";
}

TEST(Compare, AnIntervalNeedsRounds) {
  const TemporaryFile rows("rows.json", "[" + row_text(R"("avg_ts": 12.5)") + "]");
  const std::string programs = "'sh -c \"cat " + rows.path + "\"' 'sh -c \"cat " + rows.path + "\"' -- -n 8";
  EXPECT_TRUE(contains(compare("--rounds 5 " + programs).out, "| lowest to highest of 5 rounds |"));
  const Outcome outcome = compare(programs);
  EXPECT_TRUE(contains(outcome.out, "7 rounds, -n 8\n")) << outcome.out;
  EXPECT_TRUE(contains(outcome.out, "| x.gguf | tg8 | f16/f16 | 12.5 | 12.5 | 1.00 | 1.00 to 1.00 |"))
      << outcome.out;
  EXPECT_TRUE(contains(outcome.out, "| A/B | 95 % |")) << outcome.out;
}

TEST(Compare, LinesOfBatchedBenchAreTestsBehindADepth) {
  const TemporaryFile rows("rows.json", "[" + row_text(R"("avg_ts": 100, "n_parallel": 4)") + "]");
  const TemporaryFile batched("llama-batched-bench", R"(#!/bin/sh
echo "$@" >&2
echo 'main: n_kv_max = 512'
echo '|    PP |     TG |    B |   N_KV |   T_PP s | S_PP t/s |   T_TG s | S_TG t/s |      T s |    S t/s |'
echo '|-------|--------|------|--------|----------|----------|----------|----------|----------|----------|'
echo '|     0 |      8 |    4 |     32 |    0.000 |     0.00 |    0.640 |    50.00 |    0.640 |    50.00 |' >&2
)",
                              0700);
  const Outcome outcome = compare("--rounds 1 'sh -c \"cat " + rows.path + "\"' " + batched.path +
                                  " -- -n 8 -npl 4 -- -m n/x.gguf -npl 4");
  ASSERT_EQ(outcome.status, 0) << outcome.out;
  EXPECT_TRUE(contains(outcome.out, "-m n/x.gguf -npl 4\n")) << outcome.out;
  EXPECT_TRUE(contains(outcome.out, "| x.gguf | tg8 x4 | f16/f16 | 100.0 | 50.0 | 2.00 | 2.00 to 2.00 |"))
      << outcome.out;
}

TEST(Compare, ACompactedCacheIsATestOfItsOwn) {
  const TemporaryFile compacted(
      "compacted.json",
      "[" + row_text(R"("avg_ts": 20, "compaction": {"method": "select", "ratio": 8.0, "avg_ts": 60})") + "]");
  const TemporaryFile plain("plain.json", "[" + row_text(R"("avg_ts": 10)") + "]");
  const Outcome outcome =
      compare("--rounds 2 'sh -c \"cat " + compacted.path + "\"' 'sh -c \"cat " + plain.path + "\"' -- -n 8");
  ASSERT_EQ(outcome.status, 0) << outcome.out;
  EXPECT_TRUE(contains(outcome.out, "| x.gguf | tg8 | f16/f16 | 20.0 | 10.0 | 2.00 | 2.00 to 2.00 |"))
      << outcome.out;
  EXPECT_TRUE(
      contains(outcome.out, "| x.gguf | tg8, 8x by select | f16/f16 | 60.0 | 10.0 | 6.00 | 6.00 to 6.00 |"))
      << outcome.out;
}

TEST(Compare, WhatCannotBeComparedIsSaidBeforeTheRaceIfItCanBe) {
  const TemporaryFile good("good.json", "[" + row_text(R"("avg_ts": 1)") + "]");
  const TemporaryFile bare("bare.json", "[" + row_text(R"("avg_ns": 1)") + "]");
  const TemporaryFile batched(
      "llama-batched-bench", "#!/bin/sh\necho '| PP | TG | B |'\necho '|--|--|--|'\necho '| 0 | 8 | 4 |'\n", 0700);
  const TemporaryFile zero("zero.json", "[" + row_text(R"("avg_ts": 0)") + "]");
  const auto cat = [](const TemporaryFile& file) { return "'sh -c \"cat " + file.path + "\"' "; };
  const struct {
    std::string arguments, message;
  } cases[] = {
      {"/no/such/program " + cat(good) + "-- -n 8", "/no/such/program cannot be started"},
      {"'bench \"x' " + cat(good) + "-- -n 8", "cannot be split into words"},
      {"'' " + cat(good) + "-- -n 8", "a program is empty"},
      {cat(good) + cat(bare) + "-- -n 8", "printed a result without avg_ts"},
      {cat(good) + cat(zero) + "-- -n 8", "printed avg_ts 0"},
      {cat(good) + "'echo {}' -- -n 8", "printed no JSON"},
      {cat(good) + "'sh -c \"echo {}\"' -- -n 8", "printed no list of results"},
      {cat(good) + "'sh -c \"echo [1]\"' -- -n 8", "printed a result without model_filename"},
      {cat(good) + batched.path + " -- -n 8", "printed the line | 0 | 8 | 4 |"},
      {"'sh -c \"echo []\"' 'sh -c \"echo []\"' -- -n 8", "neither program ran a test"},
      {cat(good) + "'sh -c \"echo []\"' -- -n 8", "did not both run"},
      {"--rounds 0 a b -- -n 8", "expected at least 1"},
      {cat(good) + cat(good), "expected A B -- ARGUMENTS"},
  };
  for (const auto& [arguments, message] : cases) {
    const Outcome outcome = compare(arguments);
    EXPECT_NE(outcome.status, 0) << arguments;
    EXPECT_TRUE(contains(outcome.out, message)) << arguments << "\n" << outcome.out;
  }
  const Outcome outcome = compare("--json /no/such/folder/x.json " + cat(good) + cat(good) + "-- -n 8");
  EXPECT_EQ(outcome.status, 1);
  EXPECT_TRUE(contains(outcome.out, "/no/such/folder/x.json cannot be written")) << outcome.out;
  EXPECT_FALSE(contains(outcome.out, "round 1")) << "known before the race";
}

TEST(Compare, HelpIsNoError) {
  const Outcome outcome = compare("--help");
  EXPECT_EQ(outcome.status, 0);
  EXPECT_TRUE(contains(outcome.out, "A B -- ARGUMENTS [-- ARGUMENTS_OF_B]")) << outcome.out;
}

}  // namespace
}  // namespace sh::tools
