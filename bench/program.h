// SPDX-License-Identifier: MIT
// What the programs here share.
#pragma once

#include <fmt/format.h>

#include <algorithm>
#include <charconv>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <string>
#include <utility>
#include <vector>

#include "base/result.h"
#include "base/rng.h"
#include "engine/compaction_report.h"

namespace sh::bench {

[[noreturn]] inline void fail(const std::string& message) {
  fmt::print(stderr, "error: {}\n", message);
  std::exit(1);
}
template <typename T>
T need(Result<T> result) {
  if (!result.ok()) fail(result.error().message);
  return std::move(*result);
}

inline void need(const Result<void>& result) {
  if (!result.ok()) fail(result.error().message);
}

inline std::vector<std::string> split(const std::string& text, char separator) {
  std::vector<std::string> parts;
  size_t at = 0;
  for (size_t end; (end = text.find(separator, at)) != std::string::npos; at = end + 1)
    parts.push_back(text.substr(at, end - at));
  parts.push_back(text.substr(at));
  return parts;
}

/// A whole argument as a number of at least `lowest`; anything else ends the program with what was expected.
template <typename Number>
Number number_argument(const char* name, const std::string& text, Number lowest) {
  Number n{};
  const char* end_of_text = text.data() + text.size();
  const auto [end, code] = std::from_chars(text.data(), end_of_text, n);
  if (code != std::errc() || end != end_of_text || !(n >= lowest))
    fail(fmt::format("{}: expected a number of at least {}, got '{}'", name, lowest, text));
  return n;
}
/// The same for "1,2,3".
template <typename Number>
std::vector<Number> number_list(const char* name, const std::string& text, Number lowest) {
  std::vector<Number> numbers;
  for (const std::string& part : split(text, ',')) numbers.push_back(number_argument(name, part, lowest));
  return numbers;
}

/// A method with options, as in "solver:reread=0.1".
inline engine::CompactionRequest request_of(const std::string& spec, double ratio) {
  const std::vector<std::string> parts = split(spec, ':');
  engine::CompactionRequest request;
  request.method = parts[0];
  request.ratio = ratio;
  need(compaction::find_method(request.method));
  for (size_t i = 1; i < parts.size(); ++i) {
    const size_t equals = parts[i].find('=');
    if (equals == std::string::npos)
      fail(fmt::format("method '{}': expected name:option=value, got '{}'", spec, parts[i]));
    const auto set = engine::set_option(request, parts[i].substr(0, equals), parts[i].substr(equals + 1));
    if (!set.ok()) fail(fmt::format("method '{}': {}", spec, set.error().message));
  }
  return request;
}

/// Tokens drawn evenly from the vocabulary.
inline std::vector<int32_t> random_ids(int64_t n_tokens, int32_t n_vocab) {
  Rng rng(1);
  std::vector<int32_t> ids;
  for (int64_t i = 0; i < n_tokens; ++i)
    ids.push_back(static_cast<int32_t>(rng.next_below(static_cast<uint64_t>(n_vocab))));
  return ids;
}

inline double median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  return values[values.size() / 2];
}

}  // namespace sh::bench
