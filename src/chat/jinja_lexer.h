// SPDX-License-Identifier: MIT
// Cuts a template into text and the tokens of its tags. Source: Jinja2 documentation, "Template Designer:
// Whitespace Control".
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "chat/jinja_error.h"

namespace sh::chat {

enum class TokenKind : uint8_t {
  text,  // between tags, white space already handled
  block_begin,
  block_end,
  variable_begin,
  variable_end,
  name,
  string,
  integer,
  real,
  op,  // punctuation; `text` is the operator
  end,
};

struct Token {
  TokenKind kind = TokenKind::end;
  std::string text;  // name, operator, decoded string or text between tags
  int64_t integer = 0;
  double real = 0;
  SourceOffset offset = 0;
};

/// \n for every line end, and one line end less at the end of the text (Jinja's keep_trailing_newline is off).
std::string normalise_template(std::string_view source);

/// Tokens of a normalised template, the last one of kind `end`. Blocks are trimmed and left-stripped (trim_blocks,
/// lstrip_blocks). Throws TemplateError.
std::vector<Token> lex_template(const std::string& source);

}  // namespace sh::chat
