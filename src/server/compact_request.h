// SPDX-License-Identifier: MIT
// What POST /compact and POST /slots/{id}?action=compact are asked for.
#pragma once

#include <cstdint>

#include "base/json.h"
#include "base/result.h"
#include "engine/compaction_report.h"

namespace sh::server {

struct ParsedCompaction {
  int32_t id_slot = 0;
  engine::CompactionRequest request;
  Json unused_fields = Json::array();  // known, but without effect here: named in the answer
};

/// The body of POST /compact. Unknown fields are ignored, as scripts expect.
/// Errors: invalid_argument naming field, expected and got; not one of LLAMA_COMPACT_ALLOWED_METHODS.
Result<ParsedCompaction> parse_compaction(const Json& body, int32_t n_slots);
/// The other dialect: keep_ratio, keep_first, keep_last of a method that keeps whole rows.
Result<ParsedCompaction> parse_keep_compaction(const Json& body, int32_t id_slot);

/// An unknown method is a mistake in the request, so 400 and not 404: the path exists.
Error as_bad_request(const Error& error);

}  // namespace sh::server
