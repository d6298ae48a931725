// SPDX-License-Identifier: MIT
#include "base/json.h"

#include <fmt/format.h>

#include <algorithm>

namespace sh {

namespace {
constexpr int kMaxDepth = 256;

/// The deepest nesting of brackets outside strings; the text need not be valid.
int nesting_depth(std::string_view text) {
  int depth = 0, deepest = 0;
  bool in_string = false;
  for (size_t i = 0; i < text.size(); ++i) {
    const char c = text[i];
    if (in_string) {
      if (c == '\\') ++i;
      if (c == '"') in_string = false;
    } else if (c == '"') {
      in_string = true;
    } else if (c == '{' || c == '[') {
      deepest = std::max(deepest, ++depth);
    } else if (c == '}' || c == ']') {
      --depth;
    }
  }
  return deepest;
}
}  // namespace

Result<Json> parse_json(std::string_view text) {
  if (nesting_depth(text) > kMaxDepth)
    return Error{ErrorKind::invalid_argument, fmt::format("JSON nested deeper than {} levels", kMaxDepth)};
  try {
    return Json::parse(text.begin(), text.end());
  } catch (const nlohmann::json::exception& e) {
    return Error{ErrorKind::invalid_argument, fmt::format("malformed JSON: {}", e.what())};
  }
}

std::string dump_json(const Json& value, int indent) {
  return value.dump(indent, ' ', false, nlohmann::json::error_handler_t::replace);
}

}  // namespace sh
