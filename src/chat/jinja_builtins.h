// SPDX-License-Identifier: MIT
// What templates can call: filters, tests, global functions and the methods of strings, lists and dictionaries.
#pragma once

#include <span>
#include <string_view>

#include "chat/jinja_value.h"

namespace sh::chat {

/// `input | name(arguments)`.
struct FilterDef {
  std::string_view name;
  Value (*apply)(Runtime& rt, const Value& input, const CallArgs& args);
};

/// `input is name(arguments)`.
struct TestDef {
  std::string_view name;
  bool (*holds)(Runtime& rt, const Value& input, const CallArgs& args);
};

/// A function that every template sees.
struct FunctionDef {
  std::string_view name;
  Value (*call)(Runtime& rt, const CallArgs& args);
};

/// A method of a type of value.
struct MethodDef {
  std::string_view name;
  Value (*call)(Runtime& rt, const Value& self, const CallArgs& args);
};

/// Null if there is none of that name.
const FilterDef* find_filter(std::string_view name);
const TestDef* find_test(std::string_view name);
const MethodDef* find_method(const Value& self, std::string_view name);
std::span<const FunctionDef> global_functions();
std::span<const FilterDef> all_filters();
std::span<const TestDef> all_tests();

/// What map(attribute=...) and its like look up: items by name, by index for a number, dots walk down. `fallback`,
/// if given, takes the place of what is undefined at each step.
Value dotted_item(Runtime& rt, const Value& object, std::string_view path, const Value* fallback = nullptr);
/// `object[key]`: an item, or undefined.
Value item_of(Runtime& rt, const Value& object, const Value& key);

/// Python's `text % values`, bounded. `values`: a tuple of them, or the only one.
std::string format_percent(Runtime& rt, std::string_view format, const Value& values);

/// str.replace().
Value replaced(Runtime& rt, std::string_view text, std::string_view from, std::string_view to, int64_t limit);

/// str.join(): the texts of `items` with `separator` between.
std::string join_texts(Runtime& rt, const std::vector<Value>& items, std::string_view separator);

/// The argument as text or integer, or the default if it is not given. Throws TemplateError for another type.
std::string text_argument(const CallArgs& args, size_t index, std::string_view name, std::string_view fallback);
int64_t int_argument(const CallArgs& args, size_t index, std::string_view name, int64_t fallback);
bool bool_argument(const CallArgs& args, size_t index, std::string_view name, bool fallback);

}  // namespace sh::chat
