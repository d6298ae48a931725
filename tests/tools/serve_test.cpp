// SPDX-License-Identifier: MIT
// `shorthand serve` as a process: start-up line, signals, exit codes.
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <string>
#include <vector>

#include "server/http_client.h"

namespace sh {
namespace {

/// The program, with its stderr in a pipe.
class Process {
 public:
  explicit Process(std::vector<std::string> arguments) {
    int ends[2];
    EXPECT_EQ(::pipe(ends), 0);
    id_ = ::fork();
    if (id_ == 0) {
      ::dup2(ends[1], STDERR_FILENO);
      ::close(ends[0]);
      ::close(ends[1]);
      std::vector<char*> argv = {const_cast<char*>(SH_PROGRAM)};
      for (std::string& argument : arguments) argv.push_back(argument.data());
      argv.push_back(nullptr);
      ::execv(SH_PROGRAM, argv.data());
      ::_exit(127);
    }
    ::close(ends[1]);
    log_ = ends[0];
  }
  ~Process() {
    ::close(log_);
    if (id_ > 0) {
      ::kill(id_, SIGKILL);
      ::waitpid(id_, nullptr, 0);
    }
  }

  /// The log up to a line with `mark`, or all of it.
  std::string read_log_until(const std::string& mark) {
    std::string text;
    char byte;
    while (::read(log_, &byte, 1) == 1) {
      text += byte;
      if (byte == '\n' && text.find(mark) != std::string::npos) break;
    }
    return text;
  }
  void send_signal(int signal) { ::kill(id_, signal); }
  int exit_code() {
    int status = 0;
    ::waitpid(id_, &status, 0);
    id_ = -1;
    return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
  }

 private:
  pid_t id_ = -1;
  int log_ = -1;
};

std::vector<std::string> serve_arguments() {
  return {"serve", "-m", std::string(SH_SOURCE_DIR) + "/models/scribe.gguf", "-c", "4096", "--port", "0"};
}
int port_in(const std::string& log) {
  const size_t at = log.find("listening on http://127.0.0.1:");
  return at == std::string::npos ? 0 : std::atoi(log.c_str() + at + 30);
}

TEST(Serve, SaysWhereItListensAndEndsOnASignal) {
  for (const int signal : {SIGTERM, SIGINT}) {
    Process process(serve_arguments());
    const std::string log = process.read_log_until("listening on");
    for (const char* word : {"kernels", "memory", "context", "/v1/chat/completions", "/compact"})
      EXPECT_NE(log.find(word), std::string::npos) << word;
    EXPECT_NE(log.find("\"method\": \"self_study\", \"ratio\": 4"), std::string::npos) << log;
    EXPECT_EQ(log.find("next to nothing to do"), std::string::npos) << log;
    const int port = port_in(log);
    ASSERT_GT(port, 0) << log;
    EXPECT_EQ(server::Client(port).request("GET", "/health").status, 200);
    process.send_signal(signal);
    EXPECT_EQ(process.exit_code(), 0);
  }
}

TEST(Serve, WarnsOfFlagsThatLeaveNothingToCompact) {
  std::vector<std::string> arguments = serve_arguments();
  for (const char* part : {"--compact-threshold", "0.9", "--compact-keep", "4000"}) arguments.emplace_back(part);
  Process process(arguments);
  EXPECT_NE(process.read_log_until("listening on").find("hold 4000 of the 4096 rows"), std::string::npos);
}

TEST(Serve, ASecondSignalEndsAtOnceWithOne) {
  Process process(serve_arguments());
  server::Client client(port_in(process.read_log_until("listening on")));
  client.send_request("POST", "/completion", R"({"prompt": "x", "ignore_eos": true, "stream": true})");
  EXPECT_EQ(client.read_head().status, 200);
  process.send_signal(SIGTERM);
  process.read_log_until("stopping");
  process.send_signal(SIGINT);
  EXPECT_EQ(process.exit_code(), 1) << "the running stream would have held it up";
}

TEST(Serve, ErrorsGoToStderrWithExitCodeOne) {
  const std::vector<std::pair<std::vector<std::string>, std::string>> bad = {
      {{"serve"}, "-m FILE"},
      {{"serve", "--prot", "5"}, "did you mean --port"},
      {{"serve", "-m", "no_such.gguf", "--port", "0"}, "no_such.gguf"},
      {{"serve", "-m", SH_PROGRAM, "--port", "0"}, SH_PROGRAM},
      {{"serve", "-m", "x", "--host", "no.such.host.invalid"}, "no.such.host.invalid"}};
  for (const auto& [arguments, what] : bad) {
    Process process(arguments);
    const std::string log = process.read_log_until("\1");
    EXPECT_EQ(process.exit_code(), 1) << what;
    EXPECT_NE(log.find(what), std::string::npos) << log;
  }
}

}  // namespace
}  // namespace sh
