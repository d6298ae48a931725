// SPDX-License-Identifier: MIT
// The error that travels inside the Jinja interpreter. It is thrown and caught within this room only: the
// evaluator is a deep recursion in which every step can fail. The public functions of the room turn it into an
// Error.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

namespace sh::chat {

/// Where something stands in the normalised template source, as a byte offset.
using SourceOffset = uint32_t;
inline constexpr SourceOffset kNoOffset = UINT32_MAX;

struct TemplateError {
  std::string message;
  SourceOffset offset = kNoOffset;  // kNoOffset: the evaluator fills in the statement or expression it was in
};

/// "row 3, column 7: message", the source line and a caret below the column. Columns count code points from 1.
std::string describe_template_error(const TemplateError& error, std::string_view source);

}  // namespace sh::chat
