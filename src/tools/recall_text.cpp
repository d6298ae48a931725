// SPDX-License-Identifier: MIT
#include "tools/recall_text.h"

#include <utf8proc.h>

#include <algorithm>
#include <array>

#include "base/utf8.h"

namespace sh::tools {

namespace {

constexpr int kLongestWord = 24;  // characters; no language's words are much longer
// How much longer a stretch may get than the longest unit before it is cut in the midst of a word.
constexpr size_t kGrace = 3;  // a third of the longest unit

/// Scripts that put no spaces between words, with their punctuation and full-width forms.
bool has_no_spaces(uint32_t c) {
  struct Range {
    uint32_t first, last;
  };
  static constexpr std::array<Range, 8> kRanges = {{{0x0E00, 0x0FFF},      // Thai, Lao, Tibetan
                                                    {0x1000, 0x109F},      // Burmese
                                                    {0x1780, 0x17FF},      // Khmer
                                                    {0x2E80, 0x312F},      // radicals, punctuation, kana, bopomofo
                                                    {0x3190, 0xA4CF},      // Chinese characters, Yi
                                                    {0xF900, 0xFAFF},      // Chinese characters, compatibility
                                                    {0xFF00, 0xFFEF},      // full-width forms
                                                    {0x20000, 0x3FFFF}}};  // Chinese characters, rare
  return std::any_of(kRanges.begin(), kRanges.end(),
                     [c](const Range& range) { return c >= range.first && c <= range.last; });
}

bool is_mark(uint32_t c) {
  const auto category = utf8proc_category(static_cast<utf8proc_int32_t>(c));
  return category == UTF8PROC_CATEGORY_MN || category == UTF8PROC_CATEGORY_MC || category == UTF8PROC_CATEGORY_ME;
}

bool is_one_of(uint32_t c, std::u32string_view set) {
  return set.find(static_cast<char32_t>(c)) != std::u32string_view::npos;
}

/// Ends a sentence wherever it stands: those of Chinese and Japanese, Hindi, Arabic and Urdu, Tibetan, Burmese,
/// Khmer, Ethiopic, Armenian.
bool is_full_stop(uint32_t c) {
  return is_one_of(c, U"。！？｡．।॥؟۔།။។።፧։");
}

/// Belongs to the sentence that ended before it.
bool is_closer(uint32_t c) {
  return is_one_of(c, U"\"')]}”’」』）］｝〉》】〕»");
}

bool is_comma(uint32_t c) {
  return is_one_of(c, U"，、；：､،؛၊፣");
}

uint32_t first_character(std::string_view text) {
  return text.empty() ? 0 : decode_utf8(text).code_point;
}

uint32_t last_character(std::string_view text) {
  if (text.empty()) return 0;
  size_t at = text.size() - 1;
  while (at > 0 && (static_cast<unsigned char>(text[at]) & 0xC0) == 0x80) --at;
  return decode_utf8(text.substr(at)).code_point;
}

/// Where the piece that begins at `at` ends. Needs: no white space there.
size_t piece_end(std::string_view text, size_t at) {
  int n_characters = 0;
  bool is_whole = false;  // what follows are marks of its last character
  while (at < text.size() && !is_space(text[at])) {
    const Utf8Char c = decode_utf8(text.substr(at));
    if (!is_mark(c.code_point)) {
      if (is_whole || (n_characters > 0 && has_no_spaces(c.code_point))) break;
      is_whole = has_no_spaces(c.code_point) || ++n_characters == kLongestWord;
    }
    at += static_cast<size_t>(c.n_bytes);
  }
  return at;
}

/// Calls on_piece(begin, end) for each piece until it returns false.
template <typename OnPiece>
void walk_pieces(std::string_view text, OnPiece on_piece) {
  for (size_t at = 0; at < text.size();) {
    if (is_space(text[at])) {
      ++at;
      continue;
    }
    const size_t end = piece_end(text, at);
    if (!on_piece(at, end)) return;
    at = end;
  }
}

std::string with_plain_line_ends(std::string_view text) {
  std::string out;
  if (text.starts_with("\xEF\xBB\xBF")) text.remove_prefix(3);
  for (size_t i = 0; i < text.size(); ++i)
    if (text[i] != '\r')
      out += text[i];
    else if (i + 1 == text.size() || text[i + 1] != '\n')
      out += '\n';
  return out;
}

/// Lines that must stay lines: code, tables, verse.
bool keeps_lines(std::string_view paragraph) {
  for (size_t at = 0; at < paragraph.size();) {
    const size_t end = std::min(paragraph.find('\n', at), paragraph.size());
    const std::string_view line = paragraph.substr(at, end - at);
    if (!line.empty() && (line.front() == ' ' || line.front() == '\t' || line.front() == '|' ||
                          line.back() == ';' || line.back() == '{' || line.back() == '}'))
      return true;
    at = end + 1;
  }
  return false;
}

/// Does the sentence end before `at`, where white space stands? Initials and titles do not end one.
bool ends_sentence(std::string_view text, size_t at) {
  size_t last = at;
  const auto ends_with = [&](std::string_view ending) { return text.substr(0, last).ends_with(ending); };
  for (bool is_closed = true; is_closed;) {
    is_closed = false;
    for (const std::string_view closer : {"\"", "'", ")", "]", "\u201D", "\u2019"})
      if (ends_with(closer)) {
        last -= closer.size();
        is_closed = true;
      }
  }
  if (last == 0 || (text[last - 1] != '.' && text[last - 1] != '!' && text[last - 1] != '?')) return false;
  const size_t next = text.find_first_not_of(" ", at);
  if (next != std::string_view::npos && text[next] >= 'a' && text[next] <= 'z') return false;
  if (text[last - 1] != '.') return true;
  const size_t space = text.find_last_of(" \"'(", last - 1);
  const std::string_view word = text.substr(space == std::string_view::npos ? 0 : space + 1,
                                            last - 1 - (space == std::string_view::npos ? 0 : space + 1));
  for (const std::string_view title : {"Mr", "Mrs", "Ms", "Dr", "St", "Prof", "No", "vs", "Jr", "Sr"})
    if (word == title) return false;
  return word.size() != 1 || word[0] < 'A' || word[0] > 'Z';
}

/// Cuts one paragraph.
class ParagraphCutter {
 public:
  ParagraphCutter(std::vector<TextUnit>& units, std::string_view text, size_t longest)
      : units_(units), text_(text), longest_(longest) {}

  void cut() {
    bool is_stopped = false;  // a full stop, and what closes it, stand before
    uint32_t before = 0;
    for (size_t at = 0; at < text_.size();) {
      const Utf8Char c = decode_utf8(text_.substr(at));
      const size_t next = at + static_cast<size_t>(c.n_bytes);
      const bool is_white = c.code_point == ' ' || c.code_point == '\n';
      if (is_stopped && !is_full_stop(c.code_point) && !is_closer(c.code_point) && !is_mark(c.code_point)) {
        add_until(at);
        is_stopped = false;
      } else if (is_white ? ends_sentence(text_, at) || (is_too_long(at) && c.code_point == ' ')
                          : is_overdue(at, before, c.code_point)) {
        add_until(at);
      }
      // Chinese with the full stops of the keyboard: "好!他".
      const bool is_plain_stop = is_one_of(c.code_point, U".!?") && has_no_spaces(before) &&
                                 has_no_spaces(first_character(text_.substr(next)));
      is_stopped = is_stopped || is_full_stop(c.code_point) || is_plain_stop;
      before = c.code_point;
      at = next;
    }
    add_until(text_.size());
  }

 private:
  bool is_too_long(size_t at) const { return at > begin_ + longest_; }
  /// Between two characters that are no white space.
  bool is_overdue(size_t at, uint32_t before, uint32_t after) const {
    if (!is_too_long(at) || is_mark(after)) return false;
    return is_comma(before) || at > begin_ + longest_ + longest_ / kGrace;
  }

  void add_until(size_t end) {
    if (end <= begin_) return;
    const std::string_view text = text_.substr(begin_, end - begin_);
    begin_ = end;
    while (begin_ < text_.size() && (text_[begin_] == ' ' || text_[begin_] == '\n')) ++begin_;
    const std::string_view between = text_.substr(end, begin_ - end);
    if (std::all_of(text.begin(), text.end(), is_space)) return;
    const char* separator = between.empty() ? "" : between.find('\n') == std::string_view::npos ? " " : "\n";
    units_.push_back({std::string(text), separator});
  }

  std::vector<TextUnit>& units_;
  std::string_view text_;
  size_t longest_;
  size_t begin_ = 0;
};

/// Lines that are wrapped at a margin as one. Where scripts without spaces meet a line's end, the end stays:
/// nobody can tell a wrapped line from a paragraph, and a space would be one too many.
std::string joined_lines(std::string_view paragraph) {
  std::string line(paragraph);
  for (size_t at = line.find('\n'); at != std::string::npos; at = line.find('\n', at + 1)) {
    const std::string_view all(line);
    if (!has_no_spaces(last_character(all.substr(0, at))) && !has_no_spaces(first_character(all.substr(at + 1))))
      line[at] = ' ';
  }
  return line;
}

void add_lines(std::vector<TextUnit>& units, std::string_view paragraph, size_t longest) {
  for (size_t at = 0; at < paragraph.size();) {
    const size_t end = std::min(paragraph.find('\n', at), paragraph.size());
    const std::string_view line = paragraph.substr(at, end - at);
    const size_t n_before = units.size();
    if (line.size() > longest)
      ParagraphCutter(units, line, longest).cut();
    else if (!std::all_of(line.begin(), line.end(), is_space))
      units.push_back({std::string(line), ""});
    if (units.size() > n_before) units.back().separator = "\n";
    at = end + 1;
  }
}

}  // namespace

bool is_space(char c) {
  return c == ' ' || c == '\n' || c == '\t' || c == '\r' || c == '\f' || c == '\v';
}

std::vector<TextUnit> split_text(std::string_view text, size_t longest_unit) {
  const std::string clean = with_plain_line_ends(text);
  std::vector<TextUnit> units;
  for (size_t at = 0; at < clean.size();) {
    const size_t begin = clean.find_first_not_of('\n', at);
    if (begin == std::string::npos) break;
    const size_t end = std::min(clean.find("\n\n", begin), clean.size());
    const std::string_view paragraph = std::string_view(clean).substr(begin, end - begin);
    const size_t n_before = units.size();
    if (keeps_lines(paragraph))
      add_lines(units, paragraph, longest_unit);
    else
      ParagraphCutter(units, joined_lines(paragraph), longest_unit).cut();
    if (units.size() > n_before) units.back().separator = "\n\n";
    at = end;
  }
  return units;
}

int64_t count_pieces(std::string_view text) {
  int64_t n = 0;
  walk_pieces(text, [&n](size_t, size_t) {
    ++n;
    return true;
  });
  return n;
}

std::string first_pieces(std::string_view text, int64_t n) {
  size_t end = 0;
  walk_pieces(text, [&](size_t, size_t piece) {
    if (n-- <= 0) return false;
    end = piece;
    return true;
  });
  return std::string(text.substr(0, end));
}

int64_t estimated_tokens(const std::string& text) {
  int64_t n_tenths = 0;
  walk_pieces(text, [&](size_t begin, size_t) {
    n_tenths += has_no_spaces(first_character(std::string_view(text).substr(begin))) ? 10 : 13;
    return true;
  });
  return (n_tenths + 9) / 10;
}

bool wants_space(std::string_view before, std::string_view after) {
  if (before.empty() || after.empty() || is_space(before.back()) || is_space(after.front())) return false;
  return !has_no_spaces(last_character(before)) || !has_no_spaces(first_character(after));
}

}  // namespace sh::tools
