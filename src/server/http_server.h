// SPDX-License-Identifier: MIT
// Listener and connections: HTTP/1.1 with keep-alive, limits, timeouts and notice of clients that hang up.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>

#include "base/result.h"
#include "server/http.h"

namespace sh::server {

struct HttpOptions {
  std::string host = "127.0.0.1";  // a path ending in .sock listens on a Unix socket
  int port = 0;                    // 0: any free one
  int n_threads = 2;
  int64_t max_body_bytes = int64_t{64} << 20;
  int64_t max_queued_bytes = int64_t{8} << 20;  // of a stream that its client does not read
  int64_t max_connections = 512;                // more wait in the listen queue
  int idle_seconds = 65;       // of a kept-alive connection, and until the headers of a request are complete
  int timeout_seconds = 3600;  // a body or an answer that makes no progress
  int drain_seconds = 5;       // that stop() gives running requests
};

class HttpServer {
 public:
  using Handler = std::function<void(std::shared_ptr<Exchange>)>;
  using OnDone = std::function<void(const HttpRequest& request, int status, double seconds)>;

  /// Listens from now on; `handler` runs on the server's threads, one request of a connection at a time. `on_done`
  /// may be empty; a status of 0 tells of a client that left before the answer began. Errors: io, naming address
  /// and port.
  static Result<std::unique_ptr<HttpServer>> start(const HttpOptions& options, Handler handler, OnDone on_done);
  ~HttpServer();  // stop()

  int port() const;
  /// "http://127.0.0.1:8080"
  std::string url() const;
  /// Accepts no more, closes idle connections, lets running requests go on for drain_seconds. For what is left
  /// then `end_running` is to see to an answer; who has none two seconds later is hung up on. Threads: not from a
  /// handler.
  void stop(const std::function<void()>& end_running = {});

 private:
  HttpServer();
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace sh::server
