// SPDX-License-Identifier: MIT
// The edge where an Error becomes an HTTP status and the error object that clients of llama.cpp know.
#pragma once

#include <cstdint>
#include <optional>
#include <string>

#include "base/json.h"
#include "base/result.h"
#include "server/http.h"

namespace sh::server {

struct ApiError {
  int status;
  const char* type;
  std::string message;
  // Of exceed_context_size_error: agents read both numbers.
  std::optional<int64_t> n_prompt_tokens, n_ctx;
};

/// The one table from kinds to statuses.
ApiError api_error(const Error& error);

ApiError authentication_error(std::string message);
ApiError path_not_found(const std::string& path);
ApiError method_not_allowed(const std::string& method, const std::string& path, const std::string& allowed);
ApiError body_too_large(int64_t max_bytes);
ApiError malformed_http(std::string message);
ApiError not_supported(std::string message);
ApiError unavailable(std::string message);

/// {"error": {"code", "message", "type"}}
Json error_json(const ApiError& error);
HttpResponse error_response(const ApiError& error);
HttpResponse json_response(const Json& body);

}  // namespace sh::server
