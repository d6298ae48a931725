// SPDX-License-Identifier: MIT
#include "chat/jinja_lexer.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <charconv>

#include "base/utf8.h"
#include "chat/jinja_text.h"
#include "chat/jinja_value.h"

namespace sh::chat {

namespace {

bool is_digit(char c) {
  return c >= '0' && c <= '9';
}
bool is_name_start(char c) {
  return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || c == '_' || static_cast<unsigned char>(c) >= 0x80;
}
bool is_name_char(char c) {
  return is_name_start(c) || is_digit(c);
}
bool is_space(char c) {
  return c == ' ' || (c >= '\t' && c <= '\r');
}

class Lexer {
 public:
  explicit Lexer(const std::string& source) : source_(source) {}

  std::vector<Token> run() {
    while (at_ < source_.size()) {
      const size_t tag = find_tag(at_);
      emit_text(at_, tag);
      if (tag == std::string::npos) break;
      at_ = tag;
      read_tag();
    }
    push(TokenKind::end, {}, source_.size());
    return std::move(tokens_);
  }

 private:
  [[noreturn]] void error(size_t offset, std::string message) const {
    throw TemplateError{std::move(message), static_cast<SourceOffset>(offset)};
  }

  void push(TokenKind kind, std::string text, size_t offset) {
    Token token;
    token.kind = kind;
    token.text = std::move(text);
    token.offset = static_cast<SourceOffset>(offset);
    tokens_.push_back(std::move(token));
  }

  bool looking_at(std::string_view word) const { return source_.compare(at_, word.size(), word) == 0; }

  size_t find_tag(size_t from) const {
    for (size_t i = source_.find('{', from); i != std::string::npos; i = source_.find('{', i + 1))
      if (i + 1 < source_.size() && (source_[i + 1] == '{' || source_[i + 1] == '%' || source_[i + 1] == '#'))
        return i;
    return std::string::npos;
  }

  /// Text up to a tag (npos: the end), stripped as the tag's sign and lstrip_blocks ask.
  void emit_text(size_t begin, size_t tag) {
    std::string_view text = std::string_view(source_).substr(begin, std::min(tag, source_.size()) - begin);
    if (tag != std::string::npos) text = strip_before_tag(text, tag);
    if (!text.empty()) push(TokenKind::text, std::string(text), begin);
  }

  std::string_view strip_before_tag(std::string_view text, size_t tag) const {
    const char sign = tag + 2 < source_.size() ? source_[tag + 2] : ' ';
    if (sign == '-') return strip_text(text, false, true);
    if (sign == '+' || source_[tag + 1] == '{') return text;
    const size_t newline = text.rfind('\n');
    if (newline == std::string_view::npos && !at_line_start_) return text;
    const size_t line = newline == std::string_view::npos ? 0 : newline + 1;
    return strip_text(text.substr(line), true, false).empty() ? text.substr(0, line) : text;
  }

  /// After a closing bracket of a block or comment: white space if it had a minus, else one line end unless it had
  /// a plus.
  void skip_after_tag(char sign, bool trims_newline) {
    const size_t begin = at_;
    if (sign == '-') {
      at_ = source_.size() - strip_text(std::string_view(source_).substr(at_), true, false).size();
    } else if (sign != '+' && trims_newline && at_ < source_.size() && source_[at_] == '\n') {
      ++at_;
    }
    at_line_start_ = at_ > begin && source_[at_ - 1] == '\n';
  }

  void read_tag() {
    const size_t begin = at_;
    const char kind = source_[at_ + 1];
    at_ += 2;
    if (kind == '#') return read_comment(begin);
    if (at_ < source_.size() && (source_[at_] == '-' || (kind == '%' && source_[at_] == '+'))) ++at_;
    if (kind == '%' && read_raw(begin)) return;
    const bool is_block = kind == '%';
    push(is_block ? TokenKind::block_begin : TokenKind::variable_begin, {}, begin);
    read_expression(begin, is_block);
  }

  void read_comment(size_t begin) {
    const size_t end = source_.find("#}", at_);
    if (end == std::string::npos) error(begin, "this comment has no end; expected '#}'");
    const char sign = end > at_ ? source_[end - 1] : ' ';
    at_ = end + 2;
    skip_after_tag(sign, true);
  }

  void skip_spaces() {
    while (at_ < source_.size() && is_space(source_[at_])) ++at_;
  }

  /// "<sign> name <sign> %}" from here on: the end of the tag and its last sign, or nothing if something else
  /// stands here.
  bool read_word_tag(std::string_view word, char& sign) {
    const size_t begin = at_;
    skip_spaces();
    if (looking_at(word)) {
      at_ += word.size();
      skip_spaces();
      sign = at_ < source_.size() && (source_[at_] == '-' || source_[at_] == '+') ? source_[at_++] : ' ';
      if (looking_at("%}")) {
        at_ += 2;
        return true;
      }
    }
    at_ = begin;
    return false;
  }

  /// {% raw %} ... {% endraw %}: everything between is text.
  bool read_raw(size_t begin) {
    char sign = ' ';
    if (!read_word_tag("raw", sign)) return false;
    skip_after_tag(sign, false);
    const size_t text_begin = at_;
    for (size_t tag = source_.find("{%", at_); tag != std::string::npos; tag = source_.find("{%", tag + 2)) {
      at_ = tag + 2;
      if (at_ < source_.size() && (source_[at_] == '-' || source_[at_] == '+')) ++at_;
      if (!read_word_tag("endraw", sign)) continue;
      emit_text(text_begin, tag);
      skip_after_tag(sign, true);
      return true;
    }
    error(begin, "this raw block has no end; expected '{% endraw %}'");
  }

  /// The tokens up to the end of the tag. Brackets are counted, since "}}" may close two dictionaries.
  void read_expression(size_t begin, bool is_block) {
    std::string open_brackets;
    for (;;) {
      skip_spaces();
      if (at_ >= source_.size())
        error(begin, fmt::format("this tag has no end; expected '{}'", is_block ? "%}" : "}}"));
      if (open_brackets.empty() && read_tag_end(is_block)) return;
      const char c = source_[at_];
      if (is_name_start(c))
        read_name();
      else if (is_digit(c))
        read_number();
      else if (c == '"' || c == '\'')
        read_string();
      else
        read_operator(open_brackets);
    }
  }

  bool read_tag_end(bool is_block) {
    const size_t begin = at_;
    const char sign = source_[at_] == '-' || (is_block && source_[at_] == '+') ? source_[at_] : ' ';
    if (sign != ' ') ++at_;
    if (!looking_at(is_block ? "%}" : "}}")) {
      at_ = begin;
      return false;
    }
    at_ += 2;
    push(is_block ? TokenKind::block_end : TokenKind::variable_end, {}, begin);
    skip_after_tag(sign, is_block);
    return true;
  }

  void read_name() {
    const size_t begin = at_;
    while (at_ < source_.size() && is_name_char(source_[at_])) ++at_;
    push(TokenKind::name, source_.substr(begin, at_ - begin), begin);
  }

  /// Digits and underscores from here on, without the underscores.
  std::string read_digits(bool (*accepts)(char)) {
    std::string digits;
    for (; at_ < source_.size() && (accepts(source_[at_]) || (source_[at_] == '_' && !digits.empty())); ++at_)
      if (source_[at_] != '_') digits += source_[at_];
    return digits;
  }

  void read_number() {
    const size_t begin = at_;
    const int base = looking_at("0x") || looking_at("0X")   ? 16
                     : looking_at("0b") || looking_at("0B") ? 2
                     : looking_at("0o") || looking_at("0O") ? 8
                                                            : 10;
    if (base != 10) {
      at_ += 2;
      return push_integer(
          read_digits([](char c) { return is_digit(c) || (c >= 'a' && c <= 'f') || (c >= 'A' && c <= 'F'); }),
          base, begin);
    }
    std::string digits = read_digits(is_digit);
    bool is_real = false;
    if (at_ + 1 < source_.size() && source_[at_] == '.' && is_digit(source_[at_ + 1])) {
      is_real = true;
      ++at_;
      digits += '.' + read_digits(is_digit);
    }
    if (at_ < source_.size() && (source_[at_] == 'e' || source_[at_] == 'E')) {
      const size_t sign = at_ + 1 < source_.size() && (source_[at_ + 1] == '+' || source_[at_ + 1] == '-') ? 1 : 0;
      if (at_ + 1 + sign < source_.size() && is_digit(source_[at_ + 1 + sign])) {
        is_real = true;
        digits += 'e';
        if (sign && source_[at_ + 1] == '-') digits += '-';
        at_ += 1 + sign;
        digits += read_digits(is_digit);
      }
    }
    if (!is_real) return push_integer(digits, 10, begin);
    push(TokenKind::real, {}, begin);
    // Beyond the range of a double, from_chars leaves 0: Python reads inf or 0, no template needs either.
    const auto read = std::from_chars(digits.data(), digits.data() + digits.size(), tokens_.back().real);
    if (read.ec != std::errc()) error(begin, "this number is out of range");
  }

  void push_integer(const std::string& digits, int base, size_t begin) {
    push(TokenKind::integer, {}, begin);
    const char* end = digits.data() + digits.size();
    const auto read = std::from_chars(digits.data(), end, tokens_.back().integer, base);
    if (read.ec != std::errc() || read.ptr != end) error(begin, "this number is malformed or out of range");
  }

  void read_string() {
    const size_t begin = at_;
    const char quote = source_[at_++];
    std::string text;
    while (at_ < source_.size() && source_[at_] != quote) {
      if (source_[at_] != '\\')
        text += source_[at_++];
      else
        read_escape(text);
    }
    if (at_ >= source_.size()) error(begin, "this string has no end");
    ++at_;
    push(TokenKind::string, std::move(text), begin);
  }

  void read_escape(std::string& out) {
    ++at_;
    if (at_ >= source_.size()) return;
    const char c = source_[at_++];
    constexpr std::string_view kNames = "abfnrtv\\'\"", kMeanings = "\a\b\f\n\r\t\v\\'\"";
    if (const size_t i = kNames.find(c); i != std::string_view::npos) {
      out += kMeanings[i];
    } else if (c == 'x') {
      read_code_point(out, 2);
    } else if (c == 'u') {
      read_code_point(out, 4);
    } else if (c == 'U') {
      read_code_point(out, 8);
    } else if (c >= '0' && c <= '7') {
      uint32_t code = static_cast<uint32_t>(c - '0');
      for (int digit = 1; digit < 3 && at_ < source_.size() && source_[at_] >= '0' && source_[at_] <= '7'; ++digit)
        code = code * 8 + static_cast<uint32_t>(source_[at_++] - '0');
      append_utf8(out, code);
    } else if (c != '\n') {  // a backslash before a line end joins the lines
      (out += '\\') += c;
    }
  }

  uint32_t read_hex(size_t n_digits) {
    uint32_t code = 0;
    const size_t available = std::min(n_digits, source_.size() - at_);
    const char* begin = source_.data() + at_;
    const auto read = std::from_chars(begin, begin + available, code, 16);
    if (read.ptr != begin + n_digits) error(at_, fmt::format("expected {} hexadecimal digits", n_digits));
    at_ += n_digits;
    return code;
  }

  void read_code_point(std::string& out, size_t n_digits) {
    const size_t begin = at_;
    uint32_t code = read_hex(n_digits);
    if (n_digits == 4 && code >= 0xD800 && code < 0xDC00 && looking_at("\\u")) {
      at_ += 2;
      const uint32_t low = read_hex(4);
      if (low < 0xDC00 || low > 0xDFFF) error(begin, "this surrogate lacks its second half");
      code = 0x10000 + ((code - 0xD800) << 10) + (low - 0xDC00);
    }
    if (code > 0x10FFFF || (code >= 0xD800 && code < 0xE000)) error(begin, "this is no code point");
    append_utf8(out, code);
  }

  void read_operator(std::string& open_brackets) {
    static constexpr std::array<std::string_view, 6> kTwoChars = {"==", "!=", "<=", ">=", "//", "**"};
    const size_t begin = at_;
    for (const std::string_view op : kTwoChars) {
      if (!looking_at(op)) continue;
      at_ += 2;
      return push(TokenKind::op, std::string(op), begin);
    }
    const char c = source_[at_];
    if (std::string_view("+-/*%~[]{}()<>=.:|,;").find(c) == std::string_view::npos)
      error(begin,
            fmt::format("unexpected character '{}'", std::string(text_characters(source_.substr(at_, 4))[0])));
    if (c == '(') open_brackets += ')';
    if (c == '[') open_brackets += ']';
    if (c == '{') open_brackets += '}';
    if (c == ')' || c == ']' || c == '}') {
      if (open_brackets.empty()) error(begin, fmt::format("unexpected '{}'", c));
      if (open_brackets.back() != c)
        error(begin, fmt::format("unexpected '{}', expected '{}'", c, open_brackets.back()));
      open_brackets.pop_back();
    }
    ++at_;
    push(TokenKind::op, std::string(1, c), begin);
  }

  const std::string& source_;
  size_t at_ = 0;
  bool at_line_start_ = true;
  std::vector<Token> tokens_;
};

}  // namespace

std::string normalise_template(std::string_view source) {
  std::string out;
  out.reserve(source.size());
  for (size_t i = 0; i < source.size(); ++i) {
    const bool is_pair = source[i] == '\r' && i + 1 < source.size() && source[i + 1] == '\n';
    if (!is_pair) out += source[i] == '\r' ? '\n' : source[i];
  }
  if (!out.empty() && out.back() == '\n') out.pop_back();
  return out;
}

std::vector<Token> lex_template(const std::string& source) {
  return Lexer(source).run();
}

}  // namespace sh::chat
