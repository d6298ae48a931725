// SPDX-License-Identifier: MIT
// What counts as a right answer: texts, letters of multiple choice, and a standing instruction. Strings only.
#pragma once

#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace sh::tools {

std::string trimmed(std::string_view text);

/// Equal but for case, white space, and quotation marks and punctuation around them.
bool is_same_answer(std::string_view a, std::string_view b);

/// The text without a last word `word`, or nothing when it does not end with it (punctuation and case aside).
std::optional<std::string> without_last_word(std::string_view text, std::string_view word);

/// What follows the last end-of-thinking tag, or nothing when a thought was begun and not ended.
/// `is_thinking`: the prompt had opened one already.
std::optional<std::string> without_thinking(std::string_view text, bool is_thinking);
/// True when the text ends with a tag that begins a thought.
bool opens_thinking(std::string_view text);
/// The tag that ends a thought which `text` opened; "" when it opened none.
std::string closing_tag(std::string_view text);

/// The option (0, 1, ...) that the last line with text in it names: a single letter with punctuation or bold
/// markers around it, "answer: C", "the answer is (C)". Whatever else stands in that line makes it nothing, so
/// that "the answer is because ..." is no B. Needs: n_options <= 26.
std::optional<int> parse_choice(std::string_view text, int n_options, bool is_thinking = false);

/// A question with its options, as the model is asked: lettered lines and how to answer.
std::string choice_prompt(const std::string& question, const std::vector<std::string>& options);
inline char letter_of(int option) {
  return static_cast<char>('A' + option);
}

/// What an answer must be.
struct Expectation {
  std::vector<std::string> accept;  // any of them
  int n_options = 0;                // > 0: multiple choice; accept holds one letter
  bool is_thinking = false;         // the prompt opens a thought
  std::string instruction_word;     // that every reply should end with; "": none
};
struct Grade {
  bool is_right = false;
  std::string answer;         // what was compared: without thoughts and instruction word; a letter for a choice
  bool is_parsed = true;      // false: no option could be read from a choice
  std::optional<bool> obeys;  // the standing instruction, when there is one
};
Grade grade(const Expectation& expected, const std::string& text);

}  // namespace sh::tools
