// SPDX-License-Identifier: MIT
#pragma once

#include <memory>
#include <span>
#include <string>
#include <string_view>

#include "server/http.h"

namespace sh::server {

struct ServerState;

/// What a handler gets.
struct Call {
  ServerState& state;
  std::shared_ptr<Exchange> exchange;
  std::string id;  // of a path with {id}
};

struct Route {
  const char* method;
  const char* path;  // "/slots/{id}": {id} stands for one part
  void (*handler)(Call call);
  bool is_public = false;   // answers without a key
  bool needs_model = true;  // 503 until the model is loaded
  bool is_probe = false;    // left out of the access log
};

/// The one table of routes.
std::span<const Route> routes();

struct RouteMatch {
  const Route* route = nullptr;
  std::string id;
  std::string
      allowed;  // methods of the path when the method does not fit: "GET, POST"; "" when the path is unknown
};
/// HEAD matches GET.
RouteMatch find_route(std::span<const Route> table, std::string_view method, std::string_view path);

}  // namespace sh::server
