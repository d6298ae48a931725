// SPDX-License-Identifier: MIT
#include "tools/table.h"

#include <algorithm>

#include "base/check.h"

namespace sh::tools {

namespace {
size_t display_width(const std::string& text) {
  return static_cast<size_t>(std::count_if(text.begin(), text.end(), [](char c) { return (static_cast<unsigned char>(c) & 0xC0) != 0x80; }));
}
}  // namespace

void Table::add(std::vector<std::string> cells) {
  SH_CHECK(cells.size() == rows_.front().size(), "a row has as many cells as the header");
  rows_.push_back(std::move(cells));
}

std::string Table::markdown() const {
  std::vector<size_t> widths(rows_.front().size(), 3);
  for (const auto& row : rows_)
    for (size_t c = 0; c < row.size(); ++c) widths[c] = std::max(widths[c], display_width(row[c]));
  std::string out;
  for (size_t r = 0; r < rows_.size(); ++r) {
    for (size_t c = 0; c < widths.size(); ++c) {
      const std::string padding(widths[c] - display_width(rows_[r][c]), ' ');
      out += "| " + (c < n_left_ ? rows_[r][c] + padding : padding + rows_[r][c]) + " ";
    }
    out += "|\n";
    if (r == 0) {
      for (size_t c = 0; c < widths.size(); ++c) out += c < n_left_ ? "|" + std::string(widths[c] + 2, '-') : "|" + std::string(widths[c] + 1, '-') + ":";
      out += "|\n";
    }
  }
  return out;
}

}  // namespace sh::tools
