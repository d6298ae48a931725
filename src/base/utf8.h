// SPDX-License-Identifier: MIT
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace sh {

/// One code point read from the front of a text.
struct Utf8Char {
  uint32_t code_point;  // U+FFFD when the bytes are not valid
  int n_bytes;          // bytes used; 1 for an invalid byte
  bool is_valid;
};
/// Needs: text not empty.
Utf8Char decode_utf8(std::string_view text);
void append_utf8(std::string& out, uint32_t code_point);
bool is_valid_utf8(std::string_view text);
/// How many bytes at the end of `text` begin a sequence that is not complete yet (0 to 3): what a stream holds back.
size_t incomplete_utf8_tail(std::string_view text);

}  // namespace sh
