// SPDX-License-Identifier: MIT
#include "server/router.h"

#include <optional>

#include "server/handlers.h"

namespace sh::server {
namespace {

/// The part that {id} stands for ("" without one), or nothing when the path does not fit.
std::optional<std::string> match_path(std::string_view pattern, std::string_view path) {
  constexpr std::string_view kId = "{id}";
  const size_t at = pattern.find(kId);
  if (at == std::string_view::npos) return pattern == path ? std::optional<std::string>("") : std::nullopt;
  const std::string_view before = pattern.substr(0, at);
  const std::string_view after = pattern.substr(at + kId.size());
  if (path.size() <= before.size() + after.size() || !path.starts_with(before) || !path.ends_with(after))
    return std::nullopt;
  const std::string_view id = path.substr(before.size(), path.size() - before.size() - after.size());
  if (id.find('/') != std::string_view::npos) return std::nullopt;
  return std::string(id);
}

constexpr Route kRoutes[] = {
    {"GET", "/health", get_health, true, true, true},
    {"GET", "/v1/health", get_health, true, true, true},
    {"GET", "/models", get_models, true, true, true},
    {"GET", "/v1/models", get_models, true, true, true},
    {"GET", "/props", get_props, false, true, true},
    {"POST", "/props", post_props},
    {"GET", "/metrics", get_metrics, false, true, true},
    {"GET", "/slots", get_slots},
    {"POST", "/slots/{id}", post_slot_action},
    {"GET", "/slots/{id}/compaction", get_slot_compaction},
    {"POST", "/compact", post_compact},
    {"POST", "/tokenize", post_tokenize},
    {"POST", "/detokenize", post_detokenize},
    {"POST", "/apply-template", post_apply_template},
    {"POST", "/completion", post_native_completion},
    {"POST", "/completions", post_native_completion},
    {"POST", "/v1/completions", post_openai_completion},
    {"POST", "/chat/completions", post_openai_chat},
    {"POST", "/v1/chat/completions", post_openai_chat},
};

}  // namespace

std::span<const Route> routes() {
  return kRoutes;
}

RouteMatch find_route(std::span<const Route> table, std::string_view method, std::string_view path) {
  if (method == "HEAD") method = "GET";
  RouteMatch match;
  for (const Route& route : table) {
    std::optional<std::string> id = match_path(route.path, path);
    if (!id) continue;
    if (method == route.method) return RouteMatch{&route, std::move(*id), ""};
    if (!match.allowed.empty()) match.allowed += ", ";
    match.allowed += route.method;
  }
  return match;
}

}  // namespace sh::server
