// SPDX-License-Identifier: MIT
// The user's text as make-recall takes it apart: sentences, between which facts are put, and words. Scripts that
// put no spaces between words (Chinese, Japanese, Thai, ...) and text without sentences can be cut too.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace sh::tools {

/// A piece of text between whose sentences a fact may be put.
struct TextUnit {
  std::string text;       // a sentence, or a line of what is no prose
  std::string separator;  // between it and the next: " ", "\n", blank lines, or "" where nothing stands between
};

/// Bytes after which a stretch without a sentence's end is cut: at the next space or comma, at last anywhere.
inline constexpr size_t kLongestUnit = 600;

/// Cuts a text into sentences. Paragraphs of prose that are wrapped at a margin become one line each; text with
/// indented lines or lines that end in a brace or semicolon keeps its lines. Needs: valid UTF-8.
std::vector<TextUnit> split_text(std::string_view text, size_t longest_unit = kLongestUnit);

/// Words of a text, where a character of a script without spaces, and every 24 characters of a longer word, count
/// as one.
int64_t count_pieces(std::string_view text);
/// The first `n` of them.
std::string first_pieces(std::string_view text, int64_t n);

/// Tokens of a text when no model is given: 1.3 a word, one a character of a script without spaces; rounded up.
int64_t estimated_tokens(const std::string& text);

/// Is a space wanted where a sentence meets another text? Not between characters of scripts without spaces, nor
/// beside white space.
bool wants_space(std::string_view before, std::string_view after);

bool is_space(char c);

}  // namespace sh::tools
