// SPDX-License-Identifier: MIT
#include "base/utf8.h"

namespace sh {

namespace {
/// Bytes of the sequence that `lead` opens, or 0 if it opens none.
int sequence_length(unsigned char lead) {
  if (lead < 0x80) return 1;
  if (lead >= 0xC2 && lead < 0xE0) return 2;
  if (lead >= 0xE0 && lead < 0xF0) return 3;
  if (lead >= 0xF0 && lead < 0xF5) return 4;
  return 0;
}
}  // namespace

Utf8Char decode_utf8(std::string_view text) {
  const auto byte = [&](size_t i) { return static_cast<unsigned char>(text[i]); };
  const int n = sequence_length(byte(0));
  if (n == 1) return {byte(0), 1, true};
  if (n == 0 || text.size() < static_cast<size_t>(n)) return {0xFFFD, 1, false};
  uint32_t code = byte(0) & (0xFFu >> (n + 1));
  for (int i = 1; i < n; ++i) {
    if ((byte(static_cast<size_t>(i)) & 0xC0) != 0x80) return {0xFFFD, 1, false};
    code = code << 6 | (byte(static_cast<size_t>(i)) & 0x3Fu);
  }
  constexpr uint32_t kSmallest[] = {0, 0, 0x80, 0x800, 0x10000};
  if (code < kSmallest[n] || code > 0x10FFFF || (code >= 0xD800 && code < 0xE000)) return {0xFFFD, 1, false};
  return {code, n, true};
}

void append_utf8(std::string& out, uint32_t code) {
  const auto put = [&](uint32_t byte) { out.push_back(static_cast<char>(byte)); };
  if (code < 0x80) {
    put(code);
  } else if (code < 0x800) {
    put(0xC0 | code >> 6);
    put(0x80 | (code & 0x3F));
  } else if (code < 0x10000) {
    put(0xE0 | code >> 12);
    put(0x80 | (code >> 6 & 0x3F));
    put(0x80 | (code & 0x3F));
  } else {
    put(0xF0 | code >> 18);
    put(0x80 | (code >> 12 & 0x3F));
    put(0x80 | (code >> 6 & 0x3F));
    put(0x80 | (code & 0x3F));
  }
}

bool is_valid_utf8(std::string_view text) {
  while (!text.empty()) {
    const Utf8Char c = decode_utf8(text);
    if (!c.is_valid) return false;
    text.remove_prefix(static_cast<size_t>(c.n_bytes));
  }
  return true;
}

size_t incomplete_utf8_tail(std::string_view text) {
  for (size_t back = 1; back <= 3 && back <= text.size(); ++back) {
    const auto byte = static_cast<unsigned char>(text[text.size() - back]);
    if ((byte & 0xC0) == 0x80) continue;
    const int n = sequence_length(byte);
    return n > static_cast<int>(back) ? back : 0;
  }
  return 0;
}

}  // namespace sh
