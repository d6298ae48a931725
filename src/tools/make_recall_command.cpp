// SPDX-License-Identifier: MIT
// shorthand make-recall: documents with facts from the user's own text, and the questions about them.
#include <fmt/format.h>

#include <algorithm>
#include <cstdio>
#include <filesystem>
#include <map>

#include "base/mapped_file.h"
#include "base/utf8.h"
#include "engine/vocabulary.h"
#include "tools/check_outputs.h"
#include "tools/commands.h"
#include "tools/recall_maker.h"

namespace sh::tools {

namespace {

Result<std::string> read_text(const std::string& path) {
  SH_ASSIGN(std::string text, read_file(path));
  for (std::string_view rest = text; !rest.empty();) {
    const Utf8Char c = decode_utf8(rest);
    if (!c.is_valid || c.code_point == 0)
      return Error{
          ErrorKind::invalid_argument,
          fmt::format("{}: not UTF-8 text: byte {} of {} is 0x{:02X}{}; convert the file first, for example "
                      "with iconv -t UTF-8",
                      path, text.size() - rest.size(), text.size(), static_cast<unsigned char>(rest[0]),
                      c.is_valid ? ", which no text has" : "")};
    rest.remove_prefix(static_cast<size_t>(c.n_bytes));
  }
  if (std::all_of(text.begin(), text.end(), is_space))
    return Error{ErrorKind::invalid_argument,
                 fmt::format("{}: {}", path,
                             text.empty() ? "the file is empty" : "the file holds nothing but white space")};
  return text;
}

Result<RecallPatterns> read_patterns(const std::string& path) {
  if (path.empty()) return parse_recall_patterns(std::string(default_recall_patterns()), "built-in patterns");
  SH_ASSIGN(const std::string json, read_file(path));
  return parse_recall_patterns(json, path);
}

/// "facts-1024.jsonl" for facts.jsonl when there are several lengths: compact-eval takes a file's name for the
/// context's.
std::string output_path(const std::string& path, int64_t n_tokens, bool is_one_of_many) {
  if (!is_one_of_many) return path;
  const std::filesystem::path whole(path);
  return (whole.parent_path() /
          fmt::format("{}-{}{}", whole.stem().string(), n_tokens, whole.extension().string()))
      .string();
}

/// A file for each length. Errors: see check_outputs().
Result<std::vector<std::string>> output_paths(const engine::ProgramParams& params) {
  const engine::RecallParams& recall = params.recall;
  std::vector<NamedPath> inputs = {{"-m", params.engine.model_path}, {"--patterns", recall.patterns_path}},
                         outputs;
  add_named(inputs, "--text", recall.text_files);
  std::vector<std::string> paths;
  for (const int64_t n_tokens : recall.n_tokens)
    paths.push_back(output_path(params.tool.output_path, n_tokens, recall.n_tokens.size() > 1));
  add_named(outputs, "-o", paths);
  SH_RETURN_IF_ERROR(check_outputs(outputs, inputs));
  return paths;
}

/// Prints to stderr where the documents themselves go to a device or pipe, which may be stdout.
void print_summary(const std::string& path, const std::vector<Json>& documents, bool is_exact,
                   int64_t n_questions_asked) {
  std::map<std::string, int> n_by_kind;
  int64_t least = documents[0]["n_tokens"].get<int64_t>(), most = least, n_questions = 0;
  for (const Json& document : documents) {
    least = std::min(least, document["n_tokens"].get<int64_t>());
    most = std::max(most, document["n_tokens"].get<int64_t>());
    for (const Json& question : document["questions"]) ++n_by_kind[question["kind"].get<std::string>()];
  }
  std::string kinds;
  for (const std::string& kind : recall_kinds()) {
    n_questions += n_by_kind[kind];
    if (n_by_kind[kind] > 0) kinds += fmt::format("{}{} {}", kinds.empty() ? "" : ", ", kind, n_by_kind[kind]);
  }
  std::error_code none;
  fmt::print(std::filesystem::is_regular_file(path, none) ? stdout : stderr,
             "{}: {} documents of {}{} to {} tokens, {} questions: {}\n", path, documents.size(),
             is_exact ? "" : "about ", least, most, n_questions, kinds);
  if (n_questions < n_questions_asked)
    fmt::print(stderr,
               "warning: {}: {} questions instead of {}: for {} of kind verbatim the text has no two neighbouring "
               "sentences of the right length that stand in it once\n",
               path, n_questions, n_questions_asked, n_questions_asked - n_questions);
}

Result<void> run(const engine::ProgramParams& params) {
  const engine::RecallParams& recall = params.recall;
  if (recall.text_files.empty())
    return Error{ErrorKind::invalid_argument, "no text given: name a file with --text FILE"};
  if (params.tool.output_path.empty())
    return Error{ErrorKind::invalid_argument, "no output given: name a file with -o FILE.jsonl"};
  SH_ASSIGN(const std::vector<std::string> paths, output_paths(params));
  RecallSpec spec{.n_documents = recall.n_documents,
                  .n_facts = recall.n_facts,
                  .seed = static_cast<uint64_t>(recall.seed),
                  .kinds = recall.kinds,
                  .has_instruction = recall.has_instruction};
  for (const std::string& path : recall.text_files) {
    SH_ASSIGN(std::string text, read_text(path));
    spec.texts.push_back(std::move(text));
  }
  SH_ASSIGN(const RecallPatterns patterns, read_patterns(recall.patterns_path));

  std::unique_ptr<const tokenizer::Tokenizer> tokenizer;
  spec.count_tokens = estimated_tokens;
  if (!params.engine.model_path.empty()) {
    SH_ASSIGN(const gguf::File file, gguf::File::open(params.engine.model_path));
    SH_ASSIGN(auto vocabulary, engine::read_vocabulary(file));
    SH_ASSIGN(tokenizer, tokenizer::Tokenizer::create(std::move(vocabulary)));
    spec.count_tokens = [&tokenizer](const std::string& text) {
      return static_cast<int64_t>(tokenizer->encode(text, {.add_special = false, .parse_special = false}).size());
    };
  } else {
    fmt::print(stderr,
               "note: no model given (-m FILE): a token is taken for 1/1.3 of a word, or for a character where "
               "words have no spaces between\n");
  }

  struct Output {
    std::string path;
    std::vector<Json> documents;
  };
  std::vector<Output> outputs;  // all are made before any is written
  for (size_t i = 0; i < paths.size(); ++i) {
    spec.n_tokens = recall.n_tokens[i];
    Output output{.path = paths[i]};
    spec.label = std::filesystem::path(output.path).stem().string();
    SH_ASSIGN(output.documents, make_recall(spec, patterns));
    outputs.push_back(std::move(output));
  }
  int64_t n_text_tokens = 0;
  for (const std::string& text : spec.texts) n_text_tokens += spec.count_tokens(text);
  for (const Output& output : outputs) {
    std::string lines;
    int64_t n_used = 0;
    for (Json document : output.documents) {
      n_used += document["n_tokens"].get<int64_t>();
      if (!tokenizer) document.erase("n_tokens");
      lines += dump_json(document) + "\n";
    }
    SH_RETURN_IF_ERROR(write_file(output.path, lines));
    print_summary(output.path, output.documents, tokenizer != nullptr, spec.n_documents * spec.n_facts);
    if (n_used > n_text_tokens)
      fmt::print(stderr,
                 "note: {}: the text holds {} tokens, fewer than the documents together: they share parts of it, "
                 "so intervals over documents come out too narrow\n",
                 output.path, n_text_tokens);
  }
  return {};
}

}  // namespace

int make_recall_command(Arguments arguments) {
  engine::ProgramParams params;
  if (const std::optional<int> status = read_params(engine::kMakeRecall, arguments, params)) return *status;
  return exit_status(run(params));
}

}  // namespace sh::tools
