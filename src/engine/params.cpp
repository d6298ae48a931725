// SPDX-License-Identifier: MIT
#include "engine/params.h"

#include <fmt/format.h>

#include <algorithm>
#include <map>
#include <set>

#include "base/env.h"

namespace sh::engine {
namespace {

struct CommandName {
  Command command;
  const char* name;
};
constexpr CommandName kCommandNames[] = {{kServe, "serve"}, {kComplete, "complete"}, {kChat, "chat"},
                                         {kBench, "bench"}, {kEval, "compact-eval"}, {kTokenize, "tokenize"},
                                         {kInspect, "inspect"}, {kLogits, "logits"}, {kMakeModel, "make-model"},
                                         {kMakeRecall, "make-recall"}, {kProfile, "profile"}};

/// A spelling of a flag and what it sets.
struct Spelling {
  const Flag* flag;
  bool is_off;
};

std::string with_dashes(std::string_view name) {
  std::string out(name);
  std::replace(out.begin(), out.end(), '_', '-');
  return out;
}

/// Rows of the table by spelling. Commands may give one spelling different meanings (-p is a text, for bench a number of tokens), but
/// no command has two rows for it.
const std::multimap<std::string, Spelling>& spellings() {
  static const std::multimap<std::string, Spelling> all = [] {
    std::multimap<std::string, Spelling> out;
    const auto add = [&](const char* name, const Flag& flag, bool is_off) {
      const auto [begin, end] = out.equal_range(name);
      for (auto it = begin; it != end; ++it) SH_CHECK((it->second.flag->commands & flag.commands) == 0, name);
      out.emplace(name, Spelling{&flag, is_off});
    };
    for (const Flag& flag : flag_table()) {
      for (const char* name : flag.names) add(name, flag, false);
      for (const char* name : flag.off_names) add(name, flag, true);
    }
    return out;
  }();
  return all;
}

/// The row that `command` has for a spelling, else that of any other command, else nothing.
const Spelling* find_spelling(const std::string& name, Command command) {
  const auto [begin, end] = spellings().equal_range(name);
  for (auto it = begin; it != end; ++it)
    if ((it->second.flag->commands & command) != 0) return &it->second;
  return begin == end ? nullptr : &begin->second;
}

/// Edits (insert, delete, replace, swap of neighbours) from one word to the other.
size_t edit_distance(std::string_view a, std::string_view b) {
  std::vector<std::vector<size_t>> d(a.size() + 1, std::vector<size_t>(b.size() + 1));
  for (size_t i = 0; i <= a.size(); ++i) d[i][0] = i;
  for (size_t j = 0; j <= b.size(); ++j) d[0][j] = j;
  for (size_t i = 1; i <= a.size(); ++i)
    for (size_t j = 1; j <= b.size(); ++j) {
      d[i][j] = std::min({d[i - 1][j] + 1, d[i][j - 1] + 1, d[i - 1][j - 1] + (a[i - 1] != b[j - 1])});
      if (i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1]) d[i][j] = std::min(d[i][j], d[i - 2][j - 2] + 1);
    }
  return d[a.size()][b.size()];
}

/// The candidate that is closest to a name; "" when none is close.
std::string nearest(std::string_view name, const std::vector<std::string>& candidates) {
  constexpr size_t kLongestName = 64;  // bounds the work on a hostile argument
  const std::string_view head = name.substr(0, kLongestName);
  std::string best;
  size_t best_distance = std::max<size_t>(2, head.size() / 3) + 1;
  for (const std::string& candidate : candidates) {
    const size_t distance = edit_distance(head, candidate);
    if (distance < best_distance) {
      best_distance = distance;
      best = candidate;
    }
  }
  return best;
}

std::string nearest_hint(std::string_view name, Command command) {
  std::vector<std::string> candidates;
  for (const auto& [spelling, target] : spellings())
    if ((target.flag->commands & command) != 0) candidates.push_back(spelling);
  const std::string best = nearest(name, candidates);
  if (best.empty()) return fmt::format("see 'shorthand {} --help'", name_of(command));
  return fmt::format("did you mean {}? See 'shorthand {} --help'", best, name_of(command));
}

std::string commands_of(const Flag& flag) {
  std::vector<const char*> names;
  for (const CommandName& entry : kCommandNames)
    if (flag.commands & entry.command) names.push_back(entry.name);
  return fmt::format("{}", fmt::join(names, ", "));
}

Error at(std::string_view where, const Error& error) {
  return Error{error.kind, fmt::format("{}: {}", where, error.message)};
}

/// A boolean from the environment; nothing when the text is not one.
std::optional<bool> parse_bool(std::string_view text) {
  for (const char* yes : {"on", "enabled", "true", "1"})
    if (text == yes) return true;
  for (const char* no : {"off", "disabled", "false", "0"})
    if (text == no) return false;
  return std::nullopt;
}

constexpr std::string_view kVariablePrefix = "LLAMA_ARG_";

/// LLAMA_ARG_X → LLAMA_ARG_NO_X: existing at all, it switches X off.
std::string negative_variable(const std::string& variable) {
  if (!variable.starts_with(kVariablePrefix)) return "";
  return std::string(kVariablePrefix) + "NO_" + variable.substr(kVariablePrefix.size());
}

/// A slip of the pen in a variable must not pass for a setting.
void warn_of_unknown_variables(ProgramParams& params) {
  std::vector<std::string> known;  // without the prefix, which would make all of them alike
  for (const Flag& flag : flag_table()) {
    if (flag.env == nullptr || !std::string_view(flag.env).starts_with(kVariablePrefix)) continue;
    known.emplace_back(flag.env + kVariablePrefix.size());
    if (flag.kind == Flag::Kind::on_off) known.push_back("NO_" + known.back());
  }
  for (const std::string& variable : env::names_with_prefix(kVariablePrefix)) {
    const std::string name = variable.substr(kVariablePrefix.size());
    if (std::find(known.begin(), known.end(), name) != known.end()) continue;
    const std::string best = nearest(name, known);
    params.warnings.push_back(
        fmt::format("{} is set, but no setting is called so{}", variable.substr(0, 100),
                    best.empty() ? "" : fmt::format("; did you mean {}{}?", kVariablePrefix, best)));
  }
}

Result<void> set_from_env(const Flag& flag, ProgramParams& params, std::map<const Flag*, std::string>& sources) {
  std::string variable = flag.env;
  std::optional<std::string> value = env::get(variable);
  if (flag.kind == Flag::Kind::on_off && !negative_variable(variable).empty() && env::get(negative_variable(variable))) {
    variable = negative_variable(variable);
    value = "off";
  }
  if (!value) return {};
  std::string text = *value;
  if (flag.kind != Flag::Kind::value) {
    const std::optional<bool> is_on = parse_bool(text);
    if (!is_on) return Error{ErrorKind::invalid_argument, fmt::format("{}: expected on or off, got '{}'", variable, text)};
    if (flag.kind == Flag::Kind::on && !*is_on) return {};
    text = *is_on ? "true" : "false";
  }
  const Result<void> set = flag.set(params, text);
  if (!set.ok()) return at(variable, set.error());
  sources[&flag] = variable;
  if (flag.no_effect != nullptr) params.notes.push_back(fmt::format("{} has no effect: {}", variable, flag.no_effect));
  return {};
}

std::string process_escapes(std::string_view text) {
  const auto digit = [](char c) { return c >= '0' && c <= '9' ? c - '0' : c >= 'a' && c <= 'f' ? c - 'a' + 10 : c >= 'A' && c <= 'F' ? c - 'A' + 10 : -1; };
  std::string out;
  for (size_t i = 0; i < text.size(); ++i) {
    if (text[i] != '\\' || i + 1 == text.size()) {
      out += text[i];
      continue;
    }
    const char c = text[++i];
    switch (c) {
      case 'n': out += '\n'; break;
      case 'r': out += '\r'; break;
      case 't': out += '\t'; break;
      case '\'': out += '\''; break;
      case '"': out += '"'; break;
      case '\\': out += '\\'; break;
      case 'x':
        if (i + 2 < text.size() && digit(text[i + 1]) >= 0 && digit(text[i + 2]) >= 0) {
          out += static_cast<char>(digit(text[i + 1]) * 16 + digit(text[i + 2]));
          i += 2;
          break;
        }
        [[fallthrough]];
      default:
        out += '\\';
        out += c;
    }
  }
  return out;
}

/// Flags of automatic compaction do nothing while it is off; chat's /compact goes by most of them, POST /compact
/// by two.
void note_idle_flags(Command command, ProgramParams& params, const std::map<const Flag*, std::string>& sources) {
  std::vector<std::string> idle = {"--compact-rebase", "--compact-delay"};
  if (command != kChat)
    idle.insert(idle.end(),
                {"--compact-method", "--compact-ratio", "--compact-keep", "--compact-pin", "--compact-max-kl",
                 "--compact-target-kl", "--compact-target-head-error", "--compact-options"});
  if (command == kComplete) idle.push_back("--keep");
  if (command != kChat && !params.server.has_compact)
    idle.insert(idle.end(), {"--compact-capture", "--compact-profile"});
  for (const std::string& name : idle)
    if (const auto source = sources.find(find_spelling(name, command)->flag); source != sources.end())
      params.warnings.push_back(
          fmt::format("{} has no effect: automatic compaction is off (--compact-threshold)", source->second));
}

/// Settings that depend on several flags.
void settle(Command command, ProgramParams& params, const std::map<const Flag*, std::string>& sources) {
  const auto is_given = [&](const char* name) { return sources.count(find_spelling(name, command)->flag) > 0; };
  EngineOptions& engine = params.engine;
  const bool is_automatic = !is_given("--parallel") || engine.n_parallel < 0;
  if (is_automatic) engine.n_parallel = command == kServe ? 4 : 1;
  if (!is_given("--kv-unified")) engine.is_kv_unified = is_automatic;
  engine.n_threads = std::max(engine.n_threads, 0);
  engine.n_ubatch = std::min(engine.n_ubatch, engine.n_batch);
  params.server.n_threads = std::max(params.server.n_threads, 0);
  params.server.sse_ping_seconds = std::max(params.server.sse_ping_seconds, 0);
  if (params.processes_escapes) params.prompt = process_escapes(params.prompt);
  if (!engine.compact_threshold && (command & (kServe | kComplete | kChat)) != 0)
    note_idle_flags(command, params, sources);
  if (command == kBench && params.bench.compact_method.empty() && is_given("--compact-ratio"))
    params.warnings.push_back("--compact-ratio has no effect: nothing is compacted without --compact-method");
}

}  // namespace

std::string_view name_of(Command command) {
  for (const CommandName& entry : kCommandNames)
    if (entry.command == command) return entry.name;
  SH_CHECK(false, "not a single command");
}

Result<ProgramParams> parse_params(Command command, std::span<const std::string> args) {
  ProgramParams params;
  params.engine.n_parallel = -1;
  std::map<const Flag*, std::string> sources;  // what set a flag: the variable, or the spelling on the command line
  for (const Flag& flag : flag_table())
    if (flag.env != nullptr && (flag.commands & command) != 0) SH_RETURN_IF_ERROR(set_from_env(flag, params, sources));

  warn_of_unknown_variables(params);

  std::set<const Flag*> on_command_line;
  for (size_t i = 0; i < args.size(); ++i) {
    const std::string& given = args[i];
    const std::string name = given.compare(0, 1, "-") == 0 ? with_dashes(given) : given;
    const Spelling* found = find_spelling(name, command);
    if (found == nullptr)
      return Error{ErrorKind::invalid_argument, fmt::format("unknown argument '{}': {}", given, nearest_hint(name, command))};
    const Flag& flag = *found->flag;
    if ((flag.commands & command) == 0)
      return Error{ErrorKind::invalid_argument, fmt::format("'{}' is not an argument of 'shorthand {}' (it is one of: {})", given, name_of(command), commands_of(flag))};
    std::string value = found->is_off ? "false" : "true";
    if (flag.kind == Flag::Kind::value) {
      if (i + 1 == args.size()) return Error{ErrorKind::invalid_argument, fmt::format("{}: expected a value ({}), got nothing", given, flag.value_name)};
      value = args[++i];
    }
    const bool is_repeated = !on_command_line.insert(&flag).second;
    if (is_repeated && !flag.adds_up) params.warnings.push_back(fmt::format("{} is given more than once; the last one counts", given));
    if (const auto source = sources.find(&flag); source != sources.end() && !is_repeated)
      params.warnings.push_back(fmt::format("{} is set, but the command line's {} counts", source->second, given));
    const bool replaces = !flag.adds_up || (!is_repeated && sources.count(&flag) > 0);
    if (flag.clear && replaces) flag.clear(params);
    const Result<void> set = flag.set(params, value);
    if (!set.ok()) return at(given, set.error());
    if (flag.no_effect != nullptr) params.notes.push_back(fmt::format("{} has no effect: {}", given, flag.no_effect));
    sources[&flag] = given;
  }
  settle(command, params, sources);
  return params;
}

Result<ProgramParams> parse_params(Command command, int argc, char** argv, int first) {
  std::vector<std::string> args(argv + std::min(first, argc), argv + argc);
  return parse_params(command, args);
}

void apply_log_settings(const ProgramParams& params) {
  set_log_level(params.log_level);
  for (const std::string& line : params.warnings) log_warning("{}", line);
  for (const std::string& line : params.notes) log_info("{}", line);
}

namespace {

std::string left_column(const Flag& flag) {
  std::vector<const char*> names = flag.names;
  names.insert(names.end(), flag.off_names.begin(), flag.off_names.end());
  return fmt::format("{}{}{}", fmt::join(names, ", "), flag.value_name == nullptr ? "" : " ",
                     flag.value_name == nullptr ? "" : flag.value_name);
}

std::string default_of(const Flag& flag) { return flag.show ? flag.show(ProgramParams{}) : ""; }

}  // namespace

std::string help_text(Command command) {
  constexpr size_t kColumn = 40;
  std::string out = fmt::format("usage: shorthand {} [arguments]\n", name_of(command));
  std::string_view group;
  for (const Flag& flag : flag_table()) {
    if ((flag.commands & command) == 0) continue;
    if (group != flag.group) {
      group = flag.group;
      out += fmt::format("\n{}:\n", group);
    }
    std::string left = "  " + left_column(flag);
    left += left.size() + 2 > kColumn ? "\n" + std::string(kColumn, ' ') : std::string(kColumn - left.size(), ' ');
    out += left + flag.help;
    if (const std::string text = default_of(flag); !text.empty()) out += fmt::format(" [{}]", text);
    if (flag.env != nullptr) out += fmt::format(" (env {})", flag.env);
    out += '\n';
  }
  return out;
}

std::string flags_markdown() {
  std::string out =
      "# Flags\n\nGenerated by `shorthand help --markdown` from the table in `src/engine/params_table.cpp`; a "
      "test compares them.\n\n"
      "An underscore in a flag equals a dash. A value on the command line counts before the environment variable, "
      "with a\n"
      "warning when both are given. `LLAMA_ARG_NO_X`, set to anything, switches off the flag of `LLAMA_ARG_X` if "
      "that has a `--no-` form.\n"
      "Variables of that prefix that no flag has are warned of.\n";
  std::string_view group;
  for (const Flag& flag : flag_table()) {
    if (group != flag.group) {
      group = flag.group;
      out += fmt::format("\n## {}\n\n| flag | value | default | variable | commands | meaning |\n|---|---|---|---|---|---|\n", group);
    }
    std::vector<const char*> names = flag.names;
    names.insert(names.end(), flag.off_names.begin(), flag.off_names.end());
    std::string value = flag.value_name == nullptr ? "" : flag.value_name;
    for (size_t i = 0; (i = value.find('|', i)) != std::string::npos; i += 2) value.replace(i, 1, "\\|");
    out += fmt::format("| `{}` | {} | {} | {} | {} | {} |\n", fmt::join(names, "` `"), value, default_of(flag), flag.env == nullptr ? "" : flag.env,
                       flag.commands == kAllCommands ? "all" : commands_of(flag), flag.help);
  }
  return out;
}

}  // namespace sh::engine
