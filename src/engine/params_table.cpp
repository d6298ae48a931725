// SPDX-License-Identifier: MIT
// The table of flags. Names and defaults follow llama.cpp of August 2026 wherever it has the flag.
#include <fmt/format.h>

#include <algorithm>
#include <charconv>
#include <cmath>
#include <limits>

#include "base/mapped_file.h"
#include "engine/params.h"
#include "kernels/kernel_set.h"
#include "kv/layout.h"
#include "tensor/dtype.h"

namespace sh::engine {
namespace {

using P = ProgramParams;
using Names = std::vector<const char*>;

Error bad_value(std::string_view expected, const std::string& got) {
  return Error{ErrorKind::invalid_argument, fmt::format("expected {}, got '{}'", expected, got)};
}

template <typename T>
Result<T> parse_number(const std::string& text, T min, T max) {
  T value{};
  const char* begin = text.data();
  const char* end = begin + text.size();
  if (begin != end && *begin == '+') ++begin;
  const auto [stop, code] = std::from_chars(begin, end, value);
  bool is_good = code == std::errc() && stop == end && value >= min && value <= max;
  if constexpr (std::is_floating_point_v<T>) is_good = is_good && std::isfinite(value);
  if (is_good) return value;
  const char* what = std::is_floating_point_v<T> ? "a number" : "a whole number";
  if (max == std::numeric_limits<T>::max()) return bad_value(fmt::format("{} of at least {}", what, min), text);
  return bad_value(fmt::format("{} from {} to {}", what, min, max), text);
}

/// A flag whose value is the number that `ref` points at.
template <typename Ref>
Flag number(const char* group, Names names, const char* env, const char* value_name, uint32_t commands, std::string help,
            Ref ref, double min, double max = std::numeric_limits<double>::infinity()) {
  using T = std::remove_reference_t<decltype(ref(std::declval<P&>()))>;
  Flag flag{Flag::Kind::value, group, std::move(names), {}, env, value_name, commands, std::move(help), {}, {}};
  flag.set = [ref, min, max](P& params, const std::string& text) -> Result<void> {
    const T high = std::isinf(max) ? std::numeric_limits<T>::max() : static_cast<T>(max);
    SH_ASSIGN(ref(params), parse_number<T>(text, static_cast<T>(min), high));
    return {};
  };
  flag.show = [ref](const P& params) { return fmt::format("{}", ref(const_cast<P&>(params))); };
  return flag;
}

template <typename Ref>
Flag text(const char* group, Names names, const char* env, const char* value_name, uint32_t commands, std::string help, Ref ref) {
  Flag flag{Flag::Kind::value, group, std::move(names), {}, env, value_name, commands, std::move(help), {}, {}};
  flag.set = [ref](P& params, const std::string& value) -> Result<void> {
    ref(params) = value;
    return {};
  };
  flag.show = [ref](const P& params) { return ref(const_cast<P&>(params)); };
  return flag;
}

template <typename Ref>
Flag on_off(const char* group, Names names, Names off_names, const char* env, uint32_t commands, std::string help, Ref ref) {
  const Flag::Kind kind = off_names.empty() ? Flag::Kind::on : Flag::Kind::on_off;
  Flag flag{kind, group, std::move(names), std::move(off_names), env, nullptr, commands, std::move(help), {}, {}};
  flag.set = [ref](P& params, const std::string& value) -> Result<void> {
    ref(params) = value == "true";
    return {};
  };
  if (kind == Flag::Kind::on_off)
    flag.show = [ref](const P& params) { return ref(const_cast<P&>(params)) ? "on" : "off"; };
  return flag;
}

using Setter = std::function<Result<void>(P&, const std::string&)>;
Flag custom(const char* group, Names names, const char* env, const char* value_name, uint32_t commands, std::string help,
            Setter set, std::function<std::string(const P&)> show = {}, bool adds_up = false);

void add_parts(std::vector<std::string>& out, std::string_view all, char separator);

/// A comma list of one name at least; repeats of the flag add to it. `replaces_default`: the first use empties
/// what the defaults hold.
template <typename Ref>
Flag list(const char* group, Names names, const char* value_name, uint32_t commands, std::string help, Ref ref, bool replaces_default = false) {
  return custom(
      group, std::move(names), nullptr, value_name, commands, std::move(help),
      [ref, replaces_default](P& params, const std::string& value) -> Result<void> {
        std::vector<std::string>& target = ref(params);
        const P defaults;
        if (replaces_default && target == ref(const_cast<P&>(defaults))) target.clear();
        const size_t n_before = target.size();
        add_parts(target, value, ',');
        if (target.size() == n_before) return bad_value("one name at least, several with commas between", value);
        return {};
      },
      [ref](const P& params) { return fmt::format("{}", fmt::join(ref(const_cast<P&>(params)), ",")); }, true);
}

Flag custom(const char* group, Names names, const char* env, const char* value_name, uint32_t commands, std::string help,
            Setter set, std::function<std::string(const P&)> show, bool adds_up) {
  const Flag::Kind kind = value_name == nullptr ? Flag::Kind::on : Flag::Kind::value;
  return Flag{kind, group, std::move(names), {}, env, value_name, commands, std::move(help), std::move(set), std::move(show), nullptr, adds_up};
}

/// A flag of llama.cpp that changes nothing in this program.
Flag ignored(Names names, const char* env, const char* value_name, const char* why, Names off_names = {}, uint32_t commands = kAllCommands) {
  Flag::Kind kind = value_name != nullptr ? Flag::Kind::value : off_names.empty() ? Flag::Kind::on : Flag::Kind::on_off;
  Flag flag{kind, "accepted without effect", std::move(names), std::move(off_names), env, value_name, commands, why, {}, {}};
  flag.set = [](P&, const std::string&) -> Result<void> { return {}; };
  flag.no_effect = why;
  return flag;
}

Setter cache_type(DType EngineOptions::*member) {
  return [member](P& params, const std::string& value) -> Result<void> {
    SH_ASSIGN(params.engine.*member, kv::cache_dtype_from_name(value));
    return {};
  };
}
std::function<std::string(const P&)> show_cache_type(DType EngineOptions::*member) {
  return [member](const P& params) { return std::string(tensor_format(params.engine.*member).name); };
}

/// Adds every non-empty line or comma-separated part.
void add_parts(std::vector<std::string>& out, std::string_view all, char separator) {
  while (!all.empty()) {
    const size_t end = std::min(all.find(separator), all.size());
    std::string_view part = all.substr(0, end);
    while (!part.empty() && (part.back() == '\r' || part.back() == ' ')) part.remove_suffix(1);
    if (!part.empty()) out.emplace_back(part);
    all.remove_prefix(std::min(end + 1, all.size()));
  }
}

Result<void> read_prompt_file(P& params, const std::string& path) {
  SH_ASSIGN(params.prompt, read_file(path));
  if (!params.prompt.empty() && params.prompt.back() == '\n') params.prompt.pop_back();
  return {};
}

/// "A-B" or "A:B" → positions [A, B); several with commas between.
Result<void> add_pinned_spans(P& params, const std::string& value) {
  std::vector<std::string> parts;
  add_parts(parts, value, ',');
  const Error error = bad_value("two token positions A-B with A < B, several pairs with commas between", value);
  if (parts.empty()) return error;
  for (const std::string& part : parts) {
    const size_t dash = part.find_first_of("-:");
    if (dash == std::string::npos) return error;
    const auto begin = parse_number<int64_t>(part.substr(0, dash), 0, std::numeric_limits<int32_t>::max());
    const auto end = parse_number<int64_t>(part.substr(dash + 1), 0, std::numeric_limits<int32_t>::max());
    if (!begin.ok() || !end.ok() || *begin >= *end) return error;
    params.engine.compact_pinned.push_back({*begin, *end});
  }
  return {};
}

Result<void> add_compact_options(P& params, const std::string& value) {
  std::vector<std::string> parts;
  add_parts(parts, value, ',');
  CompactionRequest scratch;
  for (const std::string& part : parts) {
    const size_t equals = part.find('=');
    if (equals == std::string::npos || equals == 0) return bad_value("name=value, several with commas between", part);
    SH_RETURN_IF_ERROR(set_option(scratch, part.substr(0, equals), part.substr(equals + 1)));
    params.engine.compact_options.emplace_back(part.substr(0, equals), part.substr(equals + 1));
  }
  return {};
}

Result<void> set_compact_method(P& params, const std::string& value) {
  const auto method = compaction::find_method(value);
  if (!method.ok())
    return Error{ErrorKind::invalid_argument,
                 method.error().message + (value.find(':') == std::string::npos
                                               ? ""
                                               : "; a method's options are given by --compact-options name=value,...")};
  params.engine.compact_method = value;
  return {};
}

Result<void> set_flash_attention(P& params, const std::string& value) {
  if (value != "on" && value != "off" && value != "auto" && value != "1" && value != "0")
    return bad_value("on, off or auto", value);
  if (value == "off" || value == "0") params.notes.push_back("--flash-attn off: there is one attention kernel, and it is a flash-style one");
  return {};
}

Result<void> set_parallel(P& params, const std::string& value) {
  SH_ASSIGN(params.engine.n_parallel, parse_number<int32_t>(value, -1, 256));
  if (params.engine.n_parallel == 0) return bad_value("-1 (automatic) or a whole number from 1 to 256", value);
  return {};
}

Result<void> set_seed(P& params, const std::string& value) {
  SH_ASSIGN(const int64_t seed, parse_number<int64_t>(value, -1, std::numeric_limits<uint32_t>::max()));
  params.sampling.seed = static_cast<uint32_t>(seed);
  return {};
}

Result<void> set_chat_template_file(P& params, const std::string& path) {
  SH_ASSIGN(params.engine.chat_template, read_file(path));
  return {};
}

Result<void> set_api_prefix(P& params, const std::string& value) {
  if (!value.empty() && (value.front() != '/' || value.back() == '/')) return bad_value("a path like /api, without a slash at its end", value);
  params.server.api_prefix = value;
  return {};
}

Result<void> read_api_keys(P& params, const std::string& path) {
  SH_ASSIGN(const std::string lines, read_file(path));
  add_parts(params.server.api_keys, lines, '\n');
  if (params.server.api_keys.empty()) return Error{ErrorKind::invalid_argument, fmt::format("{} holds no key; write one a line", path)};
  return {};
}

Result<void> set_verbosity(P& params, const std::string& value) {
  SH_ASSIGN(const int32_t level, parse_number<int32_t>(value, 0, std::numeric_limits<int32_t>::max()));
  params.log_level = static_cast<LogLevel>(std::min(level, static_cast<int32_t>(LogLevel::debug)));
  return {};
}

/// Not kRandomSeed, which is the default and stands for 1: a measurement is repeatable unless told otherwise.
Result<void> set_eval_seed(P& params, const std::string& value) {
  SH_ASSIGN(params.sampling.seed, parse_number<uint32_t>(value, 0, sampling::kRandomSeed - 1));
  return {};
}

constexpr uint32_t kGenerates = kServe | kComplete | kChat;
constexpr uint32_t kInteractive = kComplete | kChat;
constexpr uint32_t kRuns = kGenerates | kEval | kLogits | kProfile;  // run a model with one setting each; bench has lists of its own

/// Bounds of what a list of numbers may be, so that a slip of the pen does not become a billion runs.
constexpr size_t kMaxListItems = 10'000;

/// "512", "1,2,4", and ranges: "first-last", "first-last+step", "first-last*factor".
Result<void> add_numbers(std::vector<int64_t>& out, const std::string& value, int64_t min) {
  constexpr int64_t kMax = int64_t{1} << 30;
  std::vector<std::string> parts;
  add_parts(parts, value, ',');
  if (parts.empty()) return bad_value("a number, a comma list or a range like 128-1024*2", value);
  for (const std::string& part : parts) {
    const size_t dash = part.find('-', 1);
    const size_t by = part.find_first_of("+*", dash == std::string::npos ? 0 : dash);
    SH_ASSIGN(int64_t at, parse_number<int64_t>(part.substr(0, dash), min, kMax));
    if (dash == std::string::npos) {
      out.push_back(at);
      continue;
    }
    SH_ASSIGN(const int64_t last, parse_number<int64_t>(part.substr(dash + 1, by == std::string::npos ? by : by - dash - 1), min, kMax));
    const bool multiplies = by != std::string::npos && part[by] == '*';
    int64_t step = 1;
    if (by != std::string::npos) {
      SH_ASSIGN(step, parse_number<int64_t>(part.substr(by + 1), multiplies ? 2 : 1, kMax));
    }
    if (multiplies && at < 1) return bad_value("a range that starts at 1 or more, when it grows by a factor", part);
    for (; at <= last; at = multiplies ? at * step : at + step) {
      if (out.size() >= kMaxListItems) return bad_value(fmt::format("at most {} numbers", kMaxListItems), part);
      out.push_back(at);
    }
  }
  return {};
}

Result<void> set_recall_tokens(P& p, const std::string& value) {
  p.recall.n_tokens.clear();
  SH_RETURN_IF_ERROR(add_numbers(p.recall.n_tokens, value, 64));
  std::vector<int64_t>& lengths = p.recall.n_tokens;
  std::sort(lengths.begin(), lengths.end());
  lengths.erase(std::unique(lengths.begin(), lengths.end()), lengths.end());
  return {};
}

Flag number_list(const char* group, Names names, const char* value_name, std::string help, const char* shown_default,
                 std::vector<int64_t> BenchParams::*member, int64_t min) {
  return custom(group, std::move(names), nullptr, value_name, kBench, std::move(help),
                [member, min](P& p, const std::string& value) { return add_numbers(p.bench.*member, value, min); },
                [shown_default](const P&) { return std::string(shown_default); }, true);
}

Flag type_list(const char* group, Names names, std::string help, std::vector<DType> BenchParams::*member) {
  return custom(group, std::move(names), nullptr, "TYPES", kBench, std::move(help),
                [member](P& p, const std::string& value) -> Result<void> {
                  std::vector<std::string> parts;
                  add_parts(parts, value, ',');
                  for (const std::string& part : parts) {
                    SH_ASSIGN(const DType dtype, kv::cache_dtype_from_name(part));
                    (p.bench.*member).push_back(dtype);
                  }
                  return {};
                },
                [](const P&) { return std::string("f16"); }, true);
}

Result<void> add_prompt_gen(P& p, const std::string& value) {
  std::vector<int64_t> pair;
  SH_RETURN_IF_ERROR(add_numbers(pair, value, 0));
  if (pair.size() != 2) return bad_value("two numbers, of prompt and answer tokens, like 512,128", value);
  p.bench.prompt_gen.emplace_back(pair[0], pair[1]);
  return {};
}

Setter bench_format(std::string BenchParams::*member, bool may_be_none) {
  return [member, may_be_none](P& p, const std::string& value) -> Result<void> {
    for (const char* known : {"md", "csv", "json", "jsonl", "sql", "none"})
      if (value == known && (may_be_none || value != "none")) {
        p.bench.*member = value;
        return {};
      }
    return bad_value(may_be_none ? "md, csv, json, jsonl, sql or none" : "md, csv, json, jsonl or sql", value);
  };
}

/// A setting that llama-bench takes lists of and that has one value here. `value_name`: the values that there are,
/// with bars between, or a name for any; `ours`: those that ask for no more than what this program does anyway.
Flag fixed_in_bench(Names names, const char* value_name, std::vector<std::string> ours, const char* why) {
  std::vector<std::string> known;
  if (std::string_view(value_name).find('|') != std::string_view::npos) add_parts(known, value_name, '|');
  const std::string name = names.back();
  const auto set = [=](P& p, const std::string& value) -> Result<void> {
    const auto is_in = [](const std::vector<std::string>& all, const std::string& one) {
      return std::find(all.begin(), all.end(), one) != all.end();
    };
    std::vector<std::string> parts;
    add_parts(parts, value, ',');
    if (parts.empty()) return bad_value(value_name, value);
    for (const std::string& part : parts)
      if (!known.empty() && !is_in(known, part)) return bad_value(value_name, part);
    if (parts.size() > 1)
      p.notes.push_back(
          fmt::format("{} {}: each test runs once, not once for each of them: {}", name, value, why));
    else if (!ours.empty() && !is_in(ours, value))
      p.notes.push_back(fmt::format("{} {} has no effect: {}", name, value, why));
    return {};
  };
  return custom("accepted without effect", std::move(names), nullptr, value_name, kBench, why, set, {}, true);
}

Result<void> refuse_download(P&, const std::string& value) {
  return Error{
      ErrorKind::unsupported,
      fmt::format(
          "{} cannot be fetched: this program downloads nothing; download the GGUF file and name it with -m",
          value)};
}

Result<void> set_token_ids(P& p, const std::string& value) {
  std::vector<std::string> parts;
  std::string text = value;
  for (char& c : text)
    if (c == '[' || c == ']' || c == ' ') c = ',';
  add_parts(parts, text, ',');
  for (const std::string& part : parts) {
    SH_ASSIGN(const int32_t id, parse_number<int32_t>(part, 0, std::numeric_limits<int32_t>::max()));
    p.tool.ids.push_back(id);
  }
  if (parts.empty()) return bad_value("token ids like 1,2,3", value);
  return {};
}

Result<void> read_system_prompt(P& p, const std::string& path) {
  SH_ASSIGN(p.chat.system_prompt, read_file(path));
  if (!p.chat.system_prompt.empty() && p.chat.system_prompt.back() == '\n') p.chat.system_prompt.pop_back();
  return {};
}

std::vector<Flag> make_table() {
  std::vector<Flag> t;
  const char* g = "common";
  t.push_back(custom(g, {"-h", "--help", "--usage"}, nullptr, nullptr, kAllCommands, "this text", [](P& p, const std::string&) -> Result<void> {
    p.wants_help = true;
    return {};
  }));
  t.push_back(custom(g, {"--version"}, nullptr, nullptr, kAllCommands, "version and build", [](P& p, const std::string&) -> Result<void> {
    p.wants_version = true;
    return {};
  }));
  t.push_back(text(g, {"-m", "--model"}, "LLAMA_ARG_MODEL", "FILE", kAllCommands & ~(kBench | kMakeModel), "model file (GGUF)", [](P& p) -> auto& { return p.engine.model_path; }));
  t.push_back(number(g, {"-c", "--ctx-size"}, "LLAMA_ARG_CTX_SIZE", "N", kRuns,
                     "KV cache in tokens, all conversations together; 0: the model's context", [](P& p) -> auto& { return p.engine.n_ctx; }, 0));
  t.push_back(number(g, {"-n", "--predict", "--n-predict"}, "LLAMA_ARG_N_PREDICT", "N", kGenerates,
                     "tokens to generate at most; -1: until the end of the turn or of the context", [](P& p) -> auto& { return p.n_predict; }, -1));
  t.push_back(number(g, {"-b", "--batch-size"}, "LLAMA_ARG_BATCH", "N", kRuns, "tokens of one step at most",
                     [](P& p) -> auto& { return p.engine.n_batch; }, 1, 1 << 20));
  t.push_back(number(g, {"-ub", "--ubatch-size"}, "LLAMA_ARG_UBATCH", "N", kRuns, "tokens of one forward pass at most",
                     [](P& p) -> auto& { return p.engine.n_ubatch; }, 1, 1 << 16));
  // 150 ms a token is about as fast as people read. Prompt tokens cost little more in small steps than in large
  // ones (PromptAllowance::kMinTokens), so that a prompt loses what decoding takes of a step: 11 ms of it with a
  // 135M model, 57 with one of 1B (2 threads, 2026-11-30).
  t.push_back(number(
      g, {"--step-ms"}, "LLAMA_ARG_STEP_MS", "N", kServe,
      "goal in milliseconds for a forward pass that reads prompts while others are answered: it takes fewer of "
      "the prompts' tokens, 16 at least; 0: as many as -ub allows",
      [](P & p) -> auto& { return p.engine.step_ms; }, 0, 60000));
  t.push_back(number(g, {"-t", "--threads"}, "LLAMA_ARG_THREADS", "N", kRuns, "threads; 0 or -1: one a core",
                     [](P& p) -> auto& { return p.engine.n_threads; }, -1, 1024));
  t.push_back(custom(g, {"-np", "--parallel"}, "LLAMA_ARG_N_PARALLEL", "N", kServe,
                     "conversations at once; -1: automatic (4 when serving, with one shared cache). Given without "
                     "-kvu it divides -c",
                     set_parallel));
  t.push_back(on_off(
      g, {"-kvu", "--kv-unified"}, {"-no-kvu", "--no-kv-unified"}, "LLAMA_ARG_KV_UNIFIED", kServe,
      "one cache for all conversations: each may use all of -c",
      [](P& p) -> auto& { return p.engine.is_kv_unified; }));
  t.push_back(custom(g, {"-ctk", "--cache-type-k"}, "LLAMA_ARG_CACHE_TYPE_K", "TYPE", kRuns,
                     "encoding of keys in the cache: " + kernels::kv_dtype_names(),
                     cache_type(&EngineOptions::type_k), show_cache_type(&EngineOptions::type_k)));
  t.push_back(custom(g, {"-ctv", "--cache-type-v"}, "LLAMA_ARG_CACHE_TYPE_V", "TYPE", kRuns,
                     "encoding of values in the cache", cache_type(&EngineOptions::type_v), show_cache_type(&EngineOptions::type_v)));
  t.push_back(custom(g, {"-fa", "--flash-attn"}, "LLAMA_ARG_FLASH_ATTN", "on|off|auto", kRuns,
                     "accepted; attention is always flash-style", set_flash_attention,
                     [](const P&) { return std::string("auto"); }));
  t.push_back(text(g, {"--kernels"}, nullptr, "NAME", kRuns | kBench,
                   "force a kernel set (generic, avx2, ...); default: SHORTHAND_KERNELS, else the best one", [](P& p) -> auto& { return p.engine.kernels; }));
  t.push_back(on_off(g, {"--repack"}, {"-nr", "--no-repack"}, "LLAMA_ARG_REPACK", kRuns | kBench,
                     "bring quantised weights into the kernels' layout when the model is loaded; off: read them where the file has them",
                     [](P& p) -> auto& { return p.engine.repacks; }));
  t.push_back(custom(g, {"-v", "--verbose", "--log-verbose"}, nullptr, nullptr, kAllCommands, "log everything", [](P& p, const std::string&) -> Result<void> {
    p.log_level = LogLevel::debug;
    return {};
  }));
  t.push_back(custom(g, {"-lv", "--verbosity", "--log-verbosity"}, "LLAMA_ARG_LOG_VERBOSITY", "N", kAllCommands,
                     "log level: 0 output, 1 errors, 2 warnings, 3 info, 4 trace, 5 debug", set_verbosity,
                     [](const P& p) { return fmt::format("{}", static_cast<int>(p.log_level)); }));

  g = "prompt";
  t.push_back(text(
      g, {"-p", "--prompt"}, nullptr, "TEXT", kInteractive | kTokenize, "prompt",
      [](P& p) -> auto& { return p.prompt; }));
  t.push_back(custom(g, {"-f", "--file"}, nullptr, "FILE", kInteractive | kTokenize, "read the prompt from a file",
                     read_prompt_file));
  t.push_back(on_off(
      g, {"-e", "--escape"}, {"--no-escape"}, nullptr, kInteractive | kTokenize,
      "process \\n, \\r, \\t, \\', \\\", \\\\ and \\xHH in the prompt",
      [](P& p) -> auto& { return p.processes_escapes; }));

  g = "sampling";
  t.push_back(custom(g, {"-s", "--seed"}, nullptr, "N", kGenerates, "random seed; -1: a new one each time", set_seed,
                     [](const P&) { return std::string("-1"); }));
  t.push_back(number(g, {"--temp", "--temperature"}, nullptr, "F", kGenerates, "temperature; 0: always the likeliest token",
                     [](P& p) -> auto& { return p.sampling.temperature; }, -1, 1000));
  t.push_back(number(g, {"--top-k"}, "LLAMA_ARG_TOP_K", "N", kGenerates, "keep the N likeliest tokens; 0: all",
                     [](P& p) -> auto& { return p.sampling.top_k; }, -1));
  t.push_back(number(g, {"--top-p"}, nullptr, "F", kGenerates, "keep the likeliest tokens that reach this probability together; 1: off",
                     [](P& p) -> auto& { return p.sampling.top_p; }, 0, 1));
  t.push_back(number(g, {"--min-p"}, nullptr, "F", kGenerates, "keep tokens of at least this share of the likeliest one's probability; 0: off",
                     [](P& p) -> auto& { return p.sampling.min_p; }, 0, 1));
  t.push_back(number(g, {"--typical", "--typical-p"}, nullptr, "F", kGenerates, "locally typical sampling; 1: off",
                     [](P& p) -> auto& { return p.sampling.typical_p; }, 0, 1));
  t.push_back(number(g, {"--repeat-last-n"}, nullptr, "N", kGenerates, "tokens that penalties look back on; 0: none, -1: all",
                     [](P& p) -> auto& { return p.sampling.repeat_last_n; }, -1));
  t.push_back(number(g, {"--repeat-penalty"}, nullptr, "F", kGenerates, "penalty on tokens that occurred; 1: off",
                     [](P& p) -> auto& { return p.sampling.repeat_penalty; }, 0, 1000));
  t.push_back(number(g, {"--presence-penalty"}, nullptr, "F", kGenerates, "subtracted once from tokens that occurred",
                     [](P& p) -> auto& { return p.sampling.presence_penalty; }, -1000, 1000));
  t.push_back(number(g, {"--frequency-penalty"}, nullptr, "F", kGenerates, "subtracted for every occurrence",
                     [](P& p) -> auto& { return p.sampling.frequency_penalty; }, -1000, 1000));
  t.push_back(on_off(g, {"--ignore-eos"}, {}, nullptr, kGenerates, "do not stop at the end of a turn", [](P& p) -> auto& { return p.ignore_eos; }));

  g = "chat";
  t.push_back(text(g, {"--chat-template"}, "LLAMA_ARG_CHAT_TEMPLATE", "TEXT", kServe | kChat, "Jinja template to use instead of the model's",
                   [](P& p) -> auto& { return p.engine.chat_template; }));
  t.push_back(custom(g, {"--chat-template-file"}, "LLAMA_ARG_CHAT_TEMPLATE_FILE", "FILE", kServe | kChat, "the same, from a file", set_chat_template_file));
  t.push_back(text(g, {"-sys", "--system-prompt"}, nullptr, "TEXT", kChat, "system message", [](P& p) -> auto& { return p.chat.system_prompt; }));
  t.push_back(custom(g, {"-sysf", "--system-prompt-file"}, nullptr, "FILE", kChat, "the same, from a file", read_system_prompt));
  t.push_back(on_off(g, {"-cnv", "--conversation"}, {"-no-cnv", "--no-conversation"}, nullptr, kChat, "use the chat template",
                     [](P& p) -> auto& { return p.chat.is_conversation; }));
  t.push_back(on_off(g, {"-st", "--single-turn"}, {}, nullptr, kChat, "stop after one answer", [](P& p) -> auto& { return p.chat.is_single_turn; }));
  t.push_back(custom(g, {"-r", "--reverse-prompt"}, nullptr, "TEXT", kInteractive, "stop at this text; may be given more than once",
                     [](P& p, const std::string& value) -> Result<void> {
                       p.chat.reverse_prompts.push_back(value);
                       return {};
                     },
                     {}, true));

  g = "compaction";
  t.push_back(number(
      g, {"--compact-threshold"}, "LLAMA_ARG_COMPACT_THRESHOLD", "F", kGenerates,
      "compact a conversation that fills this share of its cache, if a 64th of the cache and 16 rows a head can "
      "be gained; 0: off",
      [](P& p) -> auto& { return p.engine.compact_threshold; }, 0, 1));
  t.push_back(number(
      g, {"--compact-ratio"}, "LLAMA_ARG_COMPACT_RATIO", "F", kGenerates,
      "automatic compaction aims at --compact-threshold of the cache divided by F, rows that stay included; where "
      "they are too many for that, the others are thinned to a 2F-th",
      [](P& p) -> auto& { return p.engine.compact_ratio; }, 1, 1e6));
  t.push_back(custom(g, {"--compact-method"}, "LLAMA_ARG_COMPACT_METHOD", "NAME", kGenerates,
                     "method of automatic compaction (docs/compact-api.md lists them)", set_compact_method,
                     [](const P& p) { return p.engine.compact_method; }));
  t.push_back(custom(g, {"--compact-capture"}, "LLAMA_ARG_COMPACT_CAPTURE", "MIB", kGenerates,
                     "memory for queries captured while a conversation is read (queries=prefill); 0: none are captured",
                     [](P& p, const std::string& value) -> Result<void> {
                       SH_ASSIGN(const int64_t mib, parse_number<int64_t>(value, 0, int64_t{1} << 20));
                       p.engine.capture_bytes = mib << 20;
                       return {};
                     },
                     [](const P& p) { return std::to_string(p.engine.capture_bytes >> 20); }));
  t.push_back(number(g, {"--compact-keep"}, "LLAMA_ARG_COMPACT_KEEP", "N", kGenerates,
                     "tokens at the start of every conversation that automatic compaction never touches; -1: its whole first prompt",
                     [](P& p) -> auto& { return p.engine.compact_keep; }, -1));
  t.push_back(custom(g, {"--compact-pin"}, "LLAMA_ARG_COMPACT_PIN", "A-B", kGenerates,
                     "token positions from A up to B that automatic compaction never touches; a comma list for "
                     "several, may be given more than once",
                     add_pinned_spans, {}, true));
  t.back().clear = [](P& p) { p.engine.compact_pinned.clear(); };
  t.push_back(number(g, {"--compact-max-kl"}, "LLAMA_ARG_COMPACT_MAX_KL", "F", kGenerates,
                     "refuse an automatic compaction whose replay has a larger mean KL, in nats; 0: no limit",
                     [](P& p) -> auto& { return p.engine.compact_max_kl; }, 0, 1e6));
  t.push_back(number(g, {"--compact-target-kl"}, "LLAMA_ARG_COMPACT_TARGET_KL", "F", kGenerates,
                     "compact as far as this mean KL of the replay allows, whatever --compact-ratio says; 0: off",
                     [](P& p) -> auto& { return p.engine.compact_target_kl; }, 0, 1e6));
  t.push_back(number(
      g, {"--compact-target-head-error"}, "LLAMA_ARG_COMPACT_TARGET_HEAD_ERROR", "F", kGenerates,
      "compact as far as every head's attention output stays within this relative error (its 99th percentile over "
      "reference queries, below 1), whatever --compact-ratio says; not together with --compact-target-kl; 0: off",
      [](P & p) -> auto& { return p.engine.compact_target_head_error; }, 0, 1));
  t.push_back(custom(g, {"--compact-options"}, "LLAMA_ARG_COMPACT_OPTIONS", "LIST", kGenerates,
                     "name=value,... : choices of automatic compaction that differ from its method's, as in compact-eval's --methods", add_compact_options, {}, true));
  t.back().clear = [](P& p) { p.engine.compact_options.clear(); };
  t.push_back(text(g, {"--compact-profile"}, "LLAMA_ARG_COMPACT_PROFILE", "FILE", kGenerates | kEval,
                   "shares of the heads that budget=profile goes by, as 'shorthand profile' writes them",
                   [](P& p) -> auto& { return p.engine.compact_profile; }));
  t.push_back(on_off(g, {"--compact-rebase"}, {"--no-compact-rebase"}, "LLAMA_ARG_COMPACT_REBASE", kGenerates,
                     "number positions anew when they near the end of what the model was trained for, so that a conversation never ends",
                     [](P& p) -> auto& { return p.engine.compact_rebase; }));
  t.push_back(on_off(g, {"--compact-delay"}, {"--no-compact-delay"}, "LLAMA_ARG_COMPACT_DELAY", kGenerates,
                     "compact what came before a turn only when the turn's prompt has been read, for the queries of that prompt; "
                     "a full cache does not wait for it",
                     [](P& p) -> auto& { return p.engine.compact_delay; }));
  t.push_back(number(g, {"--keep"}, nullptr, "N", kInteractive, "tokens at the start that automatic compaction leaves alone; -1: all of the first prompt",
                     [](P& p) -> auto& { return p.n_keep; }, -1));
  t.push_back(on_off(g, {"--endpoint-compact"}, {"--no-endpoint-compact"}, "LLAMA_ARG_ENDPOINT_COMPACT", kServe, "answer POST /compact",
                     [](P& p) -> auto& { return p.server.has_compact; }));

  g = "server";
  t.push_back(text(g, {"--host"}, "LLAMA_ARG_HOST", "ADDR", kServe, "address to listen on", [](P& p) -> auto& { return p.server.host; }));
  t.push_back(number(g, {"--port"}, "LLAMA_ARG_PORT", "N", kServe, "port; 0: any free one", [](P& p) -> auto& { return p.server.port; }, 0, 65535));
  t.push_back(text(g, {"-a", "--alias"}, "LLAMA_ARG_ALIAS", "NAME", kServe, "model name shown to clients; default: the file's name",
                   [](P& p) -> auto& { return p.engine.model_alias; }));
  t.push_back(custom(g, {"--api-key"}, "LLAMA_API_KEY", "KEY", kServe, "key that clients must send; a comma list for several",
                     [](P& p, const std::string& value) -> Result<void> {
                       add_parts(p.server.api_keys, value, ',');
                       return {};
                     }));
  t.back().clear = [](P& p) { p.server.api_keys.clear(); };
  t.push_back(custom(g, {"--api-key-file"}, "LLAMA_ARG_API_KEY_FILE", "FILE", kServe, "file of keys, one a line", read_api_keys));
  t.push_back(custom(g, {"--api-prefix"}, "LLAMA_ARG_API_PREFIX", "PATH", kServe, "put before every route", set_api_prefix));
  t.push_back(on_off(g, {"--metrics"}, {"--no-metrics"}, "LLAMA_ARG_ENDPOINT_METRICS", kServe, "answer GET /metrics", [](P& p) -> auto& { return p.server.has_metrics; }));
  t.push_back(on_off(g, {"--slots"}, {"--no-slots"}, "LLAMA_ARG_ENDPOINT_SLOTS", kServe, "answer GET /slots", [](P& p) -> auto& { return p.server.has_slots; }));
  t.push_back(on_off(g, {"--props"}, {"--no-props"}, "LLAMA_ARG_ENDPOINT_PROPS", kServe, "answer POST /props", [](P& p) -> auto& { return p.server.has_props; }));
  t.push_back(on_off(g, {"--cache-prompt"}, {"--no-cache-prompt"}, "LLAMA_ARG_CACHE_PROMPT", kServe, "reuse the cache of a conversation that goes on",
                     [](P& p) -> auto& { return p.cache_prompt; }));
  t.push_back(number(g, {"-to", "--timeout"}, "LLAMA_ARG_TIMEOUT", "S", kServe, "seconds that a read or a write may make no progress",
                     [](P& p) -> auto& { return p.server.timeout_seconds; }, 1));
  t.push_back(number(g, {"--threads-http"}, "LLAMA_ARG_THREADS_HTTP", "N", kServe, "threads that serve HTTP; 0 or -1: one a core, at least 2",
                     [](P& p) -> auto& { return p.server.n_threads; }, -1, 1024));
  t.push_back(number(g, {"--sse-ping-interval"}, "LLAMA_ARG_SSE_PING_INTERVAL", "S", kServe, "seconds of silence in a stream before a comment line is sent; 0 or -1: never",
                     [](P& p) -> auto& { return p.server.sse_ping_seconds; }, -1));
  t.push_back(number(g, {"--max-body"}, nullptr, "BYTES", kServe, "largest request body",
                     [](P& p) -> auto& { return p.server.max_body_bytes; }, 1024));

  g = "compact-eval";
  t.push_back(list(
      g, {"--recall"}, "FILE", kEval,
      "documents with questions, JSON lines; may be given more than once; without any file: recall/ and prose/ "
      "beside the model",
      [](P& p) -> auto& { return p.eval.recall_files; }));
  t.push_back(list(g, {"--prose"}, "FILE", kEval, "plain text; may be given more than once", [](P& p) -> auto& { return p.eval.prose_files; }));
  t.push_back(list(g, {"--quality"}, "FILE", kEval, "articles with multiple choice as QuALITY has them, JSON lines",
                   [](P& p) -> auto& { return p.eval.quality_files; }));
  t.push_back(list(g, {"--longhealth"}, "FILE", kEval,
                   "patient files with multiple choice as LongHealth has them; --contexts longhealth-5: five to a document",
                   [](P& p) -> auto& { return p.eval.longhealth_files; }));
  t.push_back(number(g, {"--qa-tokens"}, nullptr, "N", kEval, "tokens of an answer to multiple choice at most, thoughts included",
                     [](P& p) -> auto& { return p.eval.n_choice_tokens; }, 1, 65536));
  t.push_back(list(g, {"--contexts"}, "LIST", kEval, "names of recall files, and lengths of prose contexts in tokens; default: all that fit",
                   [](P& p) -> auto& { return p.eval.contexts; }));
  t.push_back(list(g, {"--methods"}, "LIST", kEval, "methods to compare, each name[:option=value...]", [](P& p) -> auto& { return p.eval.methods; }, true));
  t.push_back(custom(
      g, {"--ratios"}, nullptr, "LIST", kEval, "real bytes of the whole cache before / after",
      [](P& p, const std::string& value) -> Result<void> {
        std::vector<std::string> parts;
        add_parts(parts, value, ',');
        p.eval.ratios.clear();
        for (const std::string& part : parts) {
          SH_ASSIGN(const double ratio, parse_number<double>(part, 1, 1e6));
          p.eval.ratios.push_back(ratio);
        }
        if (parts.empty()) return bad_value("one number at least, several with commas between", value);
        return {};
      },
      [](const P& p) { return fmt::format("{}", fmt::join(p.eval.ratios, ",")); }));
  t.push_back(number(g, {"--docs"}, nullptr, "N", kEval, "documents of each file at most", [](P& p) -> auto& { return p.eval.n_documents; }, 1));
  t.push_back(custom(g, {"-s", "--seed"}, nullptr, "N", kEval,
                     "of options' order, self-study and intervals: the same seed gives the same answers",
                     set_eval_seed, [](const P&) { return std::string("1"); }));
  t.push_back(text(
      g, {"--json"}, nullptr, "FILE", kEval,
      "write the result there too, and one line per question to FILE.items.jsonl (FILE.items.jsonl.part until the "
      "end)",
      [](P& p) -> auto& { return p.eval.json_path; }));
  t.push_back(text(g, {"--html"}, nullptr, "FILE", kEval, "write a page with the table and plots there too, self-contained", [](P& p) -> auto& { return p.eval.html_path; }));

  g = "make-recall";
  t.push_back(list(g, {"--text"}, "FILE", kMakeRecall, "text that the facts are put into; may be given more than once", [](P& p) -> auto& { return p.recall.text_files; }));
  t.push_back(custom(g, {"--tokens"}, nullptr, "LIST", kMakeRecall, "lengths of documents in tokens; several lengths make one file each, NAME-LENGTH.jsonl", set_recall_tokens,
                     [](const P& p) { return fmt::format("{}", fmt::join(p.recall.n_tokens, ",")); }));
  t.push_back(number(g, {"--docs"}, nullptr, "N", kMakeRecall, "documents of each length", [](P& p) -> auto& { return p.recall.n_documents; }, 1, 10000));
  t.push_back(number(g, {"--facts"}, nullptr, "N", kMakeRecall, "facts in a document, a question each", [](P& p) -> auto& { return p.recall.n_facts; }, 1, 10000));
  t.push_back(list(g, {"--kinds"}, "LIST", kMakeRecall, "kinds of questions (docs/make-recall.md); default: all",
                   [](P& p) -> auto& { return p.recall.kinds; }));
  t.push_back(number(g, {"-s", "--seed"}, nullptr, "N", kMakeRecall, "the same seed gives the same file", [](P& p) -> auto& { return p.recall.seed; }, 0));
  t.push_back(text(g, {"--patterns"}, nullptr, "FILE", kMakeRecall, "sentences, questions and values of your own (docs/make-recall.md)", [](P& p) -> auto& { return p.recall.patterns_path; }));
  t.push_back(on_off(g, {"--instruction"}, {"--no-instruction"}, nullptr, kMakeRecall, "put a standing instruction (end every reply with a word) at the start of each document",
                     [](P& p) -> auto& { return p.recall.has_instruction; }));

  g = "profile";
  t.push_back(list(g, {"--recall"}, "FILE", kProfile, "documents as compact-eval reads them, JSON lines; may be given more than once; default: files beside the model",
                   [](P& p) -> auto& { return p.profile.recall_files; }));
  t.push_back(list(g, {"--text"}, "FILE", kProfile, "plain text, cut into pieces; may be given more than once", [](P& p) -> auto& { return p.profile.text_files; }));
  t.push_back(number(g, {"--tokens"}, nullptr, "N", kProfile, "tokens of a piece of text", [](P& p) -> auto& { return p.profile.n_tokens; }, 32, 1 << 24));
  t.push_back(number(g, {"--docs"}, nullptr, "N", kProfile, "documents of each recall file, and pieces of all texts together, at most",
                     [](P& p) -> auto& { return p.profile.n_documents; }, 1, 10000));
  t.push_back(text(g, {"--method"}, nullptr, "NAME", kProfile, "what the heads are asked with: a method[:option=value...] whose budget is global or sensitivity",
                   [](P& p) -> auto& { return p.profile.method; }));
  t.push_back(number(g, {"--ratio"}, nullptr, "F", kProfile, "ratio that the shares are measured at", [](P& p) -> auto& { return p.profile.ratio; }, 1, 1e6));

  g = "bench";
  t.push_back(list(g, {"-m", "--model"}, "FILES", kBench, "model files (GGUF)", [](P& p) -> auto& { return p.bench.model_paths; }));
  t.push_back(number_list(g, {"-p", "--n-prompt"}, "LIST", "prompt tokens; lists like 128,512 and ranges like 128-1024*2; 0: no such test", "512", &BenchParams::n_prompt, 0));
  t.push_back(number_list(g, {"-n", "--n-gen"}, "LIST", "tokens to generate; 0: no such test", "128", &BenchParams::n_gen, 0));
  t.push_back(custom(g, {"-pg"}, nullptr, "PP,TG", kBench, "a prompt of PP tokens and an answer of TG, timed together", add_prompt_gen, {}, true));
  t.push_back(number_list(g, {"-d", "--n-depth"}, "LIST", "tokens that the cache holds before the test", "0", &BenchParams::n_depth, 0));
  t.push_back(number_list(g, {"-npl"}, "LIST", "conversations that generate at once, each with a cache of its own; their tokens are counted together", "1", &BenchParams::n_parallel, 1));
  t.push_back(number_list(g, {"-b", "--batch-size"}, "LIST", "tokens of one step at most", "2048", &BenchParams::n_batch, 1));
  t.push_back(number_list(g, {"-ub", "--ubatch-size"}, "LIST", "tokens of one forward pass at most", "512", &BenchParams::n_ubatch, 1));
  t.push_back(number_list(g, {"-t", "--threads"}, "LIST", "threads", "one a core", &BenchParams::n_threads, 1));
  t.push_back(type_list(g, {"-ctk", "--cache-type-k"}, "encoding of keys in the cache", &BenchParams::types_k));
  t.push_back(type_list(g, {"-ctv", "--cache-type-v"}, "encoding of values in the cache", &BenchParams::types_v));
  t.push_back(number(g, {"-r", "--repetitions"}, nullptr, "N", kBench, "runs of each test", [](P& p) -> auto& { return p.bench.n_repeats; }, 1, 100000));
  t.push_back(custom(g, {"-o", "--output"}, nullptr, "FORMAT", kBench, "md, csv, json, jsonl or sql",
                     bench_format(&BenchParams::format, false), [](const P& p) { return p.bench.format; }));
  t.push_back(custom(
      g, {"-oe", "--output-err"}, nullptr, "FORMAT", kBench, "what stderr gets as well: a format of -o, or none",
      bench_format(&BenchParams::error_format, true), [](const P& p) { return p.bench.error_format; }));
  t.push_back(number(
      g, {"--delay"}, nullptr, "N", kBench, "seconds to wait between tests",
      [](P & p) -> auto& { return p.bench.delay_seconds; }, 0, 86400));
  t.push_back(on_off(
      g, {"--progress"}, {}, nullptr, kBench,
      "print what is being done as lines on stderr; without it one line of a terminal says so",
      [](P & p) -> auto& { return p.bench.shows_progress; }));
  t.push_back(on_off(
      g, {"--list-devices"}, {}, nullptr, kBench, "list accelerators, of which none is used, and end",
      [](P & p) -> auto& { return p.bench.lists_devices; }));
  t.push_back(on_off(g, {"--warmup"}, {"--no-warmup"}, nullptr, kBench, "run each test once before it is timed", [](P& p) -> auto& { return p.bench.warms_up; }));
  t.push_back(on_off(
      g, {"--memory-test"}, {"--no-memory-test"}, nullptr, kBench,
      "measure how fast memory can be read and the processor multiplies, to compare with (about a second)",
      [](P & p) -> auto& { return p.bench.measures_machine; }));
  t.push_back(text(
      g, {"--compact-method"}, nullptr, "NAME", kBench,
      "compact what -d filled and time each test before and after: name[:option=value...]",
      [](P& p) -> auto& { return p.bench.compact_method; }));
  t.push_back(number(
      g, {"--compact-ratio"}, nullptr, "F", kBench,
      "how many times fewer real bytes the whole cache then has, as compact-eval's --ratios: no less, or an error",
      [](P& p) -> auto& { return p.bench.compact_ratio; }, 1, 1e6));

  g = "tools";
  t.push_back(on_off(g, {"--ids"}, {}, nullptr, kTokenize, "print the ids as one bracketed list", [](P& p) -> auto& { return p.tool.prints_ids_only; }));
  t.push_back(on_off(g, {"--bos"}, {"--no-bos"}, nullptr, kTokenize, "begin with the vocabulary's BOS token, if it wants one", [](P& p) -> auto& { return p.tool.adds_bos; }));
  t.push_back(on_off(g, {"--parse-special"}, {"--no-parse-special"}, nullptr, kTokenize, "control tokens written out in the text become their ids",
                     [](P& p) -> auto& { return p.tool.parses_special; }));
  t.push_back(on_off(g, {"--show-count"}, {}, nullptr, kTokenize, "print the number of tokens too", [](P& p) -> auto& { return p.tool.shows_count; }));
  t.push_back(on_off(g, {"--stdin"}, {}, nullptr, kTokenize, "read the text from the standard input", [](P& p) -> auto& { return p.tool.reads_stdin; }));
  t.push_back(on_off(g, {"--json"}, {}, nullptr, kInspect, "print JSON", [](P& p) -> auto& { return p.tool.prints_json; }));
  t.push_back(custom(g, {"--ids"}, nullptr, "LIST", kLogits, "token ids, comma separated", set_token_ids, {}, true));
  t.push_back(text(g, {"-o", "--output"}, nullptr, "FILE", kLogits | kMakeModel | kMakeRecall | kProfile, "file to write", [](P& p) -> auto& { return p.tool.output_path; }));
  t.push_back(text(g, {"--arch"}, nullptr, "NAME", kMakeModel, "architecture of the file: llama, qwen2, qwen3", [](P& p) -> auto& { return p.tool.arch; }));
  t.push_back(text(g, {"--shape"}, nullptr, "NAME", kMakeModel, "size of the model that it has the shape of: 0.5B, 0.6B, 1B, ...", [](P& p) -> auto& { return p.tool.shape; }));
  t.push_back(custom(g, {"--type"}, nullptr, "TYPE", kMakeModel, "format of the matrices: f16, q8_0, q4_0, q4_K, ...",
                     [](P& p, const std::string& value) -> Result<void> {
                       SH_ASSIGN(p.tool.dtype, dtype_from_name(value));
                       return {};
                     },
                     [](const P& p) { return std::string(tensor_format(p.tool.dtype).name); }));
  t.push_back(on_off(g, {"--display-prompt"}, {"--no-display-prompt"}, nullptr, kComplete, "print the prompt before the answer",
                     [](P& p) -> auto& { return p.displays_prompt; }));

  const char* cpu_only = "models run on the CPU";
  constexpr uint32_t kAllButBench = kAllCommands & ~kBench;
  t.push_back(ignored({"-ngl", "--gpu-layers", "--n-gpu-layers"}, "LLAMA_ARG_N_GPU_LAYERS", "N", cpu_only, {},
                      kAllButBench));
  t.push_back(ignored({"-sm", "--split-mode"}, "LLAMA_ARG_SPLIT_MODE", "MODE", cpu_only, {}, kAllButBench));
  t.push_back(ignored({"-ts", "--tensor-split"}, "LLAMA_ARG_TENSOR_SPLIT", "LIST", cpu_only, {}, kAllButBench));
  t.push_back(ignored({"-mg", "--main-gpu"}, "LLAMA_ARG_MAIN_GPU", "N", cpu_only, {}, kAllButBench));
  t.push_back(ignored({"-dev", "--device"}, "LLAMA_ARG_DEVICE", "LIST", cpu_only, {}, kAllButBench));
  t.push_back(ignored({"-ot", "--override-tensor"}, "LLAMA_ARG_OVERRIDE_TENSOR", "LIST", cpu_only));
  t.push_back(ignored({"-cmoe", "--cpu-moe"}, "LLAMA_ARG_CPU_MOE", nullptr, cpu_only));
  t.push_back(ignored({"-ncmoe", "--n-cpu-moe"}, "LLAMA_ARG_N_CPU_MOE", "N", cpu_only, {}, kAllButBench));
  t.push_back(
      ignored({"-nkvo", "--no-kv-offload"}, "LLAMA_ARG_NO_KV_OFFLOAD", nullptr, cpu_only, {}, kAllButBench));
  t.push_back(ignored({"-fit", "--fit"}, "LLAMA_ARG_FIT", "on|off", cpu_only));
  t.push_back(ignored({"-fitt", "--fit-target"}, "LLAMA_ARG_FIT_TARGET", "MIB", cpu_only, {}, kAllButBench));
  t.push_back(ignored({"-fitc", "--fit-ctx"}, "LLAMA_ARG_FIT_CTX", "N", cpu_only, {}, kAllButBench));
  t.push_back(ignored({"--no-host"}, "LLAMA_ARG_NO_HOST", nullptr, cpu_only, {}, kAllButBench));
  t.push_back(ignored({"--mlock"}, "LLAMA_ARG_MLOCK", nullptr, "weights are mapped from the file"));
  t.push_back(ignored({"--mmap"}, "LLAMA_ARG_MMAP", nullptr, "weights are mapped from the file", {"--no-mmap"},
                      kAllButBench));
  t.push_back(ignored({"-lm", "--load-mode"}, "LLAMA_ARG_LOAD_MODE", "MODE", "weights are mapped from the file",
                      {}, kAllButBench));
  t.push_back(ignored({"-dio", "--direct-io"}, "LLAMA_ARG_DIO", nullptr, "weights are mapped from the file",
                      {"-ndio", "--no-direct-io"}, kAllButBench));
  t.push_back(ignored({"--check-tensors"}, nullptr, nullptr, "tensor shapes and ranges are always checked"));
  t.push_back(ignored({"--numa"}, "LLAMA_ARG_NUMA", "MODE", "threads are not bound to NUMA nodes"));
  t.push_back(ignored({"-C", "--cpu-mask"}, nullptr, "MASK", "threads are not bound to cores", {}, kAllButBench));
  t.push_back(ignored({"-Cr", "--cpu-range"}, nullptr, "RANGE", "threads are not bound to cores"));
  t.push_back(ignored({"--cpu-strict"}, nullptr, "0|1", "threads are not bound to cores", {}, kAllButBench));
  t.push_back(ignored({"--prio"}, nullptr, "N", "threads run at the priority of the process", {}, kAllButBench));
  t.push_back(ignored({"--poll"}, nullptr, "N", "workers choose between spinning and sleeping on their own", {},
                      kAllButBench));
  t.push_back(ignored({"-tb", "--threads-batch"}, "LLAMA_ARG_THREADS_BATCH", "N", "prompts and answers are computed by the same threads (-t)"));
  t.push_back(ignored({"--log-disable"}, nullptr, nullptr, "the log goes to stderr; -lv 0 silences it", {}, kTokenize));
  t.push_back(ignored({"--jinja"}, "LLAMA_ARG_JINJA", nullptr, "chat templates are always Jinja", {"--no-jinja"}));
  t.push_back(ignored({"-cb", "--cont-batching"}, "LLAMA_ARG_CONT_BATCHING", nullptr, "batching is always continuous", {"-nocb", "--no-cont-batching"}));
  t.push_back(ignored({"-sps", "--slot-prompt-similarity"}, nullptr, "F", "the slot with the longest common prefix is taken"));
  t.push_back(ignored({"--warmup"}, "LLAMA_ARG_WARMUP", nullptr, "there is no warm-up run", {"--no-warmup"}, kAllCommands & ~kBench));
  t.push_back(ignored({"-no-cnv", "--no-conversation"}, nullptr, nullptr, "complete always works on raw text; chat uses the template", {}, kComplete));
  t.push_back(ignored({"--no-ui", "--no-webui"}, "LLAMA_ARG_NO_WEBUI", nullptr, "there is no web page yet"));
  t.push_back(ignored({"--log-colors"}, "LLAMA_ARG_LOG_COLORS", "on|off|auto", "log lines have no colours"));
  t.push_back(ignored({"--log-prefix"}, "LLAMA_ARG_LOG_PREFIX", nullptr, "log lines always have a prefix", {"--no-log-prefix"}));
  t.push_back(ignored({"--log-timestamps"}, "LLAMA_ARG_LOG_TIMESTAMPS", nullptr, "log lines always have a time", {"--no-log-timestamps"}));
  t.push_back(
      ignored({"--offline"}, "LLAMA_ARG_OFFLINE", nullptr, "nothing is ever downloaded", {}, kRuns | kBench));
  t.push_back(ignored({"-hft", "--hf-token"}, nullptr, "TOKEN", "nothing is ever downloaded", {}, kRuns | kBench));
  t.push_back(ignored({"--swa-full"}, "LLAMA_ARG_SWA_FULL", nullptr, "rows that no query can see are dropped"));

  // llama-bench gives values, and lists of them, to what are switches elsewhere.
  const char* mapped = "weights are mapped from the file";
  const char* unbound = "threads are not bound to cores";
  t.push_back(fixed_in_bench({"-fa", "--flash-attn"}, "on|off|auto|1|0", {"on", "auto", "1"},
                             "there is one attention kernel, and it is a flash-style one"));
  t.push_back(fixed_in_bench({"-ngl", "--n-gpu-layers"}, "LIST", {"0", "-1"}, cpu_only));
  t.push_back(fixed_in_bench({"-ncmoe", "--n-cpu-moe"}, "LIST", {}, cpu_only));
  t.push_back(fixed_in_bench({"-sm", "--split-mode"}, "none|layer|row|tensor", {"none", "layer"}, cpu_only));
  t.push_back(fixed_in_bench({"-mg", "--main-gpu"}, "LIST", {"0"}, cpu_only));
  t.push_back(fixed_in_bench({"-ts", "--tensor-split"}, "LIST", {"0"}, cpu_only));
  t.push_back(fixed_in_bench({"-dev", "--device"}, "LIST", {"auto", "none"}, cpu_only));
  t.push_back(fixed_in_bench({"-nkvo", "--no-kv-offload"}, "0|1", {}, cpu_only));
  t.push_back(fixed_in_bench({"-nopo", "--no-op-offload"}, "0|1", {}, cpu_only));
  t.push_back(fixed_in_bench({"--no-host"}, "0|1", {}, cpu_only));
  t.push_back(fixed_in_bench({"-fitt", "--fit-target"}, "LIST", {"off"}, cpu_only));
  t.push_back(fixed_in_bench({"-fitc", "--fit-ctx"}, "LIST", {}, cpu_only));
  t.push_back(
      fixed_in_bench({"-lm", "--load-mode"}, "auto|none|mmap|mlock|mmap+mlock|dio", {"auto", "mmap"}, mapped));
  t.push_back(fixed_in_bench({"-lzm", "--lazy-mode"}, "on|auto|off", {"auto"}, mapped));
  t.push_back(fixed_in_bench({"-mmp", "--mmap"}, "0|1", {"1"}, mapped));
  t.push_back(fixed_in_bench({"-dio", "--direct-io"}, "0|1", {"0"}, mapped));
  t.push_back(fixed_in_bench({"-embd", "--embeddings"}, "0|1", {"0"}, "logits are computed, not embeddings"));
  t.push_back(fixed_in_bench({"-C", "--cpu-mask"}, "LIST", {"0x0"}, unbound));
  t.push_back(fixed_in_bench({"--cpu-strict"}, "0|1", {"0"}, unbound));
  t.push_back(fixed_in_bench({"--poll"}, "LIST", {"50"}, "workers spin for a while, then sleep"));
  t.push_back(fixed_in_bench({"--prio"}, "N", {"0"}, "threads run at the priority of the process"));

  g = "refused";
  t.push_back(custom(g, {"-hf", "-hfr", "--hf-repo"}, nullptr, "USER/MODEL", kRuns | kBench,
                     "nothing is ever downloaded; name a file with -m", refuse_download, {}, true));
  t.push_back(custom(g, {"-hff", "--hf-file"}, nullptr, "FILE", kRuns | kBench,
                     "nothing is ever downloaded; name a file with -m", refuse_download, {}, true));
  return t;
}

}  // namespace

std::span<const Flag> flag_table() {
  static const std::vector<Flag> table = make_table();
  return table;
}

}  // namespace sh::engine
