// SPDX-License-Identifier: MIT
#pragma once

#include <string>
#include <vector>

namespace sh::tools {

/// A Markdown table with padded columns; numbers and everything else but the first two columns are aligned to the right.
class Table {
 public:
  explicit Table(std::vector<std::string> header, size_t n_left = 2) : n_left_(n_left) { rows_.push_back(std::move(header)); }
  /// Needs: as many cells as the header.
  void add(std::vector<std::string> cells);
  std::string markdown() const;

 private:
  size_t n_left_;
  std::vector<std::vector<std::string>> rows_;
};

}  // namespace sh::tools
