// SPDX-License-Identifier: MIT
// Strings as Python sees them: indices and lengths count code points, white space and letter case follow Unicode.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace sh::chat {

/// Code points; an invalid byte counts as one.
size_t text_length(std::string_view text);

/// Characters [first, last), both clamped to the text.
std::string text_substring(std::string_view text, int64_t first, int64_t last);

/// The text cut into its characters. Views into `text`.
std::vector<std::string_view> text_characters(std::string_view text);

/// White space in the sense of Python's str.isspace().
bool is_python_space(uint32_t code_point);

/// Removes white space, or the characters of `chars` if given, at the chosen ends. A view into `text`.
std::string_view strip_text(std::string_view text, bool left, bool right, const std::string* chars = nullptr);

std::string upper_text(std::string_view text);
std::string lower_text(std::string_view text);
/// First letter of each word upper, the others lower. Words are runs of letters (`by_space`: runs without white
/// space, hyphen or bracket, as Jinja's filter has it; otherwise as str.title()).
std::string title_text(std::string_view text, bool by_space);
std::string capitalize_text(std::string_view text);

/// The literal that Python's repr() shows for a string.
std::string repr_text(std::string_view text);

/// A float as Python's repr() shows it: shortest digits that read back the same, always with a point or an
/// exponent.
std::string repr_real(double value);

/// `text` as a JSON string literal. With `ascii_only`, other characters become \uXXXX.
std::string quote_json(std::string_view text, bool ascii_only);

/// &, <, >, ' and " as HTML entities.
std::string escape_html(std::string_view text);

/// How often `from` stands in `text`, at most `limit` times (negative: any); an empty `from` stands between all
/// characters.
int64_t count_matches(std::string_view text, std::string_view from, int64_t limit);
/// Replaces the first `n_matches` occurrences. Needs: count_matches() found that many.
std::string replace_text(std::string_view text, std::string_view from, std::string_view to, int64_t n_matches);

}  // namespace sh::chat
