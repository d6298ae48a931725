// SPDX-License-Identifier: MIT
#include <fmt/format.h>

#include <vector>

#include "base/build_info.h"
#include "tools/commands.h"

namespace sh::tools {
namespace {

struct Subcommand {
  const char* name;
  const char* summary;
  int (*run)(Arguments);
};
int help_command(Arguments arguments);

constexpr Subcommand kCommands[] = {
    {"serve", "HTTP server: OpenAI and llama.cpp dialects, compaction on request", serve_command},
    {"complete", "continue a text", complete_command},
    {"chat", "talk in the terminal; the conversation may outlive its cache", chat_command},
    {"bench", "measure speed: prompts, answers, at depth, before and after a compaction", bench_command},
    {"tokenize", "show the tokens of a text", tokenize_command},
    {"inspect", "show what a model file holds", inspect_command},
    {"logits", "write the logits of a token sequence to a .npy file", logits_command},
    {"make-model", "write a model file of a known shape with random weights, to measure speed with", make_model_command},
    {"make-recall", "put facts and questions about them into your own text, for compact-eval", make_recall_command},
    {"compact-eval", "measure what a compacted cache still knows", compact_eval_command},
    {"profile", "measure how a model's heads share a compacted cache, for budget=profile", profile_command},
    {"help", "this text; `help --markdown` prints docs/flags.md", help_command},
};

void print_usage(std::FILE* out) {
  fmt::print(out, "shorthand {}: an LLM runtime that keeps long conversations in shorthand\n\nusage: shorthand COMMAND [flags]\n\n", build_info().version);
  for (const Subcommand& command : kCommands) fmt::print(out, "  {:<14} {}\n", command.name, command.summary);
  fmt::print(out, "\n`shorthand COMMAND --help` lists the flags of a command.\n");
}

int help_command(Arguments arguments) {
  if (!arguments.empty() && arguments.front() == "--markdown")
    fmt::print("{}", engine::flags_markdown());
  else
    print_usage(stdout);
  return 0;
}

int run_program(const std::vector<std::string>& arguments) {
  if (arguments.empty()) {
    print_usage(stderr);
    return 1;
  }
  const std::string& name = arguments[0];
  if (name == "--help" || name == "-h") return help_command({});
  if (name == "--version") {
    fmt::print("{}\n", version_text());
    return 0;
  }
  for (const Subcommand& command : kCommands)
    if (name == command.name) return command.run(Arguments(arguments).subspan(1));
  fmt::print(stderr, "shorthand: unknown command '{}'\n\n", name);
  print_usage(stderr);
  return 1;
}

}  // namespace
}  // namespace sh::tools

int main(int argc, char** argv) { return sh::tools::run_program(std::vector<std::string>(argv + 1, argv + argc)); }
