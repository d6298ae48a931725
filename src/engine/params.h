// SPDX-License-Identifier: MIT
// What a user may set, and the one table of flags that parsing, LLAMA_ARG_* variables, --help and docs/flags.md are made from.
#pragma once

#include <cstdint>
#include <functional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/log.h"
#include "base/result.h"
#include "engine/engine.h"
#include "sampling/sampler.h"

namespace sh::engine {

/// Sub-commands of the program; a flag names those that take it.
enum Command : uint32_t {
  kServe = 1,
  kComplete = 2,
  kChat = 4,
  kBench = 8,
  kEval = 16,
  kTokenize = 32,
  kInspect = 64,
  kLogits = 128,
  kMakeModel = 256,
  kMakeRecall = 512,
  kProfile = 1024,
  kAllCommands = 2047,
};
std::string_view name_of(Command command);

struct ServerParams {
  std::string host = "127.0.0.1";
  int32_t port = 8080;
  std::string api_prefix;               // "" or "/prefix"
  std::vector<std::string> api_keys;
  bool has_metrics = false;
  bool has_slots = true;
  bool has_props = false;               // POST /props
  bool has_compact = false;             // POST /compact
  int32_t timeout_seconds = 3600;       // of a read or a write that makes no progress
  int32_t n_threads = 0;                // 0: one a core, at least 2
  int64_t max_body_bytes = int64_t{64} << 20;
  int32_t sse_ping_seconds = 30;        // 0: none
};

struct ChatParams {
  std::string system_prompt;            // -sys or the text of -sysf
  bool is_conversation = true;          // -no-cnv: raw text
  bool is_single_turn = false;
  std::vector<std::string> reverse_prompts;  // -r
};

/// What compact-eval measures.
struct EvalParams {
  std::vector<std::string> recall_files, prose_files, quality_files, longhealth_files;
  std::vector<std::string> contexts;   // labels of recall files (their names), and lengths of prose contexts; empty: all
  // Differences are counted against the first.
  std::vector<std::string> methods = {"self_study", "nonuniform", "unfitted",  "solver",  "select",  "kvzip",
                                      "snapkv",     "h2o",        "streaming", "random",  "truncate", "reprefill",
                                      "full:rerun", "kv:q8_0",    "kv:q4_0",   "kv:q4_0+self_study"};
  std::vector<double> ratios = {2, 4, 8, 16};
  int64_t n_documents = 5;
  int64_t n_choice_tokens = 512;       // of an answer to multiple choice
  std::string json_path;
  std::string html_path;
};

/// What make-recall writes.
struct RecallParams {
  std::vector<std::string> text_files;
  std::vector<int64_t> n_tokens = {4096};
  int64_t n_documents = 10, n_facts = 20, seed = 1;
  std::string patterns_path;            // "": the built-in ones
  std::vector<std::string> kinds;       // empty: all
  bool has_instruction = true;
};

/// What profile measures.
struct ProfileParams {
  std::vector<std::string> text_files, recall_files;  // both empty: what lies beside the model
  std::string method = "self_study";
  double ratio = 8;
  int64_t n_documents = 5;              // of each recall file, and of all texts together
  int64_t n_tokens = 1024;              // of a piece of text
};

/// What bench runs: every combination of the lists. An empty list stands for the default that the table shows.
struct BenchParams {
  std::vector<std::string> model_paths;
  std::vector<int64_t> n_prompt, n_gen, n_depth, n_parallel, n_batch, n_ubatch, n_threads;
  std::vector<std::pair<int64_t, int64_t>> prompt_gen;  // -pg: a prompt and then an answer, timed together
  std::vector<DType> types_k, types_v;
  int64_t n_repeats = 5;
  bool warms_up = true;
  bool measures_machine = true;
  std::string format = "md";          // of stdout
  std::string error_format = "none";  // of stderr
  int64_t delay_seconds = 0;          // before each test but the first
  bool shows_progress = false;        // as lines, also where stderr is no terminal
  bool lists_devices = false;         // and does nothing else
  std::string compact_method;  // with options, as compact-eval's; "": nothing is compacted
  double compact_ratio = 4;    // of the whole cache's bytes
};

/// Settings of tokenize, inspect, logits, make-model and make-recall.
struct ToolParams {
  bool prints_ids_only = false;
  bool adds_bos = true;
  bool parses_special = true;
  bool shows_count = false;
  bool reads_stdin = false;
  bool prints_json = false;
  std::vector<int32_t> ids;             // of logits
  std::string output_path;
  std::string arch = "qwen3", shape = "0.6B";
  DType dtype = DType::f16;
};

/// All settings of one run, defaults first, then LLAMA_ARG_* variables, then the command line.
struct ProgramParams {
  EngineOptions engine;
  sampling::SamplingParams sampling;
  ServerParams server;
  ChatParams chat;
  EvalParams eval;
  RecallParams recall;
  ProfileParams profile;
  BenchParams bench;
  ToolParams tool;
  bool displays_prompt = false;         // complete: the prompt before the answer
  std::string prompt;                   // -p or the text of -f, escapes processed
  bool processes_escapes = true;
  int64_t n_predict = -1;
  int64_t n_keep = 0;  // tokens at the start that automatic compaction leaves alone; -1: the first prompt
  bool ignore_eos = false;
  bool cache_prompt = true;
  LogLevel log_level = LogLevel::info;
  bool wants_help = false, wants_version = false;
  std::vector<std::string> warnings;    // to be logged once the log level is set
  std::vector<std::string> notes;       // flags that are accepted without effect here, and why
};

/// One row of the flag table.
struct Flag {
  enum class Kind { value, on, on_off };  // takes a value / sets true / has a --no- twin
  Kind kind;
  const char* group;                    // heading in the help
  std::vector<const char*> names;       // "-m", "--model"; the last is the one shown in messages
  std::vector<const char*> off_names;   // of an on_off flag: "--no-metrics"
  const char* env;                      // "LLAMA_ARG_MODEL", or nullptr
  const char* value_name;               // "FILE", "N"; nullptr without a value
  uint32_t commands;                    // bits of Command
  std::string help;
  std::function<Result<void>(ProgramParams&, const std::string& value)> set;  // on/on_off get "true" or "false"
  std::function<std::string(const ProgramParams&)> show;  // the value as text, for defaults; may be empty
  const char* no_effect = nullptr;      // accepted for compatibility: why it does nothing here
  bool adds_up = false;                 // given again it adds to what is there, instead of replacing it
  std::function<void(ProgramParams&)> clear = {};  // of a list: empties it, before what replaces its items is set
};
std::span<const Flag> flag_table();

/// Reads the environment and then the arguments that follow the sub-command's name.
/// Errors: invalid_argument naming the flag, what was expected and what was given; an unknown flag with the nearest known one.
Result<ProgramParams> parse_params(Command command, std::span<const std::string> args);
Result<ProgramParams> parse_params(Command command, int argc, char** argv, int first = 1);

/// Sets the log level and logs what parsing had to say.
void apply_log_settings(const ProgramParams& params);

/// Text for `shorthand <command> --help`.
std::string help_text(Command command);
/// docs/flags.md.
std::string flags_markdown();

}  // namespace sh::engine
