// SPDX-License-Identifier: MIT
// JSON for the whole program: nlohmann's ordered_json behind one header, with a parser that does not throw.
#pragma once

#define JSON_USE_IMPLICIT_CONVERSIONS 0
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>

#include "base/result.h"

namespace sh {

using Json = nlohmann::ordered_json;

/// Parses one JSON text. Errors: invalid_argument with line, column and what was found; nesting deeper than 256 is refused,
/// because recursive consumers would exhaust the stack.
Result<Json> parse_json(std::string_view text);

/// Compact text; invalid UTF-8 becomes U+FFFD instead of an exception.
std::string dump_json(const Json& value, int indent = -1);

}  // namespace sh
