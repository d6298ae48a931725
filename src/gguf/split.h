// SPDX-License-Identifier: MIT
// Names of the parts of a split model: <prefix>-00001-of-00003.gguf.
#pragma once

#include <optional>
#include <string>
#include <string_view>

namespace sh::gguf {

struct SplitName {
  std::string prefix;
  int part;     // from 1
  int n_parts;  // at least `part`
};
/// Nothing if the path does not end like a part's.
std::optional<SplitName> parse_split_name(std::string_view path);
std::string split_path(const std::string& prefix, int part, int n_parts);

}  // namespace sh::gguf
