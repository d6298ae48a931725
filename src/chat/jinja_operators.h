// SPDX-License-Identifier: MIT
// Python's operators. All throw TemplateError for operands that do not fit, overflow of 64 bits included.
#pragma once

#include "chat/jinja_ast.h"

namespace sh::chat {

Value add(Runtime& rt, const Value& a, const Value& b);
Value subtract(const Value& a, const Value& b);
Value multiply(Runtime& rt, const Value& a, const Value& b);
Value divide(const Value& a, const Value& b);
Value floor_divide(const Value& a, const Value& b);
Value modulo(Runtime& rt, const Value& a, const Value& b);
Value power(const Value& a, const Value& b);
Value negate(const Value& a);
bool compare(Runtime& rt, CompareOp op, const Value& a, const Value& b);

/// object[first:last:step]; undefined or none stand for a bound that is not given.
Value slice_of(Runtime& rt, const Value& object, const Value& first, const Value& last, const Value& step);

}  // namespace sh::chat
