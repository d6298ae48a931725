// SPDX-License-Identifier: MIT
#include "server/access.h"

namespace sh::server {
namespace {

bool equals_in_constant_time(std::string_view given, std::string_view key) {
  if (given.size() != key.size()) return false;
  unsigned char difference = 0;
  for (size_t i = 0; i < key.size(); ++i)
    difference = static_cast<unsigned char>(difference | (given[i] ^ key[i]));
  return difference == 0;
}

}  // namespace

bool has_valid_key(const HttpRequest& request, const std::vector<std::string>& keys) {
  if (keys.empty()) return true;
  std::string_view given = request.header("authorization");
  constexpr std::string_view kBearer = "Bearer ";
  if (given.starts_with(kBearer))
    given.remove_prefix(kBearer.size());
  else
    given = request.header("x-api-key");
  bool is_valid = false;
  for (const std::string& key : keys) is_valid = equals_in_constant_time(given, key) || is_valid;
  return is_valid;
}

void set_cors_headers(Exchange& exchange) {
  const std::string_view origin = exchange.request().header("origin");
  if (origin.empty()) return;
  exchange.set_header("Access-Control-Allow-Origin", std::string(origin));
  exchange.set_header("Access-Control-Allow-Credentials", "true");
  exchange.set_header("Vary", "Origin");
}

void answer_preflight(Exchange& exchange) {
  if (exchange.request().header("origin").empty()) exchange.set_header("Access-Control-Allow-Credentials", "true");
  exchange.set_header("Access-Control-Allow-Methods", "GET, POST, DELETE, OPTIONS");
  exchange.set_header("Access-Control-Allow-Headers", "*");
  exchange.respond(HttpResponse{.content_type = "text/html; charset=utf-8", .body = ""});
}

}  // namespace sh::server
