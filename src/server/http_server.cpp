// SPDX-License-Identifier: MIT
#include "server/http_server.h"

#include <fmt/format.h>

#include <atomic>
#include <boost/asio.hpp>
#include <boost/beast/core/flat_buffer.hpp>
#include <boost/beast/http.hpp>
#include <condition_variable>
#include <deque>
#include <filesystem>
#include <mutex>
#include <set>
#include <thread>

#include "base/clock.h"
#include "base/log.h"
#include "server/errors.h"

namespace sh::server {
namespace {

namespace asio = boost::asio;
namespace http = boost::beast::http;
using boost::system::error_code;
using Protocol = asio::generic::stream_protocol;  // TCP and Unix sockets alike
using Socket = Protocol::socket;
using Acceptor = asio::basic_socket_acceptor<Protocol>;

constexpr size_t kMaxHeaderBytes = 64 << 10;
constexpr size_t kReadAheadBytes = 64 << 10;  // of a next request that arrives while one is being answered
constexpr int kLingerSeconds = 2;

class Connection;

/// What connections share with the server.
struct Shared {
  HttpOptions options;
  HttpServer::Handler handler;
  HttpServer::OnDone on_done;
  std::atomic<bool> is_stopping{false};

  std::mutex mutex;
  std::condition_variable changed;
  std::set<Connection*> connections;  // each removes itself when it is destroyed
  std::function<void()> on_room;      // accepting goes on
};

/// The exchange of one request; a late call cannot reach the connection's next one.
class ConnectionExchange : public Exchange, public std::enable_shared_from_this<ConnectionExchange> {
 public:
  ConnectionExchange(std::shared_ptr<Connection> connection, HttpRequest request, bool is_http_1_0)
      : connection_(std::move(connection)), request_(std::move(request)), is_http_1_0_(is_http_1_0) {}

  const HttpRequest& request() const override { return request_; }
  void post(std::function<void()> fn) override;
  void set_header(std::string name, std::string value) override {
    extra_headers_ += fmt::format("{}: {}\r\n", name, value);
  }
  void respond(HttpResponse response) override;
  void begin_stream(std::string content_type) override;
  void write(std::string bytes) override;
  void end_stream() override;
  void ping_every(int seconds, std::string text) override;
  void on_hang_up(std::function<void()> fn) override {
    if (state_ != State::ended) hang_up_ = std::move(fn);
  }

  void hang_up();
  bool is_stream() const { return state_ == State::streaming; }

 private:
  enum class State { waiting, streaming, ended };
  void end();
  void arm_ping();
  std::string head(int status, const std::string& content_type, std::string_view length_header);

  std::shared_ptr<Connection> connection_;
  const HttpRequest request_;
  const bool is_http_1_0_;
  const Stopwatch watch_;
  State state_ = State::waiting;
  int status_ = 0;
  std::string extra_headers_;
  std::function<void()> hang_up_;
  std::unique_ptr<asio::steady_timer> ping_timer_;
  int ping_seconds_ = 0;
  std::string ping_text_;
};

/// One client. All members run on its strand (the executor of its socket).
class Connection : public std::enable_shared_from_this<Connection> {
 public:
  Connection(Socket socket, std::shared_ptr<Shared> shared)
      : shared_(std::move(shared)), socket_(std::move(socket)), deadline_(socket_.get_executor()) {
    std::lock_guard lock(shared_->mutex);
    shared_->connections.insert(this);
  }
  ~Connection() {
    std::function<void()> on_room;
    {
      std::lock_guard lock(shared_->mutex);
      shared_->connections.erase(this);
      on_room = shared_->on_room;
      shared_->changed.notify_all();
    }
    if (on_room) on_room();
  }

  Socket::executor_type executor() { return socket_.get_executor(); }
  void start() { read_request(); }
  bool keeps_alive() const { return keeps_alive_ && !shared_->is_stopping; }
  void must_close() { keeps_alive_ = false; }
  Shared& shared() { return *shared_; }

  /// Queues bytes; `is_last` ends the answer.
  void send(std::string bytes, bool is_last) {
    if (is_closed_) return;
    n_queued_ += bytes.size();
    if (!bytes.empty()) queue_.push_back(std::move(bytes));
    is_answer_complete_ = is_answer_complete_ || is_last;
    if (exchange_ && exchange_->is_stream() &&
        n_queued_ > static_cast<size_t>(shared_->options.max_queued_bytes)) {
      log_warning("srv  a client left {} bytes of its stream unread; hanging up", n_queued_);
      return hang_up();
    }
    if (!is_writing_) write_next();
  }

  /// Closes an idle connection; one that answers a request closes when it is done.
  void close_if_idle() {
    if (!exchange_ && !is_writing_) hang_up();
  }

  void hang_up() {
    if (is_closed_) return;
    is_closed_ = true;
    disarm();
    error_code ignored;
    socket_.close(ignored);
    queue_.clear();
    if (const auto exchange = std::move(exchange_)) exchange->hang_up();
  }

 private:
  using Parser = http::request_parser<http::string_body>;

  // ---- reading ----

  void read_request() {
    keeps_alive_ = true;
    parser_ = std::make_unique<Parser>();
    parser_->header_limit(static_cast<uint32_t>(kMaxHeaderBytes));
    parser_->body_limit(static_cast<uint64_t>(shared_->options.max_body_bytes));
    arm(shared_->options.idle_seconds);
    http::async_read_header(socket_, buffer_, *parser_, [self = shared_from_this()](error_code error, size_t) {
      if (error) return self->refuse(error);
      if (!self->parser_->is_done() &&
          self->parser_->get().find(http::field::expect) != self->parser_->get().end())
        self->send_continue();
      else
        self->read_body();
    });
  }

  void send_continue() {
    static constexpr std::string_view kContinue = "HTTP/1.1 100 Continue\r\n\r\n";
    asio::async_write(socket_, asio::buffer(kContinue), [self = shared_from_this()](error_code error, size_t) {
      error ? self->hang_up() : self->read_body();
    });
  }

  void read_body() {
    if (parser_->is_done()) return dispatch();
    arm(shared_->options.timeout_seconds);
    http::async_read_some(socket_, buffer_, *parser_, [self = shared_from_this()](error_code error, size_t) {
      error ? self->refuse(error) : self->read_body();
    });
  }

  /// Answers what can be answered of a request that could not be read, and closes.
  void refuse(error_code error) {
    if (is_closed_) return;
    keeps_alive_ = false;
    if (error == http::error::body_limit) return refuse(body_too_large(shared_->options.max_body_bytes));
    if (error == http::error::header_limit || error == http::error::buffer_overflow) {
      ApiError too_long =
          malformed_http(fmt::format("the request headers are longer than {} bytes", kMaxHeaderBytes));
      too_long.status = 431;
      return refuse(too_long);
    }
    const bool is_http_error = error.category() == http::make_error_code(http::error::bad_method).category();
    if (!is_http_error || error == http::error::end_of_stream || error == http::error::partial_message)
      return hang_up();
    refuse(malformed_http(fmt::format("malformed HTTP: {}", error.message())));
  }
  void refuse(const ApiError& error) {
    exchange_ = std::make_shared<ConnectionExchange>(shared_from_this(), HttpRequest{}, false);
    exchange_->respond(error_response(error));
  }

  void dispatch() {
    disarm();
    auto message = parser_->release();
    parser_.reset();
    keeps_alive_ = message.keep_alive();
    HttpRequest request;
    request.method = std::string(message.method_string());
    parse_target(std::string_view(message.target().data(), message.target().size()), request);
    for (const auto& field : message) {
      std::string name(field.name_string());
      for (char& c : name)
        if (c >= 'A' && c <= 'Z') c = static_cast<char>(c - 'A' + 'a');
      request.headers.emplace(std::move(name), std::string(field.value()));
    }
    request.body = std::move(message.body());
    exchange_ =
        std::make_shared<ConnectionExchange>(shared_from_this(), std::move(request), message.version() < 11);
    watch_for_hang_up();
    shared_->handler(exchange_);
  }

  /// A read that stays pending while the answer is made: it ends when the client closes, and keeps what arrives
  /// early.
  void watch_for_hang_up() {
    if (is_closed_ || buffer_.size() >= kReadAheadBytes) return;
    is_watching_ = true;
    socket_.async_read_some(buffer_.prepare(kReadAheadBytes - buffer_.size()),
                            [self = shared_from_this()](error_code error, size_t n) {
                              self->is_watching_ = false;
                              if (self->is_closed_) return;
                              if (!error) self->buffer_.commit(n);
                              if (error && error != asio::error::operation_aborted) return self->hang_up();
                              if (self->waits_for_watch_) {
                                self->waits_for_watch_ = false;
                                self->read_request();
                              } else {
                                self->watch_for_hang_up();
                              }
                            });
  }

  // ---- writing ----

  void write_next() {
    if (queue_.empty()) {
      if (is_answer_complete_) finish_answer();
      return;
    }
    is_writing_ = true;
    arm(shared_->options.timeout_seconds);
    asio::async_write(socket_, asio::buffer(queue_.front()),
                      [self = shared_from_this()](error_code error, size_t) {
                        self->is_writing_ = false;
                        if (self->is_closed_) return;
                        if (error) return self->hang_up();
                        self->disarm();
                        self->n_queued_ -= self->queue_.front().size();
                        self->queue_.pop_front();
                        self->write_next();
                      });
  }

  void finish_answer() {
    is_answer_complete_ = false;
    exchange_.reset();
    if (!keeps_alive()) return linger();
    if (!is_watching_) return read_request();
    waits_for_watch_ = true;
    error_code ignored;
    socket_.cancel(ignored);
  }

  /// Closes so that the answer arrives: with unread input a plain close would reset the connection and could
  /// destroy it.
  void linger() {
    error_code error;
    socket_.shutdown(Socket::shutdown_send, error);
    if (error) return hang_up();
    arm(kLingerSeconds);
    discard_input();
  }
  void discard_input() {
    if (is_watching_) {  // the watching read runs into the end of the input, or the deadline closes
      buffer_.consume(buffer_.size());
      return;
    }
    buffer_.consume(buffer_.size());
    socket_.async_read_some(buffer_.prepare(kReadAheadBytes),
                            [self = shared_from_this()](error_code error, size_t) {
                              if (self->is_closed_) return;
                              error ? self->hang_up() : self->discard_input();
                            });
  }

  // ---- deadline of the operation that runs ----

  void arm(int seconds) {
    const uint64_t generation = ++deadline_generation_;
    deadline_.expires_after(std::chrono::seconds(seconds));
    deadline_.async_wait([weak = weak_from_this(), generation](error_code error) {
      const auto self = weak.lock();
      if (!error && self && generation == self->deadline_generation_) self->hang_up();
    });
  }
  void disarm() {
    ++deadline_generation_;
    deadline_.cancel();
  }

  std::shared_ptr<Shared> shared_;
  Socket socket_;
  asio::steady_timer deadline_;
  uint64_t deadline_generation_ = 0;
  boost::beast::flat_buffer buffer_;
  std::unique_ptr<Parser> parser_;
  std::shared_ptr<ConnectionExchange> exchange_;
  std::deque<std::string> queue_;
  size_t n_queued_ = 0;
  bool keeps_alive_ = true;
  bool is_writing_ = false, is_watching_ = false, waits_for_watch_ = false;
  bool is_answer_complete_ = false, is_closed_ = false;
};

// ---- ConnectionExchange ----

void ConnectionExchange::post(std::function<void()> fn) {
  asio::post(connection_->executor(), std::move(fn));
}

std::string ConnectionExchange::head(int status, const std::string& content_type, std::string_view length_header) {
  status_ = status;
  return fmt::format("HTTP/1.1 {} {}\r\nServer: shorthand\r\nContent-Type: {}\r\n{}{}Connection: {}\r\n\r\n",
                     status, reason_phrase(status), content_type, extra_headers_, length_header,
                     connection_->keeps_alive() ? "keep-alive" : "close");
}

void ConnectionExchange::respond(HttpResponse response) {
  if (state_ != State::waiting) return;
  std::string bytes =
      head(response.status, response.content_type, fmt::format("Content-Length: {}\r\n", response.body.size()));
  if (request_.method != "HEAD") bytes += response.body;
  end();
  connection_->send(std::move(bytes), true);
}

void ConnectionExchange::begin_stream(std::string content_type) {
  if (state_ != State::waiting) return;
  if (is_http_1_0_) connection_->must_close();
  std::string bytes = head(
      200, content_type,
      is_http_1_0_ ? "Cache-Control: no-cache\r\n" : "Cache-Control: no-cache\r\nTransfer-Encoding: chunked\r\n");
  state_ = State::streaming;
  connection_->send(std::move(bytes), false);
  arm_ping();
}

void ConnectionExchange::write(std::string bytes) {
  if (state_ != State::streaming || bytes.empty()) return;
  connection_->send(is_http_1_0_ ? std::move(bytes) : fmt::format("{:x}\r\n{}\r\n", bytes.size(), bytes), false);
  arm_ping();
}

void ConnectionExchange::end_stream() {
  if (state_ != State::streaming) return;
  end();
  connection_->send(is_http_1_0_ ? "" : "0\r\n\r\n", true);
}

void ConnectionExchange::ping_every(int seconds, std::string text) {
  ping_seconds_ = seconds;
  ping_text_ = std::move(text);
  arm_ping();
}

void ConnectionExchange::arm_ping() {
  if (ping_seconds_ <= 0 || state_ != State::streaming) return;
  if (!ping_timer_) ping_timer_ = std::make_unique<asio::steady_timer>(connection_->executor());
  ping_timer_->expires_after(std::chrono::seconds(ping_seconds_));
  ping_timer_->async_wait([weak = weak_from_this()](error_code error) {
    const auto self = weak.lock();
    if (!error && self) self->write(self->ping_text_);
  });
}

void ConnectionExchange::end() {
  state_ = State::ended;
  hang_up_ = nullptr;
  ping_timer_.reset();
  if (const auto& on_done = connection_->shared().on_done) on_done(request_, status_, watch_.seconds());
}

void ConnectionExchange::hang_up() {
  if (state_ == State::ended) return;
  const std::function<void()> fn = std::move(hang_up_);
  end();
  if (fn) fn();
}

Result<Protocol::endpoint> endpoint_of(asio::io_context& io, const HttpOptions& options) {
  constexpr std::string_view kUnixEnding = ".sock";
  if (options.host.size() > kUnixEnding.size() && options.host.ends_with(kUnixEnding)) {
    if (options.host.size() >= sizeof(sockaddr_un::sun_path))
      return Error{ErrorKind::invalid_argument, fmt::format("--host: the socket path is longer than {} bytes",
                                                            sizeof(sockaddr_un::sun_path) - 1)};
    return Protocol::endpoint(asio::local::stream_protocol::endpoint(options.host));
  }
  asio::ip::tcp::resolver resolver(io);
  error_code error;
  const auto found =
      resolver.resolve(options.host, std::to_string(options.port), asio::ip::tcp::resolver::passive, error);
  if (error || found.empty())
    return Error{ErrorKind::io, fmt::format("--host: cannot resolve '{}': {}", options.host, error.message())};
  return Protocol::endpoint(found.begin()->endpoint());
}

}  // namespace

struct HttpServer::State {
  asio::io_context io;
  std::shared_ptr<Shared> shared = std::make_shared<Shared>();
  Acceptor acceptor{
      io};  // used on one thread at a time: start(), then its own chain of handlers, then stop() through post
  asio::strand<asio::io_context::executor_type> acceptor_strand{asio::make_strand(io)};
  asio::steady_timer retry{acceptor_strand};
  bool is_accepting = false;
  std::optional<asio::executor_work_guard<asio::io_context::executor_type>> work;
  std::vector<std::thread> threads;
  std::string unix_path;
  int port = 0;

  Result<void> listen() {
    SH_ASSIGN(const Protocol::endpoint endpoint, endpoint_of(io, shared->options));
    const bool is_unix = endpoint.protocol().family() == AF_UNIX;
    const std::string& host = shared->options.host;
    const std::string where = is_unix ? host : fmt::format("{}:{}", host, shared->options.port);
    if (is_unix) {
      unix_path = host;
      std::error_code ignored;
      if (std::filesystem::is_socket(unix_path, ignored))
        std::filesystem::remove(unix_path, ignored);  // of a server that was killed
    }
    error_code error;
    acceptor.open(endpoint.protocol(), error);
    if (!error && !is_unix) acceptor.set_option(asio::socket_base::reuse_address(true), error);
    if (!error) acceptor.bind(endpoint, error);
    if (!error) acceptor.listen(asio::socket_base::max_listen_connections, error);
    if (error)
      return Error{ErrorKind::io, fmt::format("cannot listen on {}: {}; choose another --host or --port", where,
                                              error.message())};
    if (!is_unix) {
      const Protocol::endpoint bound = acceptor.local_endpoint();
      port = endpoint.protocol().family() == AF_INET6
                 ? ntohs(reinterpret_cast<const sockaddr_in6*>(bound.data())->sin6_port)
                 : ntohs(reinterpret_cast<const sockaddr_in*>(bound.data())->sin_port);
    }
    return {};
  }

  /// On the acceptor's strand.
  void accept() {
    if (is_accepting || !acceptor.is_open() || !has_room()) return;
    is_accepting = true;
    auto socket = std::make_shared<Socket>(asio::make_strand(io));
    acceptor.async_accept(*socket, asio::bind_executor(acceptor_strand, [this, socket](error_code error) {
      is_accepting = false;
      if (!acceptor.is_open()) return;
      if (error) {  // out of file descriptors, say: pause, so as not to spin
        log_warning("srv  cannot accept a connection: {}", error.message());
        retry.expires_after(std::chrono::milliseconds(200));
        retry.async_wait([this](error_code cancelled) {
          if (!cancelled) accept();
        });
        return;
      }
      if (port != 0) {
        error_code ignored;
        socket->set_option(asio::ip::tcp::no_delay(true), ignored);
      }
      auto connection = std::make_shared<Connection>(std::move(*socket), shared);
      asio::post(connection->executor(), [connection] { connection->start(); });
      accept();
    }));
  }
  bool has_room() {
    std::lock_guard lock(shared->mutex);
    return static_cast<int64_t>(shared->connections.size()) < shared->options.max_connections;
  }

  void serve() {
    for (;;) {
      try {
        io.run();
        return;
      } catch (const std::exception& exception) {  // out of memory in a posted function, say: the others go on
        log_error("srv  {}", exception.what());
      }
    }
  }

  void each_connection(void (*fn)(Connection&)) {
    std::lock_guard lock(shared->mutex);
    for (Connection* connection : shared->connections)
      // The destructor waits for this mutex, so a weak pointer can be taken; it is empty when destruction has
      // begun.
      if (const std::weak_ptr<Connection> weak = connection->weak_from_this(); !weak.expired())
        asio::post(connection->executor(), [weak, fn] {
          if (const auto self = weak.lock()) fn(*self);
        });
  }
  bool wait_until_empty(std::chrono::seconds limit) {
    std::unique_lock lock(shared->mutex);
    return shared->changed.wait_for(lock, limit, [&] { return shared->connections.empty(); });
  }
};

HttpServer::HttpServer() : state_(std::make_unique<State>()) {}
HttpServer::~HttpServer() {
  stop();
}

Result<std::unique_ptr<HttpServer>> HttpServer::start(const HttpOptions& options, Handler handler,
                                                      OnDone on_done) {
  std::unique_ptr<HttpServer> server(new HttpServer());
  State& s = *server->state_;
  s.shared->options = options;
  s.shared->handler = std::move(handler);
  s.shared->on_done = std::move(on_done);
  s.shared->on_room = [&s] { asio::post(s.acceptor_strand, [&s] { s.accept(); }); };
  SH_RETURN_IF_ERROR(s.listen());
  s.work.emplace(s.io.get_executor());
  asio::post(s.acceptor_strand, [&s] { s.accept(); });
  for (int i = 0; i < std::max(1, options.n_threads); ++i) s.threads.emplace_back([&s] { s.serve(); });
  return server;
}

int HttpServer::port() const {
  return state_->port;
}

std::string HttpServer::url() const {
  if (!state_->unix_path.empty()) return "unix:" + state_->unix_path;
  const std::string& host = state_->shared->options.host;
  const bool is_v6 = host.find(':') != std::string::npos;
  return fmt::format("http://{}{}{}:{}", is_v6 ? "[" : "", host, is_v6 ? "]" : "", state_->port);
}

void HttpServer::stop(const std::function<void()>& end_running) {
  State& s = *state_;
  if (s.threads.empty()) return;
  s.shared->is_stopping = true;
  asio::post(s.acceptor_strand, [&s] {
    error_code ignored;
    s.acceptor.close(ignored);
    s.retry.cancel();
  });
  s.each_connection([](Connection& connection) { connection.close_if_idle(); });
  const auto linger = std::chrono::seconds(kLingerSeconds);
  bool is_empty = s.wait_until_empty(std::chrono::seconds(s.shared->options.drain_seconds));
  if (!is_empty && end_running) {
    end_running();
    is_empty = s.wait_until_empty(linger);
  }
  if (!is_empty) {
    s.each_connection([](Connection& connection) { connection.hang_up(); });
    s.wait_until_empty(linger);
  }
  {
    std::lock_guard lock(s.shared->mutex);
    s.shared->on_room = nullptr;
  }
  s.work.reset();
  s.io.stop();
  for (std::thread& thread : s.threads) thread.join();
  s.threads.clear();
  std::error_code ignored;
  if (!s.unix_path.empty()) std::filesystem::remove(s.unix_path, ignored);
}

}  // namespace sh::server
