// SPDX-License-Identifier: MIT
#include "server/server.h"

#include <algorithm>
#include <ctime>
#include <exception>
#include <thread>
#include <utility>

#include "base/build_info.h"
#include "base/log.h"
#include "server/access.h"
#include "server/errors.h"
#include "server/http_server.h"
#include "server/router.h"
#include "server/server_state.h"

namespace sh::server {

std::string system_fingerprint() {
  return fmt::format("b{}-{}", build_info().build_number, build_info().commit);
}

struct Server::State : ServerState {
  std::unique_ptr<HttpServer> http;
  bool is_stopped = false;

  /// The path below --api-prefix, or nothing when it lies outside.
  std::optional<std::string_view> path_of(const HttpRequest& request) const {
    std::string_view path = request.path;
    const std::string& prefix = params.server.api_prefix;
    if (!path.starts_with(prefix)) return std::nullopt;
    return path.substr(prefix.size());
  }

  void handle(const std::shared_ptr<Exchange>& exchange) {
    const HttpRequest& request = exchange->request();
    set_cors_headers(*exchange);
    if (request.method == "OPTIONS") return answer_preflight(*exchange);
    const std::optional<std::string_view> path = path_of(request);
    RouteMatch match = path ? find_route(routes(), request.method, *path) : RouteMatch{};
    const bool is_public = match.route != nullptr && match.route->is_public;
    if (!is_public && !has_valid_key(request, params.server.api_keys))
      return exchange->respond(error_response(
          authentication_error("a valid API key is needed: send Authorization: Bearer KEY or X-Api-Key: KEY")));
    if (match.route == nullptr)
      return exchange->respond(
          error_response(match.allowed.empty() ? path_not_found(request.path)
                                               : method_not_allowed(request.method, request.path, match.allowed)));
    if (match.route->needs_model && !is_ready.load(std::memory_order_acquire))
      return exchange->respond(error_response(unavailable("Loading model")));
    // JSON and memory of a request may throw; no request may stop the server.
    try {
      match.route->handler(Call{*this, exchange, std::move(match.id)});
    } catch (const std::exception& exception) {
      log_error("srv  {} {}: {}", request.method, request.path, exception.what());
      exchange->respond(error_response(
          ApiError{500, "server_error", fmt::format("internal error: {}", exception.what()), {}, {}}));
    }
  }

  void log_access(const HttpRequest& request, int status, double seconds) const {
    const std::optional<std::string_view> path = path_of(request);
    const RouteMatch match = path ? find_route(routes(), request.method, *path) : RouteMatch{};
    if (match.route != nullptr && match.route->is_probe && status == 200) return;
    log_info("srv  {} {} {} {:.1f} ms", request.method, request.path.substr(0, 200),
             status == 0 ? std::string("hung up") : std::to_string(status), seconds * 1e3);
  }
};

Server::Server() : state_(std::make_unique<State>()) {}
Server::~Server() {
  stop();
}

Result<std::unique_ptr<Server>> Server::start(engine::ProgramParams params) {
  std::unique_ptr<Server> server(new Server());
  State& s = *server->state_;
  s.params = std::move(params);
  s.started_unix_seconds = std::time(nullptr);
  const engine::ServerParams& p = s.params.server;
  HttpOptions options;
  options.host = p.host;
  options.port = p.port;
  options.n_threads =
      p.n_threads > 0 ? p.n_threads : std::max(2, static_cast<int>(std::thread::hardware_concurrency()));
  options.max_body_bytes = p.max_body_bytes;
  options.timeout_seconds = p.timeout_seconds;
  SH_ASSIGN(s.http, HttpServer::start(
                        options, [&s](std::shared_ptr<Exchange> exchange) { s.handle(exchange); },
                        [&s](const HttpRequest& request, int status, double seconds) {
                          s.log_access(request, status, seconds);
                        }));
  return server;
}

void Server::set_ready(engine::Engine& engine, engine::Scheduler& scheduler) {
  state_->engine = &engine;
  state_->scheduler = &scheduler;
  const tokenizer::Tokenizer& tokenizer = engine.tokenizer();
  for (int32_t id = 0; id < tokenizer.n_vocab(); ++id)
    if (tokenizer.is_end_of_generation(id)) state_->end_tokens.push_back(id);
  state_->is_ready.store(true, std::memory_order_release);
}

int Server::port() const {
  return state_->http->port();
}
std::string Server::url() const {
  return state_->http->url() + state_->params.server.api_prefix;
}
void Server::stop() {
  if (!state_->http || std::exchange(state_->is_stopped, true)) return;  // the scheduler may be gone by now
  if (!state_->is_ready.load(std::memory_order_acquire)) return state_->http->stop({});
  // Answers that are being written are waited for, but no compaction: nothing is lost with it.
  state_->scheduler->cancel_compactions();
  state_->http->stop([this] { state_->scheduler->cancel_all(); });
}

}  // namespace sh::server
