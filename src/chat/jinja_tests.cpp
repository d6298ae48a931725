// SPDX-License-Identifier: MIT
// One table of tests. Source: Jinja2 documentation, "List of Builtin Tests".
#include <fmt/format.h>

#include "chat/jinja_builtins.h"
#include "chat/jinja_operators.h"
#include "chat/jinja_text.h"

namespace sh::chat {

namespace {

template <CompareOp op>
bool test_compare(Runtime& rt, const Value& v, const CallArgs& args) {
  return compare(rt, op, v, args.get(0, "other"));
}

bool is_defined(Runtime&, const Value& v, const CallArgs&) {
  return !v.is_undefined();
}
bool is_undefined(Runtime&, const Value& v, const CallArgs&) {
  return v.is_undefined();
}
bool is_none(Runtime&, const Value& v, const CallArgs&) {
  return v.is_none();
}
bool is_string(Runtime&, const Value& v, const CallArgs&) {
  return v.is_string();
}
bool is_number(Runtime&, const Value& v, const CallArgs&) {
  return v.is_number();
}
bool is_integer(Runtime&, const Value& v, const CallArgs&) {
  return v.is(ValueKind::integer);
}
bool is_float(Runtime&, const Value& v, const CallArgs&) {
  return v.is(ValueKind::real);
}
bool is_boolean(Runtime&, const Value& v, const CallArgs&) {
  return v.is(ValueKind::boolean);
}
bool is_true_value(Runtime&, const Value& v, const CallArgs&) {
  return v.is(ValueKind::boolean) && v.as_bool();
}
bool is_false_value(Runtime&, const Value& v, const CallArgs&) {
  return v.is(ValueKind::boolean) && !v.as_bool();
}
bool is_mapping(Runtime&, const Value& v, const CallArgs&) {
  return v.is_dict();
}
bool is_callable(Runtime&, const Value& v, const CallArgs&) {
  return v.is(ValueKind::callable);
}

/// Has a length and indices: strings and mappings do in Python. So does an undefined value.
bool is_sequence(Runtime&, const Value& v, const CallArgs&) {
  return v.is_undefined() || v.is_string() || v.is_sequence() || v.is_dict();
}
bool is_iterable(Runtime& rt, const Value& v, const CallArgs& args) {
  return is_sequence(rt, v, args) || v.is(ValueKind::loop);
}

int64_t integer_of(const Value& v) {
  if (!v.is_integral()) fail(fmt::format("this test needs an integer, not {}", type_name(v)));
  return v.as_int();
}
bool is_even(Runtime&, const Value& v, const CallArgs&) {
  return integer_of(v) % 2 == 0;
}
bool is_odd(Runtime&, const Value& v, const CallArgs&) {
  return integer_of(v) % 2 != 0;
}
bool is_divisible(Runtime& rt, const Value& v, const CallArgs& args) {
  return modulo(rt, Value::integer(integer_of(v)), Value::integer(integer_of(args.get(0, "num")))).as_int() == 0;
}

/// str.islower() and str.isupper(): at least one letter with case, and none of the other case.
bool is_lower(Runtime& rt, const Value& v, const CallArgs&) {
  const std::string text = to_text(rt, v);
  return text == lower_text(text) && text != upper_text(text);
}
bool is_upper(Runtime& rt, const Value& v, const CallArgs&) {
  const std::string text = to_text(rt, v);
  return text == upper_text(text) && text != lower_text(text);
}
bool is_same_as(Runtime& rt, const Value& v, const CallArgs& args) {
  const Value& other = args.get(0, "other");
  if (v.kind() != other.kind()) return false;
  return v.is_sequence() || v.is_dict() ? v.same_object(other) : equals(rt, v, other);
}
bool is_filter(Runtime& rt, const Value& v, const CallArgs&) {
  return find_filter(to_text(rt, v)) != nullptr;
}
bool is_test(Runtime& rt, const Value& v, const CallArgs&) {
  return find_test(to_text(rt, v)) != nullptr;
}

constexpr TestDef kTests[] = {
    {"!=", test_compare<CompareOp::not_equal>},
    {"<", test_compare<CompareOp::less>},
    {"<=", test_compare<CompareOp::less_equal>},
    {"==", test_compare<CompareOp::equal>},
    {">", test_compare<CompareOp::greater>},
    {">=", test_compare<CompareOp::greater_equal>},
    {"boolean", is_boolean},
    {"callable", is_callable},
    {"defined", is_defined},
    {"divisibleby", is_divisible},
    {"eq", test_compare<CompareOp::equal>},
    {"equalto", test_compare<CompareOp::equal>},
    {"even", is_even},
    {"false", is_false_value},
    {"filter", is_filter},
    {"float", is_float},
    {"ge", test_compare<CompareOp::greater_equal>},
    {"greaterthan", test_compare<CompareOp::greater>},
    {"gt", test_compare<CompareOp::greater>},
    {"in", test_compare<CompareOp::in>},
    {"integer", is_integer},
    {"iterable", is_iterable},
    {"le", test_compare<CompareOp::less_equal>},
    {"lessthan", test_compare<CompareOp::less>},
    {"lower", is_lower},
    {"lt", test_compare<CompareOp::less>},
    {"mapping", is_mapping},
    {"ne", test_compare<CompareOp::not_equal>},
    {"none", is_none},
    {"number", is_number},
    {"odd", is_odd},
    {"sameas", is_same_as},
    {"sequence", is_sequence},
    {"string", is_string},
    {"test", is_test},
    {"true", is_true_value},
    {"undefined", is_undefined},
    {"upper", is_upper},
};

}  // namespace

std::span<const TestDef> all_tests() {
  return kTests;
}

const TestDef* find_test(std::string_view name) {
  for (const TestDef& test : kTests)
    if (test.name == name) return &test;
  return nullptr;
}

}  // namespace sh::chat
