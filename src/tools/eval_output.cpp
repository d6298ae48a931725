// SPDX-License-Identifier: MIT
#include "tools/eval_output.h"

#include <fmt/format.h>

#include <cerrno>
#include <cstdio>
#include <cstring>

#include "base/output_path.h"
#include "tools/compact_eval.h"

namespace sh::tools {

namespace {

Error last_error(const std::string& what) {
  return {ErrorKind::io, fmt::format("cannot write {}: {}", what, std::strerror(errno))};
}

}  // namespace

std::string items_path_of(const std::string& json_path) {
  return json_path.empty() || is_special_file(json_path) ? "" : json_path + ".items.jsonl";
}

Result<void> print_out(const std::string& text) {
  if (std::fwrite(text.data(), 1, text.size(), stdout) != text.size() || std::fflush(stdout) != 0)
    return last_error("to the standard output");
  return {};
}

Result<void> ItemLines::open(const std::string& path) {
  if (path.empty()) return {};
  is_direct_ = is_special_file(path);
  target_ = is_direct_ ? path : end_of_links(path);
  path_ = is_direct_ ? target_ : target_ + ".part";
  file_.rdbuf()->pubsetbuf(nullptr, 0);  // one write for all lines of a call: none is cut in two
  file_.open(path_, std::ios::binary | std::ios::trunc);
  return check();
}

Result<void> ItemLines::add(std::span<const EvalItem> items) {
  if (path_.empty()) return {};
  std::string lines;
  for (const EvalItem& item : items) lines += dump_json(item_json(item)) + "\n";
  file_ << lines;
  return check();
}

Result<void> ItemLines::finish() {
  if (path_.empty()) return {};
  file_.close();
  SH_RETURN_IF_ERROR(check());
  if (!is_direct_ && std::rename(path_.c_str(), target_.c_str()) != 0) return last_error("'" + target_ + "'");
  return {};
}

Result<void> ItemLines::check() const {
  if (file_) return {};
  return last_error("'" + path_ + "'");
}

}  // namespace sh::tools
