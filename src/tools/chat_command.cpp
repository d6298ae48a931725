// SPDX-License-Identifier: MIT
// shorthand chat: a conversation in the terminal, or with questions from a pipe, one a line.
#include <fmt/format.h>
#include <unistd.h>

#include <cerrno>
#include <charconv>
#include <cstdio>
#include <optional>

#include "base/log.h"
#include "base/mapped_file.h"
#include "tools/commands.h"
#include "tools/terminal.h"

namespace sh::tools {

namespace {

constexpr const char* kHelp =
    "  /exit                     end\n"
    "  /regen                    answer the last question again\n"
    "  /clear                    forget the conversation, keep the system message\n"
    "  /read FILE                put the text of a file before the next message\n"
    "  /compact [RATIO] [METHOD] make the cache smaller now (default: --compact-ratio, --compact-method)\n"
    "  /status                   what the conversation and its cache hold\n"
    "Ctrl-C stops an answer; at the prompt, or twice, it ends the program.\n";

/// A line of standard input without its newline; nothing at the end, or when Ctrl-C interrupted the wait.
std::optional<std::string> read_line() {
  std::string line;
  char c = 0;
  for (;;) {
    const ssize_t n =
        ::read(STDIN_FILENO, &c, 1);  // unbuffered: an interrupted read must not leave half a line in a stream
    if (n == 1 && c != '\n') {
      line += c;
      continue;
    }
    if (n == 1) break;
    if (n == 0 && !line.empty()) break;
    return std::nullopt;
  }
  if (!line.empty() && line.back() == '\r') line.pop_back();
  return line;
}

class Chat {
 public:
  Chat(engine::Engine& engine, const engine::ProgramParams& params)
      : engine_(engine),
        params_(params),
        conversation_(engine, true),
        format_(engine),
        cancel_(catch_interrupts()) {}

  /// Reads and answers until the input ends. Gives the exit status.
  int run() {
    if (!params_.prompt.empty()) {
      echo(params_.prompt);
      answer(params_.prompt);
      if (params_.chat.is_single_turn) return status_;
    }
    const bool is_terminal = isatty(STDIN_FILENO) == 1;
    for (;;) {
      reset_interrupt();
      if (is_terminal) show_text("\n> ");
      const std::optional<std::string> line = read_line();
      if (!line) {
        if (is_terminal) show_text("\n");
        return cancel_ ? kExitInterrupted : status_;
      }
      if (line->empty()) continue;
      if (!is_terminal) echo(*line);
      if (line->front() == '/') {
        if (!run_slash_command(*line)) return status_;
        continue;
      }
      answer(*line);
      if (params_.chat.is_single_turn) return status_;
    }
  }

 private:
  /// The transcript of a conversation from a pipe shows the questions.
  void echo(const std::string& line) { show_text(fmt::format("\n> {}\n", line)); }
  void complain(const Error& error) { status_ = report_error(error); }

  /// The tokens of the next turn. Raw text without a template.
  Result<std::vector<int32_t>> turn_tokens(const std::string& message) const {
    const bool is_first = conversation_.n_tokens() == 0;
    if (!params_.chat.is_conversation) {
      const std::string text = is_first ? params_.chat.system_prompt + message : message;
      return is_first ? engine::encode_opening(engine_, text) : engine::encode_following(engine_, text);
    }
    if (is_first) {
      SH_ASSIGN(const std::string text, format_.first_turn(params_.chat.system_prompt, message));
      return engine::encode_opening(engine_, text);
    }
    SH_ASSIGN(const std::string text, format_.next_turn(message));
    return engine::encode_following(engine_, text);
  }

  void answer(const std::string& message) {
    const std::string whole = attached_ + message;
    const auto turn = turn_tokens(whole);
    if (!turn.ok()) return complain(turn.error());
    attached_.clear();
    turn_start_ = conversation_.n_tokens();
    turn_ = *turn;
    generate();
  }

  void generate() {
    engine::GenerateOptions options = generate_options(params_);
    options.stream = n_answers_++;
    ProgressLine progress;
    const auto report =
        engine::generate(engine_, conversation_, turn_, options, terminal_hooks(progress, cancel_));
    progress.clear();
    show_text("\n");
    if (!report.ok()) {
      complain(report.error());
      return take_back();
    }
    for (const engine::CompactionReport& compaction : report->compactions) note(compaction_text(compaction));
    for (const std::string& failure : report->compaction_failures) note("not compacted: " + failure);
    if (report->stop_reason == engine::StopReason::cancelled &&
        report->n_prompt < static_cast<int64_t>(turn_.size()))
      return take_back();
    if (report->stop_reason == engine::StopReason::context_full)
      note("the answer was cut: " + conversation_.end_reason(params_.n_keep));
    show_status(report->n_answer_forwards > 0
                    ? static_cast<double>(report->n_answer_forwards) / report->answer_seconds
                    : 0);
  }

  /// Forgets a turn that was not read to its end.
  void take_back() {
    const auto done = conversation_.truncate(turn_start_);
    if (!done.ok()) {
      note("part of the last message stays in the conversation: its beginning has been compacted already");
      turn_.clear();
    }
  }

  static void note(const std::string& text) { fmt::print(stderr, "[{}]\n", text); }

  void show_status(double tokens_per_second) {
    std::string text =
        fmt::format("{} | budget {} rows, {} tokens | compactions {}", usage_text(conversation_.cache().usage()),
                    engine_.n_ctx_slot(), engine_.n_ctx_logical(), conversation_.n_compactions());
    if (tokens_per_second > 0) text += fmt::format(" | {:.1f} tok/s", tokens_per_second);
    note(text);
  }

  /// False to end.
  bool run_slash_command(const std::string& line) {
    const size_t space = line.find(' ');
    const std::string name = line.substr(0, space);
    const std::string rest = space == std::string::npos
                                 ? ""
                                 : line.substr(line.find_first_not_of(' ', space) == std::string::npos
                                                   ? line.size()
                                                   : line.find_first_not_of(' ', space));
    if (name == "/exit" || name == "/quit") return false;
    if (name == "/regen") {
      regenerate();
    } else if (name == "/clear") {
      conversation_.clear();
      turn_.clear();
      attached_.clear();
      note("cleared");
    } else if (name == "/read") {
      attach(rest);
    } else if (name == "/compact") {
      compact(rest);
    } else if (name == "/status") {
      show_status(0);
    } else {
      if (name != "/help") note(fmt::format("unknown command {}", name));
      fmt::print(stderr, "{}", kHelp);
    }
    return true;
  }

  void regenerate() {
    if (turn_.empty()) return note("there is no answer to replace");
    if (const auto done = conversation_.truncate(turn_start_); !done.ok()) return complain(done.error());
    generate();
  }

  void attach(const std::string& path) {
    auto text = read_file(path);
    if (!text.ok()) return complain(text.error());
    attached_ += *text;
    if (!attached_.empty() && attached_.back() != '\n') attached_ += '\n';
    note(fmt::format("{} bytes of {} come before the next message", text->size(), path));
  }

  void compact(const std::string& arguments) {
    auto as_flags_say = conversation_.requested_by_flags(params_.n_keep);
    if (!as_flags_say.ok()) return complain(as_flags_say.error());
    engine::CompactionRequest& request = *as_flags_say;
    const size_t space = arguments.find(' ');
    const std::string ratio = arguments.substr(0, space);
    if (!ratio.empty()) {
      const auto [end, code] = std::from_chars(ratio.data(), ratio.data() + ratio.size(), request.ratio);
      if (code != std::errc() || end != ratio.data() + ratio.size())
        return complain(
            {ErrorKind::invalid_argument, fmt::format("/compact: expected a ratio like 4, got '{}'", ratio)});
      request.target = {};  // a size was asked for
    }
    if (space != std::string::npos) request.method = arguments.substr(arguments.find_first_not_of(' ', space));
    ProgressLine progress;
    const auto report = conversation_.compact(request, &cancel_, terminal_hooks(progress, cancel_).on_compaction);
    progress.clear();
    if (!report.ok()) return complain(report.error());
    note(compaction_text(*report));
    show_status(0);
  }

  engine::Engine& engine_;
  const engine::ProgramParams& params_;
  engine::Conversation conversation_;
  engine::TurnFormat format_;
  const std::atomic<bool>& cancel_;
  std::string attached_;       // by /read, for the next message
  std::vector<int32_t> turn_;  // the last question, for /regen
  int64_t turn_start_ = 0;
  uint64_t n_answers_ = 0;
  int status_ = 0;
};

}  // namespace

int chat_command(Arguments arguments) {
  engine::ProgramParams params;
  if (const std::optional<int> status = read_params(engine::kChat, arguments, params)) return *status;
  // The screen is the conversation's: lines of information only when more than the default was asked for.
  if (log_level() == LogLevel::info) set_log_level(LogLevel::warning);
  auto engine = engine::Engine::open(params.engine);
  if (!engine.ok()) return report_error(engine.error());
  log_opening(**engine, params.n_keep);
  return Chat(**engine, params).run();
}

}  // namespace sh::tools
