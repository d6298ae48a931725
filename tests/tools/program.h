// SPDX-License-Identifier: MIT
// Runs the program as a user would.
#pragma once

#include <fcntl.h>
#include <gtest/gtest.h>
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
inline std::string temporary(const std::string& name) { return testing::TempDir() + "shorthand_" + std::to_string(getpid()) + "_" + name; }

inline std::string slurp(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), {}};
}

struct Outcome {
  int status = -1;  // exit status; 128 + signal for a program that a signal ended
  std::string out, err;
};

/// The program with these arguments and this standard input.
inline Outcome run_program(const std::vector<std::string>& arguments, const std::string& input = "") {
  const std::string in_path = temporary("in"), out_path = temporary("out"), err_path = temporary("err");
  std::ofstream(in_path, std::ios::binary) << input;
  std::vector<char*> argv;
  std::string program = SH_PROGRAM;
  argv.push_back(program.data());
  std::vector<std::string> copies = arguments;
  for (std::string& argument : copies) argv.push_back(argument.data());
  argv.push_back(nullptr);
  const pid_t child = fork();
  if (child == 0) {
    dup2(open(in_path.c_str(), O_RDONLY), STDIN_FILENO);
    dup2(open(out_path.c_str(), O_WRONLY | O_CREAT | O_TRUNC, 0600), STDOUT_FILENO);
    dup2(open(err_path.c_str(), O_WRONLY | O_CREAT | O_TRUNC, 0600), STDERR_FILENO);
    execv(argv[0], argv.data());
    _exit(127);
  }
  int status = 0;
  waitpid(child, &status, 0);
  Outcome outcome{WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status), slurp(out_path), slurp(err_path)};
  for (const std::string& path : {in_path, out_path, err_path}) unlink(path.c_str());
  return outcome;
}

/// What a successful run prints to stdout.
inline std::string output_of(const std::vector<std::string>& arguments, const std::string& input = "") {
  const Outcome outcome = run_program(arguments, input);
  EXPECT_EQ(outcome.status, 0) << outcome.err;
  return outcome.out;
}

inline bool contains(const std::string& text, const std::string& part) { return text.find(part) != std::string::npos; }

}  // namespace sh::tools
