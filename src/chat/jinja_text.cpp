// SPDX-License-Identifier: MIT
#include "chat/jinja_text.h"

#include <fmt/format.h>
#include <utf8proc.h>

#include <algorithm>
#include <charconv>
#include <cmath>

#include "base/utf8.h"

namespace sh::chat {

namespace {

bool is_ascii(std::string_view text) {
  return std::none_of(text.begin(), text.end(), [](char c) { return static_cast<unsigned char>(c) >= 0x80; });
}

/// Calls f(code point, bytes) for every character.
template <typename F>
void for_each_char(std::string_view text, F&& f) {
  while (!text.empty()) {
    const Utf8Char c = decode_utf8(text);
    f(c, text.substr(0, static_cast<size_t>(c.n_bytes)));
    text.remove_prefix(static_cast<size_t>(c.n_bytes));
  }
}

uint32_t to_upper(uint32_t c) {
  return static_cast<uint32_t>(utf8proc_toupper(static_cast<utf8proc_int32_t>(c)));
}
uint32_t to_lower(uint32_t c) {
  return static_cast<uint32_t>(utf8proc_tolower(static_cast<utf8proc_int32_t>(c)));
}

bool is_cased_letter(uint32_t c) {
  return to_upper(c) != c || to_lower(c) != c;
}

bool is_printable(uint32_t c) {
  if (c == ' ') return true;
  switch (utf8proc_category(static_cast<utf8proc_int32_t>(c))) {
    case UTF8PROC_CATEGORY_CN:
    case UTF8PROC_CATEGORY_CC:
    case UTF8PROC_CATEGORY_CF:
    case UTF8PROC_CATEGORY_CS:
    case UTF8PROC_CATEGORY_CO:
    case UTF8PROC_CATEGORY_ZS:
    case UTF8PROC_CATEGORY_ZL:
    case UTF8PROC_CATEGORY_ZP:
      return false;
    default:
      return true;
  }
}

template <typename Map>
std::string map_text(std::string_view text, Map&& map) {
  std::string out;
  out.reserve(text.size());
  for_each_char(text, [&](const Utf8Char& c, std::string_view bytes) {
    if (c.is_valid)
      append_utf8(out, map(c.code_point));
    else
      out.append(bytes);
  });
  return out;
}

}  // namespace

size_t text_length(std::string_view text) {
  if (is_ascii(text)) return text.size();
  size_t n = 0;
  for_each_char(text, [&](const Utf8Char&, std::string_view) { ++n; });
  return n;
}

std::string text_substring(std::string_view text, int64_t first, int64_t last) {
  first = std::max<int64_t>(first, 0);
  if (last <= first) return {};
  if (is_ascii(text)) {
    const auto size = static_cast<int64_t>(text.size());
    if (first >= size) return {};
    return std::string(text.substr(static_cast<size_t>(first), static_cast<size_t>(std::min(last, size) - first)));
  }
  std::string out;
  int64_t index = 0;
  for_each_char(text, [&](const Utf8Char&, std::string_view bytes) {
    if (index >= first && index < last) out.append(bytes);
    ++index;
  });
  return out;
}

std::vector<std::string_view> text_characters(std::string_view text) {
  std::vector<std::string_view> out;
  for_each_char(text, [&](const Utf8Char&, std::string_view bytes) { out.push_back(bytes); });
  return out;
}

bool is_python_space(uint32_t c) {
  return (c >= 0x09 && c <= 0x0d) || (c >= 0x1c && c <= 0x20) || c == 0x85 || c == 0xa0 || c == 0x1680 ||
         (c >= 0x2000 && c <= 0x200a) || c == 0x2028 || c == 0x2029 || c == 0x202f || c == 0x205f || c == 0x3000;
}

std::string_view strip_text(std::string_view text, bool left, bool right, const std::string* chars) {
  const auto goes = [&](std::string_view bytes) {
    if (chars == nullptr) {
      const Utf8Char c = decode_utf8(bytes);
      return c.is_valid && is_python_space(c.code_point);
    }
    bool found = false;
    for_each_char(*chars,
                  [&](const Utf8Char&, std::string_view candidate) { found = found || candidate == bytes; });
    return found;
  };
  while (left && !text.empty()) {
    const auto n = static_cast<size_t>(decode_utf8(text).n_bytes);
    if (!goes(text.substr(0, n))) break;
    text.remove_prefix(n);
  }
  while (right && !text.empty()) {
    size_t begin = text.size() - 1;
    while (begin > 0 && text.size() - begin < 4 && (static_cast<unsigned char>(text[begin]) & 0xC0) == 0x80)
      --begin;
    if (static_cast<size_t>(decode_utf8(text.substr(begin)).n_bytes) != text.size() - begin)
      begin = text.size() - 1;
    if (!goes(text.substr(begin))) break;
    text.remove_suffix(text.size() - begin);
  }
  return text;
}

std::string upper_text(std::string_view text) {
  return map_text(text, to_upper);
}
std::string lower_text(std::string_view text) {
  return map_text(text, to_lower);
}

std::string title_text(std::string_view text, bool by_space) {
  bool in_word = false;
  return map_text(text, [&](uint32_t c) {
    const bool starts = by_space ? !in_word : !in_word && is_cased_letter(c);
    const uint32_t mapped = starts ? to_upper(c) : to_lower(c);
    const bool separates =
        is_python_space(c) ||
        (c < 0x80 && std::string_view("-({[<").find(static_cast<char>(c)) != std::string_view::npos);
    in_word = by_space ? !separates : is_cased_letter(c);
    return mapped;
  });
}

std::string capitalize_text(std::string_view text) {
  bool first = true;
  return map_text(text, [&](uint32_t c) {
    const uint32_t mapped = first ? to_upper(c) : to_lower(c);
    first = false;
    return mapped;
  });
}

std::string repr_text(std::string_view text) {
  const bool has_single = text.find('\'') != std::string_view::npos;
  const bool has_double = text.find('"') != std::string_view::npos;
  const char quote = has_single && !has_double ? '"' : '\'';
  std::string out(1, quote);
  for_each_char(text, [&](const Utf8Char& c, std::string_view bytes) {
    if (!c.is_valid)
      out += fmt::format("\\x{:02x}", static_cast<unsigned char>(bytes[0]));
    else if (c.code_point == static_cast<uint32_t>(quote) || c.code_point == '\\')
      (out += '\\') += static_cast<char>(c.code_point);
    else if (c.code_point == '\n')
      out += "\\n";
    else if (c.code_point == '\r')
      out += "\\r";
    else if (c.code_point == '\t')
      out += "\\t";
    else if (is_printable(c.code_point))
      out.append(bytes);
    else if (c.code_point < 0x100)
      out += fmt::format("\\x{:02x}", c.code_point);
    else if (c.code_point < 0x10000)
      out += fmt::format("\\u{:04x}", c.code_point);
    else
      out += fmt::format("\\U{:08x}", c.code_point);
  });
  return out += quote;
}

std::string repr_real(double value) {
  if (std::isnan(value)) return "nan";
  if (std::isinf(value)) return value > 0 ? "inf" : "-inf";
  char buffer[64];
  // Python switches to an exponent below 1e-4 and from 1e16 on; to_chars chooses by length, so say which one.
  const double magnitude = std::fabs(value);
  const bool fixed = value == 0 || (magnitude >= 1e-4 && magnitude < 1e16);
  const auto format = fixed ? std::chars_format::fixed : std::chars_format::scientific;
  const auto end = std::to_chars(buffer, buffer + sizeof buffer, value, format).ptr;
  std::string out(buffer, end);
  if (fixed && out.find('.') == std::string::npos) out += ".0";
  return out;
}

std::string quote_json(std::string_view text, bool ascii_only) {
  std::string out = "\"";
  out.reserve(text.size() + 2);
  for_each_char(text, [&](const Utf8Char& c, std::string_view bytes) {
    const uint32_t code = c.code_point;
    switch (code) {
      case '"':
        out += "\\\"";
        return;
      case '\\':
        out += "\\\\";
        return;
      case '\n':
        out += "\\n";
        return;
      case '\r':
        out += "\\r";
        return;
      case '\t':
        out += "\\t";
        return;
      case '\b':
        out += "\\b";
        return;
      case '\f':
        out += "\\f";
        return;
      default:
        break;
    }
    if (code < 0x20 || (ascii_only && code >= 0x7f && code < 0x10000))
      out += fmt::format("\\u{:04x}", code);
    else if (ascii_only && code >= 0x10000)
      out += fmt::format("\\u{:04x}\\u{:04x}", 0xD800 + ((code - 0x10000) >> 10), 0xDC00 + (code & 0x3FF));
    else
      out.append(bytes);
  });
  return out += '"';
}

std::string escape_html(std::string_view text) {
  std::string out;
  for (const char c : text) {
    switch (c) {
      case '&':
        out += "&amp;";
        break;
      case '<':
        out += "&lt;";
        break;
      case '>':
        out += "&gt;";
        break;
      case '\'':
        out += "&#39;";
        break;
      case '"':
        out += "&#34;";
        break;
      default:
        out += c;
    }
  }
  return out;
}

int64_t count_matches(std::string_view text, std::string_view from, int64_t limit) {
  if (limit == 0) return 0;
  int64_t n = 0;
  if (from.empty()) {
    n = static_cast<int64_t>(text_length(text)) + 1;
  } else {
    for (size_t at = text.find(from); at != std::string_view::npos; at = text.find(from, at + from.size())) ++n;
  }
  return limit < 0 ? n : std::min(n, limit);
}

std::string replace_text(std::string_view text, std::string_view from, std::string_view to, int64_t n_matches) {
  int64_t n_left = n_matches;
  std::string out;
  if (from.empty()) {
    for_each_char(text, [&](const Utf8Char&, std::string_view bytes) {
      if (n_left-- > 0) out.append(to);
      out.append(bytes);
    });
    if (n_left > 0) out.append(to);
    return out;
  }
  size_t at = 0;
  for (; n_left > 0; --n_left) {
    const size_t match = text.find(from, at);
    out.append(text.substr(at, match - at)).append(to);
    at = match + from.size();
  }
  return out.append(text.substr(at));
}

}  // namespace sh::chat
