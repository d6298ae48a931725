// SPDX-License-Identifier: MIT
#include "chat/jinja_error.h"

#include <fmt/format.h>

#include <algorithm>

#include "chat/jinja_text.h"

namespace sh::chat {

std::string describe_template_error(const TemplateError& error, std::string_view source) {
  if (error.offset == kNoOffset) return fmt::format("chat template: {}", error.message);
  const size_t offset = std::min<size_t>(error.offset, source.size());
  const size_t before = offset == 0 ? std::string_view::npos : source.rfind('\n', offset - 1);
  const size_t line_begin = before == std::string_view::npos ? 0 : before + 1;
  const size_t line_end = std::min(source.find('\n', line_begin), source.size());
  const auto row = 1 + std::count(source.begin(), source.begin() + static_cast<std::ptrdiff_t>(line_begin), '\n');
  const size_t n_chars_before = text_length(source.substr(line_begin, offset - line_begin));

  // Templates are often one line of thousands of characters: show a window around the place.
  constexpr int64_t kCharsBefore = 60, kCharsShown = 110;
  const auto column = static_cast<int64_t>(n_chars_before);
  const int64_t first = std::max<int64_t>(0, column - kCharsBefore);
  const std::string_view line = source.substr(line_begin, line_end - line_begin);
  std::string shown = text_substring(line, first, first + kCharsShown);
  std::replace(shown.begin(), shown.end(), '\t', ' ');
  return fmt::format("chat template, row {}, column {}: {}\n  {}\n  {}^", row, column + 1, error.message, shown,
                     std::string(static_cast<size_t>(column - first), ' '));
}

}  // namespace sh::chat
