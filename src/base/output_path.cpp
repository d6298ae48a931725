// SPDX-License-Identifier: MIT
#include "base/output_path.h"

#include <fmt/format.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <filesystem>

namespace sh {

std::string end_of_links(const std::string& path) {
  constexpr int kMaxLinks = 40;  // as Linux has it: links in a circle end somewhere
  std::filesystem::path at = path;
  std::error_code code;
  for (int i = 0; i < kMaxLinks && std::filesystem::is_symlink(at, code); ++i) {
    const std::filesystem::path target = std::filesystem::read_symlink(at, code);
    if (code) break;
    at = target.is_absolute() ? target : at.parent_path() / target;
  }
  return at.string();
}

bool is_special_file(const std::string& path) {
  struct stat info {};
  return ::stat(path.c_str(), &info) == 0 && !S_ISREG(info.st_mode) && !S_ISDIR(info.st_mode);
}

Result<void> check_writable(const std::string& path) {
  const auto refused = [&](int code) {
    return Error{ErrorKind::io, fmt::format("cannot write '{}': {}", path, std::strerror(code))};
  };
  struct stat info {};
  const bool is_there = ::stat(path.c_str(), &info) == 0;
  if (!is_there && errno != ENOENT && errno != ENOTDIR) return refused(errno);  // links in a circle
  if (is_there && ::access(path.c_str(), W_OK) != 0) return refused(errno);
  if (is_there && S_ISDIR(info.st_mode)) return refused(EISDIR);
  if (is_there && !S_ISREG(info.st_mode)) return {};
  const std::filesystem::path target = end_of_links(path);
  std::error_code code;
  const std::filesystem::path folder = target.has_parent_path() ? target.parent_path() : ".";
  if (!std::filesystem::is_directory(folder, code))
    return Error{ErrorKind::not_found,
                 fmt::format("cannot write '{}': there is no folder '{}'; make it first", path, folder.string())};
  if (::access(folder.c_str(), W_OK | X_OK) != 0) return refused(errno);
  return {};
}

}  // namespace sh
