// SPDX-License-Identifier: MIT
#include "tools/eval_data.h"

#include <fmt/format.h>

#include <algorithm>
#include <filesystem>
#include <sstream>

#include "base/mapped_file.h"
#include "tools/eval_answers.h"

namespace sh::tools {

Result<std::string> text_field(const Json& object, const char* key, const std::string& where) {
  const auto it = object.find(key);
  if (it == object.end() || !it->is_string())
    return Error{ErrorKind::invalid_argument, fmt::format("{}: expected a string under \"{}\", got {}", where, key,
                                                          it == object.end() ? "nothing" : it->type_name())};
  return it->get<std::string>();
}

namespace {

Error bad(const std::string& where, const std::string& what) {
  return {ErrorKind::invalid_argument, fmt::format("{}: {}", where, what)};
}

Result<RecallQuestion> read_question(const Json& item, const std::string& context, const std::string& where) {
  RecallQuestion question;
  SH_ASSIGN(question.question, text_field(item, "q", where));
  SH_ASSIGN(const std::string answer, text_field(item, "answer", where));
  question.answer = trimmed(answer);
  if (question.answer.empty()) return bad(where, "expected a text under \"answer\", got only white space");
  question.accept = {question.answer};
  if (const auto accept = item.find("accept"); accept != item.end()) {
    if (!accept->is_array()) return bad(where, "expected a list of strings under \"accept\"");
    for (const Json& other : *accept) {
      if (!other.is_string()) return bad(where, "expected a list of strings under \"accept\"");
      question.accept.push_back(other.get<std::string>());
    }
  }
  if (item.contains("kind")) {
    SH_ASSIGN(question.kind, text_field(item, "kind", where));
  }
  const auto depth = item.find("depth");
  if (depth != item.end() && !depth->is_null()) {
    if (!depth->is_number() || !(depth->get<double>() >= 0 && depth->get<double>() <= 1))
      return bad(where, fmt::format("expected a \"depth\" from 0 to 1, got {}", dump_json(*depth)));
    question.depth = depth->get<double>();
  } else if (const size_t at = context.find(question.answer); at != std::string::npos) {
    question.depth = static_cast<double>(at) / static_cast<double>(context.size());
  }
  return question;
}

Result<RecallDocument> read_document(const std::string& line, const std::string& where) {
  const auto parsed = parse_json(line);
  if (!parsed.ok()) return bad(where, parsed.error().message);
  if (!parsed->is_object())
    return bad(where,
               fmt::format("expected an object with \"context\" and \"questions\", got {}", parsed->type_name()));
  RecallDocument document;
  SH_ASSIGN(document.context, text_field(*parsed, "context", where));
  const auto id = parsed->find("id");
  document.origin = where;
  document.id = id != parsed->end() && id->is_string() ? id->get<std::string>() : where;
  const auto instruction = parsed->find("instruction");
  if (instruction != parsed->end() && !instruction->is_null()) {
    SH_ASSIGN(const std::string word, text_field(*instruction, "word", where + ": instruction"));
    document.instruction_word = trimmed(word);
    if (document.instruction_word.empty()) return bad(where, "instruction: expected a text under \"word\"");
  }
  const auto questions = parsed->find("questions");
  if (questions == parsed->end() || !questions->is_array() || questions->empty())
    return bad(where, "expected a list of questions under \"questions\"");
  for (const Json& item : *questions) {
    SH_ASSIGN(RecallQuestion question, read_question(item, document.context, where));
    document.questions.push_back(std::move(question));
  }
  return document;
}

}  // namespace

Result<std::vector<RecallDocument>> read_recall(const std::string& path, int64_t n_documents) {
  SH_ASSIGN(const std::string text, read_file(path));
  std::vector<RecallDocument> documents;
  std::istringstream lines(text);
  int64_t number = 0;
  for (std::string line; static_cast<int64_t>(documents.size()) < n_documents && std::getline(lines, line);) {
    ++number;
    if (line.find_first_not_of(" \t\r") == std::string::npos) continue;
    SH_ASSIGN(RecallDocument document, read_document(line, fmt::format("{}:{}", path, number)));
    documents.push_back(std::move(document));
  }
  if (documents.empty()) return Error{ErrorKind::invalid_argument, fmt::format("{}: holds no document", path)};
  return documents;
}

std::string label_of(const std::string& path) {
  return std::filesystem::path(path).stem().string();
}

std::vector<std::string> files_in(const std::string& folder, const std::string& ending) {
  std::vector<std::string> files;
  std::error_code code;
  for (const auto& entry : std::filesystem::directory_iterator(folder, code))
    if (entry.path().extension() == ending) files.push_back(entry.path().string());
  std::sort(files.begin(), files.end(), [](const std::string& a, const std::string& b) {
    return std::pair(a.size(), a) < std::pair(b.size(), b);
  });
  return files;
}

DataFiles data_beside(const std::string& model_path) {
  const std::string folder = std::filesystem::path(model_path).parent_path().string();
  const std::string root = folder.empty() ? "." : folder;
  return {files_in(root + "/recall", ".jsonl"), files_in(root + "/prose", ".txt")};
}

}  // namespace sh::tools
