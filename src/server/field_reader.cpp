// SPDX-License-Identifier: MIT
#include "server/field_reader.h"

#include <fmt/format.h>

#include <cmath>

namespace sh::server {
namespace {

std::string described(const Json& value) {
  constexpr size_t kMaxShown = 60;
  if (value.is_null()) return "null";
  std::string text = dump_json(value);
  if (text.size() > kMaxShown) text = text.substr(0, kMaxShown) + "...";
  return fmt::format("{} {}", value.type_name(), text);
}

/// A whole number, also one written as 3.0.
std::optional<int64_t> whole_number(const Json& value) {
  if (value.is_number_unsigned()) {
    const auto number = value.get<uint64_t>();
    if (number > static_cast<uint64_t>(std::numeric_limits<int64_t>::max())) return std::nullopt;
    return static_cast<int64_t>(number);
  }
  if (value.is_number_integer()) return value.get<int64_t>();
  if (value.is_number_float()) {
    const auto number = value.get<double>();
    if (std::abs(number) < 9e15 && number == std::floor(number)) return static_cast<int64_t>(number);
  }
  return std::nullopt;
}

}  // namespace

FieldReader::FieldReader(const Json& object, std::string path) : object_(object), path_(std::move(path)) {
  if (!object.is_object())
    fail(Error{ErrorKind::invalid_argument, fmt::format("{}expected a JSON object, got {}",
                                                        path_.empty() ? "" : path_ + " ", described(object))});
}

const Json* FieldReader::find(std::string_view name) const {
  if (!object_.is_object()) return nullptr;
  asked_.emplace(name);
  const auto found = object_.find(name);
  return found == object_.end() || found->is_null() ? nullptr : &*found;
}

void FieldReader::read(const char* name, bool& out) {
  const Json* value = find(name);
  if (value == nullptr) return;
  if (!value->is_boolean()) return fail(name, "true or false", *value);
  out = value->get<bool>();
}

void FieldReader::read(const char* name, std::string& out) {
  const Json* value = find(name);
  if (value == nullptr) return;
  if (!value->is_string()) return fail(name, "a string", *value);
  out = value->get<std::string>();
}

void FieldReader::read(const char* name, int64_t& out, int64_t min, int64_t max) {
  const Json* value = find(name);
  if (value == nullptr) return;
  const std::optional<int64_t> number = whole_number(*value);
  if (number && *number >= min && *number <= max) {
    out = *number;
    return;
  }
  // The end of a type is no bound to tell of, unless it was the one that was passed.
  const bool is_unbounded =
      max == std::numeric_limits<int64_t>::max() || max == std::numeric_limits<int32_t>::max();
  const bool is_above = value->is_number() && value->get<double>() > static_cast<double>(max);
  if (is_unbounded && !is_above) return fail(name, fmt::format("a whole number of at least {}", min), *value);
  fail(name, fmt::format("a whole number from {} to {}", min, max), *value);
}

void FieldReader::read(const char* name, int32_t& out, int32_t min, int32_t max) {
  int64_t wide = out;
  read(name, wide, static_cast<int64_t>(min), static_cast<int64_t>(max));
  out = static_cast<int32_t>(wide);
}

void FieldReader::read(const char* name, double& out, double min, double max) {
  const Json* value = find(name);
  if (value == nullptr) return;
  const double number = value->is_number() ? value->get<double>() : std::numeric_limits<double>::quiet_NaN();
  if (!(number >= min && number <= max))
    return fail(name, fmt::format("a number from {} to {}", min, max), *value);
  out = number;
}

void FieldReader::read(const char* name, float& out, double min, double max) {
  double wide = static_cast<double>(out);
  read(name, wide, min, max);
  out = static_cast<float>(wide);
}

void FieldReader::read_strings(const char* name, std::vector<std::string>& out, bool accepts_one_string,
                               size_t max_count) {
  const Json* value = find(name);
  if (value == nullptr) return;
  const char* expected = accepts_one_string ? "a string or a list of strings" : "a list of strings";
  if (value->is_string() && accepts_one_string) {
    out = {value->get<std::string>()};
    return;
  }
  if (!value->is_array()) return fail(name, expected, *value);
  if (value->size() > max_count)
    return fail(name, fmt::format("at most {} strings", max_count), Json(value->size()));
  std::vector<std::string> strings;
  for (const Json& item : *value) {
    if (!item.is_string()) return fail(name, expected, item);
    strings.push_back(item.get<std::string>());
  }
  out = std::move(strings);
}

void FieldReader::fail(std::string_view name, std::string_view expected, const Json& got) {
  fail(Error{ErrorKind::invalid_argument,
             fmt::format("{}{}: expected {}, got {}", path_, name, expected, described(got))});
}

void FieldReader::fail(Error error) {
  if (!error_) error_ = std::move(error);
}

std::vector<std::string> FieldReader::unread() const {
  constexpr size_t kMaxNames = 50, kMaxNameBytes = 60;
  std::vector<std::string> names;
  if (!object_.is_object()) return names;
  for (const auto& [name, value] : object_.items())
    if (!value.is_null() && asked_.count(name) == 0 && names.size() < kMaxNames)
      names.push_back(name.substr(0, kMaxNameBytes));
  return names;
}

Result<void> FieldReader::result() const {
  if (error_) return *error_;
  return {};
}

Result<Json> parse_body(std::string_view body) {
  if (body.empty()) return Error{ErrorKind::invalid_argument, "the request has no body; expected a JSON object"};
  SH_ASSIGN(Json json, parse_json(body));
  if (!json.is_object())
    return Error{ErrorKind::invalid_argument, fmt::format("expected a JSON object, got {}", described(json))};
  return json;
}

}  // namespace sh::server
