// SPDX-License-Identifier: MIT
#include "tools/check_outputs.h"

#include <fmt/format.h>

#include <filesystem>

#include "base/output_path.h"

namespace sh::tools {

namespace {

std::string canonical(const std::string& path) {
  std::error_code code;
  const std::filesystem::path whole = std::filesystem::weakly_canonical(end_of_links(path), code);
  return code ? path : whole.string();
}

}  // namespace

void add_named(std::vector<NamedPath>& all, const char* flag, const std::vector<std::string>& paths) {
  for (const std::string& path : paths) all.emplace_back(flag, path);
}

Result<void> check_outputs(const std::vector<NamedPath>& outputs, const std::vector<NamedPath>& inputs) {
  std::vector<NamedPath> taken;  // names and canonical paths
  for (const auto& [name, path] : inputs)
    if (!path.empty()) taken.emplace_back(name, canonical(path));
  for (const auto& [name, path] : outputs) {
    if (path.empty()) continue;
    const auto writable = check_writable(path);
    if (!writable.ok()) return Error{writable.error().kind, fmt::format("{}: {}", name, writable.error().message)};
    if (is_special_file(path)) continue;  // may be written twice
    for (const auto& [other_name, other_path] : taken)
      if (canonical(path) == other_path)
        return Error{ErrorKind::invalid_argument,
                     fmt::format("{} and {} are the same file, '{}': give each its own", other_name, name, path)};
    taken.emplace_back(name, canonical(path));
  }
  return {};
}

}  // namespace sh::tools
