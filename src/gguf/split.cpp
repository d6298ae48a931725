// SPDX-License-Identifier: MIT
#include "gguf/split.h"

#include <fmt/format.h>

#include <algorithm>

namespace sh::gguf {

namespace {
constexpr std::string_view kPattern = "-00000-of-00000.gguf";

bool matches(std::string_view tail) {
  return std::equal(tail.begin(), tail.end(), kPattern.begin(), kPattern.end(),
                    [](char c, char p) { return p == '0' ? c >= '0' && c <= '9' : c == p; });
}

int number_of(std::string_view digits) {
  int value = 0;
  for (const char c : digits) value = value * 10 + (c - '0');
  return value;
}
}  // namespace

std::optional<SplitName> parse_split_name(std::string_view path) {
  if (path.size() < kPattern.size()) return std::nullopt;
  const std::string_view tail = path.substr(path.size() - kPattern.size());
  if (!matches(tail)) return std::nullopt;
  SplitName name{std::string(path.substr(0, path.size() - kPattern.size())), number_of(tail.substr(1, 5)),
                 number_of(tail.substr(10, 5))};
  if (name.part < 1 || name.part > name.n_parts) return std::nullopt;
  return name;
}

std::string split_path(const std::string& prefix, int part, int n_parts) {
  return fmt::format("{}-{:05}-of-{:05}.gguf", prefix, part, n_parts);
}

}  // namespace sh::gguf
