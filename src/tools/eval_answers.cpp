// SPDX-License-Identifier: MIT
#include "tools/eval_answers.h"

#include <algorithm>
#include <cctype>

namespace sh::tools {

namespace {

constexpr std::string_view kSpace = " \t\r\n";

struct ThoughtTags {
  std::string_view open, close;
};
constexpr ThoughtTags kThoughtTags[] = {
    {"<think>", "</think>"}, {"<thinking>", "</thinking>"}, {"[THINK]", "[/THINK]"}};

bool is_space(char c) {
  return kSpace.find(c) != std::string_view::npos;
}
/// ASCII punctuation; bytes of longer characters are none.
bool is_punctuation(char c) {
  return std::ispunct(static_cast<unsigned char>(c)) != 0;
}
char lower(char c) {
  return c >= 'A' && c <= 'Z' ? static_cast<char>(c - 'A' + 'a') : c;
}

std::string_view trim(std::string_view text) {
  while (!text.empty() && is_space(text.front())) text.remove_prefix(1);
  while (!text.empty() && is_space(text.back())) text.remove_suffix(1);
  return text;
}

std::string_view trim_marks(std::string_view text) {
  const auto is_mark = [](char c) { return is_space(c) || is_punctuation(c); };
  while (!text.empty() && is_mark(text.front())) text.remove_prefix(1);
  while (!text.empty() && is_mark(text.back())) text.remove_suffix(1);
  return text;
}

/// Lower case, one space for any white space, no marks around it. A text of marks only stays as it is.
std::string normalised(std::string_view text) {
  const std::string_view core = trim_marks(text).empty() ? trim(text) : trim_marks(text);
  std::string out;
  for (const char c : core) {
    if (!is_space(c))
      out += lower(c);
    else if (out.back() != ' ')
      out += ' ';
  }
  return out;
}

std::string_view last_line(std::string_view text) {
  text = trim(text);
  const size_t at = text.rfind('\n');
  return at == std::string_view::npos ? text : trim(text.substr(at + 1));
}

/// Drops `word` and the marks and spaces before it from the front, if it stands there as a word.
bool skip_word(std::string_view& text, std::string_view word) {
  std::string_view rest = text;
  while (!rest.empty() && (is_space(rest.front()) || is_punctuation(rest.front()))) rest.remove_prefix(1);
  if (rest.size() < word.size()) return false;
  for (size_t i = 0; i < word.size(); ++i)
    if (lower(rest[i]) != word[i]) return false;
  rest.remove_prefix(word.size());
  if (!rest.empty() && !is_space(rest.front()) && !is_punctuation(rest.front())) return false;
  text = rest;
  return true;
}

}  // namespace

std::string trimmed(std::string_view text) {
  return std::string(trim(text));
}

bool is_same_answer(std::string_view a, std::string_view b) {
  return normalised(a) == normalised(b);
}

std::optional<std::string> without_last_word(std::string_view text, std::string_view word) {
  std::string_view rest = text;
  while (!rest.empty() && (is_space(rest.back()) || is_punctuation(rest.back()))) rest.remove_suffix(1);
  if (rest.size() < word.size() || normalised(rest.substr(rest.size() - word.size())) != normalised(word))
    return {};
  rest.remove_suffix(word.size());
  if (!rest.empty() && !is_space(rest.back()) && !is_punctuation(rest.back())) return {};
  return trimmed(rest);
}

std::optional<std::string> without_thinking(std::string_view text, bool is_thinking) {
  size_t end = 0;
  for (const ThoughtTags& tags : kThoughtTags)
    if (const size_t at = text.rfind(tags.close); at != std::string_view::npos)
      end = std::max(end, at + tags.close.size());
  if (end == 0 && is_thinking) return {};
  const std::string_view rest = text.substr(end);
  for (const ThoughtTags& tags : kThoughtTags)
    if (rest.find(tags.open) != std::string_view::npos) return {};
  return trimmed(rest);
}

std::string closing_tag(std::string_view text) {
  const std::string_view end = trim(text);
  for (const ThoughtTags& tags : kThoughtTags)
    if (end.ends_with(tags.open)) return std::string(tags.close);
  return "";
}

bool opens_thinking(std::string_view text) {
  return !closing_tag(text).empty();
}

std::optional<int> parse_choice(std::string_view text, int n_options, bool is_thinking) {
  const std::optional<std::string> answer = without_thinking(text, is_thinking);
  if (!answer) return {};
  std::string_view line = last_line(*answer);
  // "the final answer is: C", each word optional but in this order.
  for (const std::string_view word : {"the", "final", "correct", "answer", "option", "is"}) skip_word(line, word);
  line = trim_marks(line);
  if (line.size() != 1) return {};
  const int option = lower(line[0]) - 'a';
  if (option < 0 || option >= n_options) return {};
  return option;
}

std::string choice_prompt(const std::string& question, const std::vector<std::string>& options) {
  std::string prompt = trimmed(question) + "\n";
  for (size_t i = 0; i < options.size(); ++i)
    prompt += std::string("\n") + letter_of(static_cast<int>(i)) + ". " + trimmed(options[i]);
  return prompt +
         "\n\nThink briefly. Write only the letter of the right option as the last line of your reply; if "
         "you are not sure, guess.";
}

Grade grade(const Expectation& expected, const std::string& text) {
  Grade result{.answer = trimmed(text)};
  if (expected.n_options > 0) {
    const std::optional<int> choice = parse_choice(text, expected.n_options, expected.is_thinking);
    result.is_parsed = choice.has_value();
    result.answer = choice ? std::string(1, letter_of(*choice)) : "";
    result.is_right = choice && !expected.accept.empty() && result.answer == expected.accept.front();
    return result;
  }
  if (const auto spoken = without_thinking(text, expected.is_thinking)) result.answer = *spoken;
  if (!expected.instruction_word.empty()) {
    const auto rest = without_last_word(result.answer, expected.instruction_word);
    result.obeys = rest.has_value();
    if (rest) result.answer = *rest;
  }
  result.is_right = std::any_of(expected.accept.begin(), expected.accept.end(), [&](const std::string& accepted) {
    return is_same_answer(accepted, result.answer);
  });
  return result;
}

}  // namespace sh::tools
