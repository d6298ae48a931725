// SPDX-License-Identifier: MIT
#include "tools/eval_qa.h"

#include <fmt/format.h>

#include <algorithm>
#include <numeric>
#include <sstream>

#include "base/log.h"
#include "base/mapped_file.h"
#include "base/rng.h"
#include "tools/eval_answers.h"

namespace sh::tools {

namespace {

/// FNV-1a: a stream of random numbers for every question, whatever stands before it in the file.
uint64_t hash_of(std::string_view text) {
  uint64_t hash = 0xCBF29CE484222325ull;
  for (const char c : text) hash = (hash ^ static_cast<unsigned char>(c)) * 0x100000001B3ull;
  return hash;
}

/// Options in an order that depends on the seed and the question only; `right` moves along.
void shuffle_options(std::vector<std::string>& options, size_t& right, uint64_t seed, std::string_view question) {
  Rng rng(seed, hash_of(question));
  for (size_t i = options.size(); i > 1; --i) {
    const auto j = static_cast<size_t>(rng.next_below(i));
    std::swap(options[i - 1], options[j]);
    if (right == i - 1)
      right = j;
    else if (right == j)
      right = i - 1;
  }
}

RecallQuestion choice_question(const std::string& id, const std::string& question,
                               std::vector<std::string> options, size_t right, uint64_t seed) {
  shuffle_options(options, right, seed, id + "\n" + question);
  RecallQuestion out{.question = choice_prompt(question, options), .kind = "choice"};
  out.query = question;  // without how to answer, but with what the answer may be
  for (const std::string& option : options) out.query += "\n" + option;
  out.answer = std::string(1, letter_of(static_cast<int>(right)));
  out.accept = {out.answer};
  out.n_options = static_cast<int>(options.size());
  return out;
}

constexpr size_t kMaxOptions = 26;

Result<std::vector<std::string>> read_options(const Json& question, const std::string& where) {
  const auto it = question.find("options");
  if (it == question.end() || !it->is_array() || it->size() < 2 || it->size() > kMaxOptions)
    return Error{ErrorKind::invalid_argument,
                 fmt::format("{}: expected 2 to {} options under \"options\"", where, kMaxOptions)};
  std::vector<std::string> options;
  for (const Json& option : *it) {
    if (!option.is_string())
      return Error{ErrorKind::invalid_argument,
                   fmt::format("{}: expected options that are strings, got {}", where, option.type_name())};
    options.push_back(option.get<std::string>());
  }
  return options;
}

Result<const Json*> list_field(const Json& object, const char* key, const std::string& where) {
  const auto it = object.is_object() ? object.find(key) : object.end();
  if (!object.is_object() || it == object.end() || !it->is_array())
    return Error{ErrorKind::invalid_argument, fmt::format("{}: expected a list under \"{}\"", where, key)};
  return &*it;
}

std::string text_or(const Json& object, const char* key, const std::string& otherwise) {
  const auto it = object.find(key);
  return it != object.end() && it->is_string() ? it->get<std::string>() : otherwise;
}

/// The questions of a QuALITY line; how many had no gold label is added to n_unlabelled.
Result<void> add_quality_questions(const Json& line, const std::string& where, uint64_t seed, RecallDocument& into,
                                   int64_t& n_unlabelled) {
  SH_ASSIGN(const Json* questions, list_field(line, "questions", where));
  for (const Json& item : *questions) {
    SH_ASSIGN(const std::string question, text_field(item, "question", where));
    SH_ASSIGN(std::vector<std::string> options, read_options(item, where));
    const auto gold = item.find("gold_label");
    if (gold == item.end()) {
      ++n_unlabelled;
      continue;
    }
    if (!gold->is_number_integer() || gold->get<int64_t>() < 1 ||
        gold->get<int64_t>() > static_cast<int64_t>(options.size()))
      return Error{ErrorKind::invalid_argument, fmt::format("{}: expected a \"gold_label\" from 1 to {}, got {}",
                                                            where, options.size(), dump_json(*gold))};
    const auto right = static_cast<size_t>(gold->get<int64_t>() - 1);
    into.questions.push_back(
        choice_question(text_or(item, "question_unique_id", into.id), question, std::move(options), right, seed));
  }
  return {};
}

}  // namespace

Result<std::vector<RecallDocument>> read_quality(const std::string& path, int64_t n_documents, uint64_t seed) {
  SH_ASSIGN(const std::string text, read_file(path));
  std::vector<RecallDocument> documents;
  std::istringstream lines(text);
  int64_t number = 0, n_unlabelled = 0;
  for (std::string line; std::getline(lines, line);) {
    const std::string where = fmt::format("{}:{}", path, ++number);
    if (trimmed(line).empty()) continue;
    const auto parsed = parse_json(line);
    if (!parsed.ok())
      return Error{ErrorKind::invalid_argument, fmt::format("{}: {}", where, parsed.error().message)};
    SH_ASSIGN(const std::string article, text_field(*parsed, "article", where));
    SH_ASSIGN(const std::string id, text_field(*parsed, "article_id", where));
    auto same = std::find_if(documents.begin(), documents.end(),
                             [&](const RecallDocument& d) { return d.id == id && d.context == article; });
    if (same == documents.end()) {
      // Later lines may still belong to an article that was taken.
      if (static_cast<int64_t>(documents.size()) >= n_documents) continue;
      same = documents.insert(documents.end(), {.id = id, .context = article, .origin = where});
    }
    SH_RETURN_IF_ERROR(add_quality_questions(*parsed, where, seed, *same, n_unlabelled));
  }
  if (n_unlabelled > 0) log_warning("{}: {} questions have no gold label and are left out", path, n_unlabelled);
  std::erase_if(documents, [](const RecallDocument& d) { return d.questions.empty(); });
  if (documents.empty())
    return Error{ErrorKind::invalid_argument, fmt::format("{}: holds no article with a labelled question", path)};
  return documents;
}

namespace {

/// One patient's notes and questions.
struct Patient {
  std::string id, introduction, notes;
  std::vector<RecallQuestion> questions;
};

Result<Patient> read_patient(const std::string& id, const Json& object, const std::string& where, bool introduces,
                             uint64_t seed, int64_t& n_dropped) {
  Patient patient{.id = id};
  SH_ASSIGN(const std::string name, text_field(object, "name", where));
  SH_ASSIGN(const std::string birthday, text_field(object, "birthday", where));
  SH_ASSIGN(const std::string diagnosis, text_field(object, "diagnosis", where));
  patient.introduction = fmt::format("Patient {}: {}, born {}, diagnosis {}.\n", id, name, birthday, diagnosis);
  const auto texts = object.find("texts");
  if (texts == object.end() || !texts->is_object())
    return Error{ErrorKind::invalid_argument, fmt::format("{}: expected an object under \"texts\"", where)};
  for (const auto& [note, text] : texts->items()) {
    if (!text.is_string())
      return Error{ErrorKind::invalid_argument, fmt::format("{}: texts.{}: expected a string", where, note)};
    patient.notes +=
        fmt::format("{}<{}>\n{}\n</{}>", patient.notes.empty() ? "" : "\n\n", note, text.get<std::string>(), note);
  }
  SH_ASSIGN(const Json* questions, list_field(object, "questions", where));
  for (const Json& item : *questions) {
    SH_ASSIGN(const std::string question, text_field(item, "question", where));
    SH_ASSIGN(const std::string correct, text_field(item, "correct", where));
    std::vector<std::string> options;
    for (const char* key : {"answer_a", "answer_b", "answer_c", "answer_d", "answer_e"}) {
      SH_ASSIGN(std::string option, text_field(item, key, where));
      options.push_back(std::move(option));
    }
    const auto right = std::find_if(options.begin(), options.end(),
                                    [&](const std::string& o) { return trimmed(o) == trimmed(correct); });
    if (right == options.end()) {
      ++n_dropped;
      continue;
    }
    const auto at = static_cast<size_t>(right - options.begin());
    patient.questions.push_back(
        choice_question(id, (introduces ? patient.introduction : "") + question, std::move(options), at, seed));
  }
  return patient;
}

}  // namespace

Result<std::vector<RecallDocument>> read_longhealth(const std::string& path, int64_t n_patients,
                                                    int64_t n_documents, uint64_t seed) {
  SH_CHECK(n_patients >= 1, "a document holds at least one patient");
  SH_ASSIGN(const std::string text, read_file(path));
  const auto parsed = parse_json(text);
  if (!parsed.ok()) return Error{ErrorKind::invalid_argument, fmt::format("{}: {}", path, parsed.error().message)};
  if (!parsed->is_object())
    return Error{
        ErrorKind::invalid_argument,
        fmt::format("{}: expected one object with a patient under every key, got {}", path, parsed->type_name())};
  std::vector<RecallDocument> documents;
  int64_t n_dropped = 0, n_in_last = n_patients;
  for (const auto& [id, object] : parsed->items()) {
    if (n_in_last == n_patients) {
      if (static_cast<int64_t>(documents.size()) == n_documents) break;
      documents.emplace_back();
      n_in_last = 0;
    }
    SH_ASSIGN(Patient patient,
              read_patient(id, object, fmt::format("{}: {}", path, id), n_patients > 1, seed, n_dropped));
    RecallDocument& document = documents.back();
    document.id += (n_in_last > 0 ? "+" : "") + patient.id;
    document.context += (n_in_last > 0 ? "\n\n" : "") + patient.notes;
    std::move(patient.questions.begin(), patient.questions.end(), std::back_inserter(document.questions));
    ++n_in_last;
  }
  if (n_dropped > 0)
    log_warning("{}: {} questions left out: \"correct\" is none of their options", path, n_dropped);
  std::erase_if(documents, [](const RecallDocument& d) { return d.questions.empty(); });
  if (documents.empty())
    return Error{ErrorKind::invalid_argument, fmt::format("{}: holds no patient with a question", path)};
  return documents;
}

}  // namespace sh::tools
