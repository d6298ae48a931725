// SPDX-License-Identifier: MIT
// Result<T>: a value, or an Error that says what, where, expected, got and what to do. For everything that comes from outside.
#pragma once

#include <optional>
#include <string>
#include <utility>
#include <variant>

#include "base/check.h"

namespace sh {

enum class ErrorKind {
  invalid_argument,  // a request, flag or file field that can never be right
  not_found,         // a name or file that does not exist
  unsupported,       // known, but not for this model, build or configuration
  corrupt,           // a file whose content contradicts itself
  io,                // the operating system refused
  out_of_memory,     // the budget that was asked for is spent
  context_exceeded,  // a prompt or conversation longer than the limit
  unmet,             // a quality that was asked for is not reached; nothing has changed
  busy,              // not now: the thing is in use
  cancelled,         // the caller asked to stop
};

struct Error {
  ErrorKind kind = ErrorKind::invalid_argument;
  std::string message;
};

template <typename T>
class [[nodiscard]] Result {
 public:
  Result(T value) : state_(std::in_place_index<0>, std::move(value)) {}
  Result(Error error) : state_(std::in_place_index<1>, std::move(error)) {}

  bool ok() const { return state_.index() == 0; }
  explicit operator bool() const { return ok(); }
  T& value() & {
    SH_CHECK(ok(), error_text());
    return std::get<0>(state_);
  }
  const T& value() const& {
    SH_CHECK(ok(), error_text());
    return std::get<0>(state_);
  }
  T&& value() && {
    SH_CHECK(ok(), error_text());
    return std::get<0>(std::move(state_));
  }
  const Error& error() const {
    SH_CHECK(!ok(), "a Result that holds a value has no error");
    return std::get<1>(state_);
  }
  T* operator->() { return &value(); }
  const T* operator->() const { return &value(); }
  T& operator*() & { return value(); }
  const T& operator*() const& { return value(); }
  T&& operator*() && { return std::move(*this).value(); }

 private:
  const char* error_text() const { return ok() ? "" : std::get<1>(state_).message.c_str(); }
  std::variant<T, Error> state_;
};

/// Success, or an Error.
template <>
class [[nodiscard]] Result<void> {
 public:
  Result() = default;
  Result(Error error) : error_(std::move(error)) {}

  bool ok() const { return !error_.has_value(); }
  explicit operator bool() const { return ok(); }
  const Error& error() const {
    SH_CHECK(error_.has_value(), "a Result that succeeded has no error");
    return *error_;
  }

 private:
  std::optional<Error> error_;
};

}  // namespace sh

/// Returns the Error of `expression` from the enclosing function if it failed.
#define SH_RETURN_IF_ERROR(expression)                        \
  do {                                                        \
    auto sh_result = (expression);                            \
    if (!sh_result.ok()) return ::sh::Error(sh_result.error()); \
  } while (false)

#define SH_CONCAT_INNER(a, b) a##b
#define SH_CONCAT(a, b) SH_CONCAT_INNER(a, b)

/// SH_ASSIGN(auto x, f()): the value of f(), or return its Error from the enclosing function.
#define SH_ASSIGN(declaration, expression)                               \
  auto SH_CONCAT(sh_result_, __LINE__) = (expression);                   \
  if (!SH_CONCAT(sh_result_, __LINE__).ok())                             \
    return ::sh::Error(SH_CONCAT(sh_result_, __LINE__).error());         \
  declaration = std::move(SH_CONCAT(sh_result_, __LINE__)).value()
