// SPDX-License-Identifier: MIT
// shorthand tokenize: the ids and pieces of a text. Needs the vocabulary only, no weights.
#include <fmt/format.h>

#include <cstdio>

#include "engine/vocabulary.h"
#include "tools/commands.h"

namespace sh::tools {

namespace {

std::string read_standard_input() {
  std::string text;
  char buffer[1 << 16];
  for (size_t n = 0; (n = std::fread(buffer, 1, sizeof buffer, stdin)) > 0;) text.append(buffer, n);
  return text;
}

Result<void> run(const engine::ProgramParams& params) {
  if (params.engine.model_path.empty())
    return Error{ErrorKind::invalid_argument, "no model given: name a GGUF file with -m FILE"};
  SH_ASSIGN(const gguf::File file, gguf::File::open(params.engine.model_path));
  SH_ASSIGN(auto vocabulary, engine::read_vocabulary(file));
  SH_ASSIGN(const auto tokenizer, tokenizer::Tokenizer::create(std::move(vocabulary)));
  const std::string text = params.tool.reads_stdin ? read_standard_input() : params.prompt;
  const std::vector<int32_t> ids =
      tokenizer->encode(text, {.add_special = params.tool.adds_bos, .parse_special = params.tool.parses_special});
  if (params.tool.prints_ids_only)
    fmt::print("[{}]\n", fmt::join(ids, ", "));
  else
    for (const int32_t id : ids) fmt::print("{:6} -> '{}'\n", id, tokenizer->piece(id, true));
  if (params.tool.shows_count) fmt::print("Total number of tokens: {}\n", ids.size());
  return {};
}

}  // namespace

int tokenize_command(Arguments arguments) {
  engine::ProgramParams params;
  if (const std::optional<int> status = read_params(engine::kTokenize, arguments, params)) return *status;
  return exit_status(run(params));
}

}  // namespace sh::tools
