// SPDX-License-Identifier: MIT
#include "chat/jinja_operators.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "chat/jinja_builtins.h"
#include "chat/jinja_text.h"

namespace sh::chat {

namespace {

[[noreturn]] void bad_operands(std::string_view op, const Value& a, const Value& b) {
  for (const Value* value : {&a, &b})
    if (value->is_undefined()) fail(fmt::format("'{}' is undefined", value->missing_name()));
  fail(fmt::format("unsupported operand types for {}: {} and {}", op, type_name(a), type_name(b)));
}

void check_numbers(std::string_view op, const Value& a, const Value& b) {
  if (!a.is_number() || !b.is_number()) bad_operands(op, a, b);
}

[[noreturn]] void overflow() {
  fail("an integer left the range of 64 bits");
}

std::vector<Value> joined(Runtime& rt, const std::vector<Value>& a, const std::vector<Value>& b) {
  rt.reserve((a.size() + b.size()) * sizeof(Value));
  std::vector<Value> items;
  items.reserve(a.size() + b.size());
  items.insert(items.end(), a.begin(), a.end());
  items.insert(items.end(), b.begin(), b.end());
  return items;
}

uint64_t repetitions(const Value& count) {
  return static_cast<uint64_t>(std::max<int64_t>(count.as_int(), 0));
}

/// size · count, or a failure of the limits if that overflows.
uint64_t repeated_size(Runtime& rt, uint64_t size, uint64_t count) {
  uint64_t total = 0;
  if (__builtin_mul_overflow(size, count, &total)) total = rt.limits().max_live_bytes + 1;
  rt.reserve(total);
  return total;
}

Value repeat(Runtime& rt, const Value& sequence, const Value& count) {
  const uint64_t n = repetitions(count);
  if (sequence.is_string()) {
    std::string text;
    text.reserve(repeated_size(rt, sequence.text().size(), n));
    for (uint64_t i = 0; i < n && !sequence.text().empty(); ++i) text += sequence.text();
    return rt.string(std::move(text));
  }
  const std::vector<Value>& source = sequence.items().items;
  repeated_size(rt, source.size() * sizeof(Value), n);
  std::vector<Value> items;
  for (uint64_t i = 0; i < n && !source.empty(); ++i) items.insert(items.end(), source.begin(), source.end());
  return sequence.is(ValueKind::tuple) ? rt.tuple(std::move(items)) : rt.list(std::move(items));
}

}  // namespace

Value add(Runtime& rt, const Value& a, const Value& b) {
  if (a.is_string() && b.is_string()) {
    rt.reserve(a.text().size() + b.text().size());
    return rt.string(a.text() + b.text());
  }
  if (a.is(ValueKind::list) && b.is(ValueKind::list)) return rt.list(joined(rt, a.items().items, b.items().items));
  if (a.is(ValueKind::tuple) && b.is(ValueKind::tuple))
    return rt.tuple(joined(rt, a.items().items, b.items().items));
  check_numbers("+", a, b);
  if (!a.is_integral() || !b.is_integral()) return Value::real(a.as_real() + b.as_real());
  int64_t sum = 0;
  if (__builtin_add_overflow(a.as_int(), b.as_int(), &sum)) overflow();
  return Value::integer(sum);
}

Value subtract(const Value& a, const Value& b) {
  check_numbers("-", a, b);
  if (!a.is_integral() || !b.is_integral()) return Value::real(a.as_real() - b.as_real());
  int64_t difference = 0;
  if (__builtin_sub_overflow(a.as_int(), b.as_int(), &difference)) overflow();
  return Value::integer(difference);
}

Value multiply(Runtime& rt, const Value& a, const Value& b) {
  if ((a.is_string() || a.is_sequence()) && b.is_integral()) return repeat(rt, a, b);
  if ((b.is_string() || b.is_sequence()) && a.is_integral()) return repeat(rt, b, a);
  check_numbers("*", a, b);
  if (!a.is_integral() || !b.is_integral()) return Value::real(a.as_real() * b.as_real());
  int64_t product = 0;
  if (__builtin_mul_overflow(a.as_int(), b.as_int(), &product)) overflow();
  return Value::integer(product);
}

Value divide(const Value& a, const Value& b) {
  check_numbers("/", a, b);
  if (b.as_real() == 0) fail("division by zero");
  return Value::real(a.as_real() / b.as_real());
}

Value floor_divide(const Value& a, const Value& b) {
  check_numbers("//", a, b);
  if (b.as_real() == 0) fail("division by zero");
  if (!a.is_integral() || !b.is_integral()) return Value::real(std::floor(a.as_real() / b.as_real()));
  const int64_t x = a.as_int(), y = b.as_int();
  if (x == INT64_MIN && y == -1) overflow();
  const int64_t quotient = x / y;
  return Value::integer(x % y != 0 && (x < 0) != (y < 0) ? quotient - 1 : quotient);
}

Value modulo(Runtime& rt, const Value& a, const Value& b) {
  if (a.is_string()) return rt.string(format_percent(rt, a.text(), b));
  check_numbers("%", a, b);
  if (b.as_real() == 0) fail("division by zero");
  if (!a.is_integral() || !b.is_integral()) {
    const double y = b.as_real(), rest = std::fmod(a.as_real(), y);
    return Value::real(rest != 0 && (rest < 0) != (y < 0) ? rest + y : rest);
  }
  const int64_t x = a.as_int(), y = b.as_int();
  if (y == -1) return Value::integer(0);  // INT64_MIN % -1 traps
  const int64_t rest = x % y;
  return Value::integer(rest != 0 && (rest < 0) != (y < 0) ? rest + y : rest);
}

Value power(const Value& a, const Value& b) {
  check_numbers("**", a, b);
  if (!a.is_integral() || !b.is_integral() || b.as_int() < 0) {
    const double result = std::pow(a.as_real(), b.as_real());
    if (std::isnan(result) && !std::isnan(a.as_real()) && !std::isnan(b.as_real()))
      fail("this power is not a real number");
    if (a.as_real() == 0 && b.as_real() < 0) fail("division by zero");
    return Value::real(result);
  }
  int64_t result = 1, base = a.as_int();
  for (int64_t exponent = b.as_int(); exponent > 0; exponent >>= 1) {
    if ((exponent & 1) && __builtin_mul_overflow(result, base, &result)) overflow();
    if (exponent > 1 && __builtin_mul_overflow(base, base, &base)) overflow();
  }
  return Value::integer(result);
}

Value negate(const Value& a) {
  if (a.is(ValueKind::real)) return Value::real(-a.as_real());
  return subtract(Value::integer(0), a);
}

bool compare(Runtime& rt, CompareOp op, const Value& a, const Value& b) {
  switch (op) {
    case CompareOp::equal:
      return equals(rt, a, b);
    case CompareOp::not_equal:
      return !equals(rt, a, b);
    case CompareOp::less:
      return less(rt, a, b);
    case CompareOp::less_equal:
      return less(rt, a, b) || equals(rt, a, b);
    case CompareOp::greater:
      return less(rt, b, a);
    case CompareOp::greater_equal:
      return less(rt, b, a) || equals(rt, a, b);
    case CompareOp::in:
      return contains(rt, b, a);
    case CompareOp::not_in:
      return !contains(rt, b, a);
  }
  return false;
}

namespace {

/// A bound of a slice, counted from the front and clamped to [low, high].
int64_t slice_bound(const Value& bound, int64_t size, int64_t fallback, int64_t low, int64_t high) {
  if (bound.is_undefined() || bound.is_none()) return fallback;
  if (!bound.is_integral()) fail(fmt::format("a slice needs integers, not {}", type_name(bound)));
  int64_t at = bound.as_int();
  if (at < 0) at += size;
  return std::clamp(at, low, high);
}

}  // namespace

Value slice_of(Runtime& rt, const Value& object, const Value& first, const Value& last, const Value& step) {
  if (object.is_undefined()) fail(fmt::format("'{}' is undefined", object.missing_name()));
  if (!object.is_string() && !object.is_sequence())
    fail(fmt::format("a value of type {} cannot be sliced", type_name(object)));
  const int64_t size = length_of(rt, object);
  const int64_t stride = slice_bound(step, 0, 1, INT64_MIN + 1, INT64_MAX);
  if (stride == 0) fail("the step of a slice cannot be zero");
  const bool forward = stride > 0;
  const int64_t low = forward ? 0 : -1, high = forward ? size : size - 1;
  const int64_t begin = slice_bound(first, size, forward ? 0 : size - 1, low, high);
  const int64_t end = slice_bound(last, size, forward ? size : -1, low, high);

  if (object.is_string() && stride == 1) {
    rt.charge(object.text().size() / 64);
    return rt.string(text_substring(object.text(), begin, end));
  }
  std::vector<int64_t> picked;
  rt.reserve(static_cast<uint64_t>(size) * sizeof(int64_t));
  // |stride| >= size picks one item at most, and would overflow the index below.
  const int64_t bounded_stride = std::clamp(stride, -size - 1, size + 1);
  for (int64_t i = begin; forward ? i < end : i > end; i += bounded_stride) picked.push_back(i);
  if (object.is_string()) {
    const auto characters = text_characters(object.text());
    std::string text;
    for (const int64_t i : picked) text += characters[static_cast<size_t>(i)];
    return rt.string(std::move(text));
  }
  std::vector<Value> items;
  rt.reserve(picked.size() * sizeof(Value));
  items.reserve(picked.size());
  for (const int64_t i : picked) items.push_back(object.items().items[static_cast<size_t>(i)]);
  return object.is(ValueKind::tuple) ? rt.tuple(std::move(items)) : rt.list(std::move(items));
}

}  // namespace sh::chat
