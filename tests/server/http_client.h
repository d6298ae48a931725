// SPDX-License-Identifier: MIT
// A small blocking HTTP client for the tests: plain sockets, so that a test decides when bytes go and when the
// connection breaks.
#pragma once

#include <arpa/inet.h>
#include <fmt/format.h>
#include <gtest/gtest.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <unistd.h>

#include <map>
#include <string>
#include <string_view>

#include "base/json.h"

namespace sh::server {

struct ClientResponse {
  int status = 0;
  std::map<std::string, std::string> headers;  // names in lower case
  std::string body;

  Json json() const {
    Result<Json> parsed = parse_json(body);
    EXPECT_TRUE(parsed.ok()) << body;
    return parsed.ok() ? *parsed : Json::object();
  }
  std::string error_type() const { return json().value(Json::json_pointer("/error/type"), std::string()); }
  std::string error_message() const { return json().value(Json::json_pointer("/error/message"), std::string()); }
};

class Client {
 public:
  explicit Client(int port) {
    socket_ = ::socket(AF_INET, SOCK_STREAM, 0);
    sockaddr_in address{};
    address.sin_family = AF_INET;
    address.sin_port = htons(static_cast<uint16_t>(port));
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    const timeval limit{120, 0};  // a hanging server fails the test instead of the run
    setsockopt(socket_, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof(limit));
    EXPECT_EQ(::connect(socket_, reinterpret_cast<sockaddr*>(&address), sizeof(address)), 0);
  }
  ~Client() { hang_up(); }
  Client(const Client&) = delete;
  Client& operator=(const Client&) = delete;

  void hang_up() {
    if (socket_ >= 0) ::close(socket_);
    socket_ = -1;
  }

  void send(std::string_view bytes) {
    while (!bytes.empty()) {
      const ssize_t n = ::send(socket_, bytes.data(), bytes.size(), MSG_NOSIGNAL);
      if (n <= 0) return;
      bytes.remove_prefix(static_cast<size_t>(n));
    }
  }
  void send_request(const std::string& method, const std::string& target, const std::string& body,
                    const std::string& headers = "") {
    send(fmt::format("{} {} HTTP/1.1\r\nHost: localhost\r\n{}Content-Length: {}\r\n\r\n{}", method, target,
                     headers, body.size(), body));
  }

  /// One more read into the buffer; false at the end of the connection.
  bool fill() {
    char chunk[16384];
    const ssize_t n = ::recv(socket_, chunk, sizeof(chunk), 0);
    if (n <= 0) return false;
    buffer_.append(chunk, static_cast<size_t>(n));
    return true;
  }
  /// Everything up to and including `mark`, or what there is when the connection ends.
  std::string read_until(std::string_view mark) {
    size_t at;
    while ((at = buffer_.find(mark)) == std::string::npos)
      if (!fill()) return take(buffer_.size());
    return take(at + mark.size());
  }

  ClientResponse read_head() {
    ClientResponse response;
    const std::string head = read_until("\r\n\r\n");
    if (head.size() > 12) response.status = std::atoi(head.c_str() + 9);
    for (size_t begin = head.find("\r\n"); begin != std::string::npos && begin + 4 < head.size();
         begin = head.find("\r\n", begin + 2)) {
      const std::string line = head.substr(begin + 2, head.find("\r\n", begin + 2) - begin - 2);
      const size_t colon = line.find(": ");
      if (colon == std::string::npos) continue;
      std::string name = line.substr(0, colon);
      for (char& c : name) c = static_cast<char>(std::tolower(c));
      response.headers[name] = line.substr(colon + 2);
    }
    return response;
  }
  /// One chunk of a chunked body; "" at its end.
  std::string read_chunk() {
    const std::string size_line = read_until("\r\n");
    const size_t n = std::strtoul(size_line.c_str(), nullptr, 16);
    while (buffer_.size() < n + 2)
      if (!fill()) return "";
    std::string chunk = take(n);
    take(2);
    return chunk;
  }
  ClientResponse read_response(bool is_head_request = false) {
    ClientResponse response = read_head();
    if (response.headers.count("transfer-encoding")) {
      for (std::string chunk = read_chunk(); !chunk.empty(); chunk = read_chunk()) response.body += chunk;
    } else if (!is_head_request) {
      const size_t n = std::strtoul(response.headers["content-length"].c_str(), nullptr, 10);
      while (buffer_.size() < n && fill()) {
      }
      response.body = take(std::min(n, buffer_.size()));
    }
    return response;
  }
  ClientResponse request(const std::string& method, const std::string& target, const std::string& body = "",
                         const std::string& headers = "") {
    send_request(method, target, body, headers);
    return read_response(method == "HEAD");
  }
  bool is_at_end() { return buffer_.empty() && !fill(); }

 private:
  std::string take(size_t n) {
    std::string out = buffer_.substr(0, n);
    buffer_.erase(0, n);
    return out;
  }
  int socket_ = -1;
  std::string buffer_;
};

/// The JSON of every "data:" line of a stream except [DONE]; comment lines are left out.
inline std::vector<Json> sse_records(const std::string& body, bool* has_done = nullptr) {
  std::vector<Json> records;
  if (has_done != nullptr) *has_done = false;
  for (size_t begin = 0; begin < body.size();) {
    const size_t end = std::min(body.find("\n\n", begin), body.size());
    const std::string line = body.substr(begin, end - begin);
    begin = end + 2;
    if (line == "data: [DONE]") {
      if (has_done != nullptr) *has_done = true;
      EXPECT_GE(begin, body.size()) << "[DONE] is the last line";
    } else if (line.starts_with("data: ")) {
      Result<Json> json = parse_json(line.substr(6));
      EXPECT_TRUE(json.ok()) << line;
      if (json.ok()) records.push_back(*json);
    } else {
      EXPECT_TRUE(line.starts_with(":")) << line;
    }
  }
  return records;
}

}  // namespace sh::server
