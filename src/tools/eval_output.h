// SPDX-License-Identifier: MIT
// What compact-eval writes.
#pragma once

#include <fstream>
#include <span>
#include <string>

#include "base/result.h"
#include "tools/eval_cell.h"

namespace sh::tools {

/// Where the lines of the items go for a result that goes to `json_path`; "" when that is "" or a device.
std::string items_path_of(const std::string& json_path);

/// All of `text` to the standard output, to its end. Errors: io.
Result<void> print_out(const std::string& text);

/// The lines of the items. They stand in PATH.part, complete up to the last one that was measured, until finish()
/// renames it: a run that fails or is stopped leaves an earlier PATH alone.
class ItemLines {
 public:
  Result<void> open(const std::string& path);  // "": none are written
  Result<void> add(std::span<const EvalItem> items);
  Result<void> finish();

 private:
  Result<void> check() const;
  bool is_direct_ = false;     // a device: nothing is renamed
  std::string target_, path_;  // at the end; until then
  std::ofstream file_;
};

}  // namespace sh::tools
