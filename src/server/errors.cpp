// SPDX-License-Identifier: MIT
#include "server/errors.h"

#include <fmt/format.h>

namespace sh::server {
namespace {

constexpr const char* kInvalidRequest = "invalid_request_error";
constexpr const char* kUnavailable = "unavailable_error";

struct KindStatus {
  ErrorKind kind;
  int status;
  const char* type;
};
constexpr KindStatus kKinds[] = {
    {ErrorKind::invalid_argument, 400, kInvalidRequest},
    {ErrorKind::not_found, 404, "not_found_error"},
    {ErrorKind::unsupported, 501, "not_supported_error"},
    {ErrorKind::corrupt, 500, "server_error"},
    {ErrorKind::io, 500, "server_error"},
    {ErrorKind::out_of_memory, 503,
     kUnavailable},  // of the KV budget: other conversations hold it, so later may be better
    {ErrorKind::context_exceeded, 400, "exceed_context_size_error"},
    {ErrorKind::unmet, 422, "quality_not_met_error"},
    {ErrorKind::busy, 503, kUnavailable},
    {ErrorKind::cancelled, 503, kUnavailable},
};

}  // namespace

ApiError api_error(const Error& error) {
  for (const KindStatus& row : kKinds)
    if (row.kind == error.kind) return ApiError{row.status, row.type, error.message, {}, {}};
  SH_CHECK(false, "an error kind without a status");
}

ApiError authentication_error(std::string message) {
  return {401, "authentication_error", std::move(message), {}, {}};
}
ApiError path_not_found(const std::string& path) {
  return {404, "not_found_error", fmt::format("there is nothing at {}", path.substr(0, 200)), {}, {}};
}
ApiError method_not_allowed(const std::string& method, const std::string& path, const std::string& allowed) {
  return {405, kInvalidRequest, fmt::format("{} does not take {}; it takes {}", path, method, allowed), {}, {}};
}
ApiError body_too_large(int64_t max_bytes) {
  return {413,
          kInvalidRequest,
          fmt::format("the request body is larger than {} bytes (--max-body)", max_bytes),
          {},
          {}};
}
ApiError malformed_http(std::string message) {
  return {400, kInvalidRequest, std::move(message), {}, {}};
}
ApiError not_supported(std::string message) {
  return {501, "not_supported_error", std::move(message), {}, {}};
}
ApiError unavailable(std::string message) {
  return {503, kUnavailable, std::move(message), {}, {}};
}

Json error_json(const ApiError& error) {
  Json inner = {{"code", error.status}, {"message", error.message}, {"type", error.type}};
  if (error.n_prompt_tokens) inner["n_prompt_tokens"] = *error.n_prompt_tokens;
  if (error.n_ctx) inner["n_ctx"] = *error.n_ctx;
  return Json{{"error", std::move(inner)}};
}

HttpResponse error_response(const ApiError& error) {
  return HttpResponse{.status = error.status, .body = dump_json(error_json(error))};
}

HttpResponse json_response(const Json& body) {
  return HttpResponse{.body = dump_json(body)};
}

}  // namespace sh::server
