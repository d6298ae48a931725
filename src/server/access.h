// SPDX-License-Identifier: MIT
// Who may ask: API keys and origins.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "server/http.h"

namespace sh::server {

/// True when no key is set or the request carries one, as `Authorization: Bearer K` or `X-Api-Key: K`. Takes the
/// same time for every wrong key of a length.
bool has_valid_key(const HttpRequest& request, const std::vector<std::string>& keys);

/// Echoes the request's origin, credentials allowed, as llama.cpp does.
void set_cors_headers(Exchange& exchange);
/// Answers OPTIONS.
void answer_preflight(Exchange& exchange);

}  // namespace sh::server
