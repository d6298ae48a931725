// SPDX-License-Identifier: MIT
#pragma once

#include <cstdint>
#include <functional>
#include <limits>
#include <optional>
#include <set>
#include <string>
#include <string_view>
#include <vector>

#include "base/json.h"
#include "base/result.h"

namespace sh::server {

/// Reads fields of a JSON object into variables. An absent field, or null, leaves the variable; the first wrong
/// one is kept as the error, naming the field, what was expected and what came.
class FieldReader {
 public:
  /// `path` is put before names in messages: "stream_options.".
  explicit FieldReader(const Json& object, std::string path = "");

  /// The value, or null when the field is absent or null.
  const Json* find(std::string_view name) const;
  void read(const char* name, bool& out);
  void read(const char* name, std::string& out);
  /// Accepts 3 and 3.0.
  void read(const char* name, int64_t& out, int64_t min, int64_t max = std::numeric_limits<int64_t>::max());
  void read(const char* name, int32_t& out, int32_t min, int32_t max = std::numeric_limits<int32_t>::max());
  void read(const char* name, float& out, double min, double max);
  void read(const char* name, double& out, double min, double max);
  void read_strings(const char* name, std::vector<std::string>& out, bool accepts_one_string, size_t max_count);

  /// Records an error about a field unless there is one already.
  void fail(std::string_view name, std::string_view expected, const Json& got);
  void fail(Error error);
  Result<void> result() const;
  /// Fields that nobody has looked for: at most 50, each cut to 60 bytes.
  std::vector<std::string> unread() const;

 private:
  const Json& object_;
  mutable std::set<std::string, std::less<>> asked_;
  std::string path_;
  std::optional<Error> error_;
};

/// The request's body as an object. Errors: invalid_argument.
Result<Json> parse_body(std::string_view body);

}  // namespace sh::server
