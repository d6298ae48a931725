// SPDX-License-Identifier: MIT
#include "tools/eval_data.h"

#include <fmt/format.h>

#include <algorithm>
#include <filesystem>
#include <sstream>

#include "base/json.h"
#include "base/mapped_file.h"

namespace sh::tools {

namespace {

Result<std::string> text_field(const Json& object, const char* key, const std::string& where) {
  const auto it = object.find(key);
  if (it == object.end() || !it->is_string())
    return Error{ErrorKind::invalid_argument, fmt::format("{}: expected a string under \"{}\", got {}", where, key, it == object.end() ? "nothing" : it->type_name())};
  return it->get<std::string>();
}

Result<RecallDocument> read_document(const std::string& line, const std::string& where) {
  auto parsed = parse_json(line);
  if (!parsed.ok()) return Error{ErrorKind::invalid_argument, fmt::format("{}: {}", where, parsed.error().message)};
  if (!parsed->is_object()) return Error{ErrorKind::invalid_argument, fmt::format("{}: expected an object with \"context\" and \"questions\", got {}", where, parsed->type_name())};
  RecallDocument document;
  SH_ASSIGN(document.context, text_field(*parsed, "context", where));
  document.id = parsed->contains("id") && (*parsed)["id"].is_string() ? (*parsed)["id"].get<std::string>() : where;
  const auto questions = parsed->find("questions");
  if (questions == parsed->end() || !questions->is_array() || questions->empty())
    return Error{ErrorKind::invalid_argument, fmt::format("{}: expected a list of questions under \"questions\"", where)};
  for (const Json& item : *questions) {
    RecallQuestion question;
    SH_ASSIGN(question.question, text_field(item, "q", where));
    SH_ASSIGN(const std::string answer, text_field(item, "answer", where));
    constexpr const char* kSpace = " \t\r\n";
    const size_t begin = answer.find_first_not_of(kSpace);
    if (begin == std::string::npos) return Error{ErrorKind::invalid_argument, fmt::format("{}: expected a text under \"answer\", got only white space", where)};
    question.answer = answer.substr(begin, answer.find_last_not_of(kSpace) - begin + 1);
    const size_t at = document.context.find(question.answer);
    if (at != std::string::npos) question.depth = static_cast<double>(at) / static_cast<double>(document.context.size());
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

std::string label_of(const std::string& path) { return std::filesystem::path(path).stem().string(); }

std::vector<std::string> files_in(const std::string& folder, const std::string& ending) {
  std::vector<std::string> files;
  std::error_code code;
  for (const auto& entry : std::filesystem::directory_iterator(folder, code))
    if (entry.path().extension() == ending) files.push_back(entry.path().string());
  std::sort(files.begin(), files.end(), [](const std::string& a, const std::string& b) { return std::pair(a.size(), a) < std::pair(b.size(), b); });
  return files;
}

}  // namespace sh::tools
