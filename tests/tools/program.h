// SPDX-License-Identifier: MIT
// Runs the program as a user would.
#pragma once

#include <fcntl.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <fstream>
#include <iterator>
#include <string>
#include <vector>

namespace sh::tools {

inline const std::string kScribe = std::string(SH_SOURCE_DIR) + "/models/scribe.gguf";
inline const std::string kGolden = std::string(SH_SOURCE_DIR) + "/tests/golden/";

/// A path in the test's temporary folder, one of its own for every process and name.
inline std::string temporary(const std::string& name) {
  return testing::TempDir() + "shorthand_" + std::to_string(getpid()) + "_" + name;
}

inline std::string slurp(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), {}};
}

struct Outcome {
  int status = -1;  // exit status; 128 + signal for a program that a signal ended
  std::string out, err;
};

/// The program while it runs.
class RunningProgram {
 public:
  explicit RunningProgram(const std::vector<std::string>& arguments, const std::string& input = "")
      : in_path_(temporary("in")), out_path_(temporary("out")), err_path_(temporary("err")) {
    std::ofstream(in_path_, std::ios::binary) << input;
    std::ofstream(out_path_, std::ios::binary);
    std::string program = SH_PROGRAM;
    std::vector<std::string> copies = arguments;
    std::vector<char*> argv = {program.data()};
    for (std::string& argument : copies) argv.push_back(argument.data());
    argv.push_back(nullptr);
    child_ = fork();
    if (child_ != 0) return;
    dup2(open(in_path_.c_str(), O_RDONLY), STDIN_FILENO);
    dup2(open(out_path_.c_str(), O_WRONLY | O_TRUNC), STDOUT_FILENO);
    dup2(open(err_path_.c_str(), O_WRONLY | O_CREAT | O_TRUNC, 0600), STDERR_FILENO);
    execv(argv[0], argv.data());
    _exit(127);
  }
  void wait_for_output() const {
    for (int i = 0; i < 6000 && slurp(out_path_).empty(); ++i) usleep(5000);
  }
  void send(int signal) const { kill(child_, signal); }
  Outcome finish() const {
    int status = 0;
    waitpid(child_, &status, 0);
    Outcome outcome{WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status), slurp(out_path_),
                    slurp(err_path_)};
    for (const std::string& path : {in_path_, out_path_, err_path_}) unlink(path.c_str());
    return outcome;
  }

 private:
  std::string in_path_, out_path_, err_path_;
  pid_t child_ = -1;
};

/// The program with these arguments and this standard input, run to its end.
inline Outcome run_program(const std::vector<std::string>& arguments, const std::string& input = "") {
  return RunningProgram(arguments, input).finish();
}

/// What a successful run prints to stdout.
inline std::string output_of(const std::vector<std::string>& arguments, const std::string& input = "") {
  const Outcome outcome = run_program(arguments, input);
  EXPECT_EQ(outcome.status, 0) << outcome.err;
  return outcome.out;
}

inline bool contains(const std::string& text, const std::string& part) {
  return text.find(part) != std::string::npos;
}

}  // namespace sh::tools
