// SPDX-License-Identifier: MIT
// One HTTP request and the way to answer it, without the library underneath.
#pragma once

#include <functional>
#include <map>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace sh::server {

struct HttpRequest {
  std::string method;                          // "GET"
  std::string path;                            // percent-decoded, without the query
  std::map<std::string, std::string> query;    // percent-decoded
  std::map<std::string, std::string> headers;  // names in lower case; a repeated one keeps its first value
  std::string body;

  /// The value, or "" when the header is absent.
  std::string_view header(const std::string& lower_case_name) const;
};

/// Splits a request target into path and query. Invalid escapes stay as they are.
void parse_target(std::string_view target, HttpRequest& request);

struct HttpResponse {
  int status = 200;
  std::string content_type = "application/json; charset=utf-8";
  std::string body;
};
const char* reason_phrase(int status);

/// One request that is being answered: either respond(), or begin_stream(), write()..., end_stream().
/// Threads: post() from any; everything else on the connection's strand, where handlers and posted functions run.
/// Calls after the end or after the client hung up do nothing.
class Exchange {
 public:
  virtual ~Exchange() = default;
  virtual const HttpRequest& request() const = 0;
  /// Runs fn on the strand, soon; never in the calling function.
  virtual void post(std::function<void()> fn) = 0;

  /// Adds a header to the answer.
  virtual void set_header(std::string name, std::string value) = 0;
  virtual void respond(HttpResponse response) = 0;
  /// Sends the status line and headers of a stream of unknown length.
  virtual void begin_stream(std::string content_type) = 0;
  /// Queues bytes. A client that does not read is hung up on when too much waits.
  virtual void write(std::string bytes) = 0;
  virtual void end_stream() = 0;
  /// Writes `text` whenever a begun stream was silent that long.
  virtual void ping_every(int seconds, std::string text) = 0;

  /// Called once if the connection breaks before the answer is complete.
  virtual void on_hang_up(std::function<void()> fn) = 0;
};

}  // namespace sh::server
