// SPDX-License-Identifier: MIT
// Methods of strings, lists, dictionaries and the loop variable, and Python's two ways of formatting. Source: the
// Python 3 library reference, "Built-in Types". Lists and dictionaries may be changed in place, which Jinja2's
// immutable sandbox forbids and other runtimes allow: a template that does so works here.
#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "chat/jinja_builtins.h"
#include "chat/jinja_text.h"

namespace sh::chat {

namespace {

// --- strings ----------------------------------------------------------------------------------------------------

template <bool left, bool right>
Value string_strip(Runtime& rt, const Value& self, const CallArgs& args) {
  const Value& chars = args.get(0, "chars");
  if (chars.is_undefined() || chars.is_none()) return rt.string(std::string(strip_text(self.text(), left, right)));
  const std::string set = text_argument(args, 0, "chars", "");
  rt.charge(self.text().size() * set.size() / 16);
  return rt.string(std::string(strip_text(self.text(), left, right, &set)));
}

Value list_of_texts(Runtime& rt, const std::vector<std::string_view>& parts) {
  std::vector<Value> items;
  rt.reserve(parts.size() * 100);
  items.reserve(parts.size());
  for (const std::string_view part : parts) items.push_back(rt.string(std::string(part)));
  return rt.list(std::move(items));
}

/// split() without a separator: runs of white space separate, and none stands at the ends.
std::vector<std::string_view> split_words(std::string_view text, int64_t limit, bool from_right) {
  std::vector<std::string_view> parts;
  text = strip_text(text, true, true);
  while (!text.empty()) {
    if (limit >= 0 && static_cast<int64_t>(parts.size()) == limit) {
      parts.push_back(text);
      break;
    }
    constexpr std::string_view kSpaces = " \t\n\v\f\r";
    if (from_right) {
      const size_t space = text.find_last_of(kSpaces);
      const size_t begin = space == std::string_view::npos ? 0 : space + 1;
      parts.push_back(text.substr(begin));
      text = strip_text(text.substr(0, begin), false, true);
    } else {
      const size_t end = std::min(text.find_first_of(kSpaces), text.size());
      parts.push_back(text.substr(0, end));
      text = strip_text(text.substr(end), true, false);
    }
  }
  return parts;
}

std::vector<std::string_view> split_at(std::string_view text, std::string_view separator, int64_t limit,
                                       bool from_right) {
  std::vector<std::string_view> parts;
  for (;;) {
    const size_t at = limit >= 0 && static_cast<int64_t>(parts.size()) == limit ? std::string_view::npos
                      : from_right                                              ? text.rfind(separator)
                                                                                : text.find(separator);
    if (at == std::string_view::npos) break;
    parts.push_back(from_right ? text.substr(at + separator.size()) : text.substr(0, at));
    text = from_right ? text.substr(0, at) : text.substr(at + separator.size());
  }
  parts.push_back(text);
  return parts;
}

template <bool from_right>
Value string_split(Runtime& rt, const Value& self, const CallArgs& args) {
  const Value& separator = args.get(0, "sep");
  const int64_t limit = int_argument(args, 1, "maxsplit", -1);
  rt.charge(self.text().size() / 16);
  std::vector<std::string_view> parts;
  if (separator.is_undefined() || separator.is_none()) {
    parts = split_words(self.text(), limit, from_right);
  } else {
    if (!separator.is_string() || separator.text().empty())
      fail("split: the separator must be a string that is not empty");
    parts = split_at(self.text(), separator.text(), limit, from_right);
  }
  if (from_right) std::reverse(parts.begin(), parts.end());
  return list_of_texts(rt, parts);
}

Value string_splitlines(Runtime& rt, const Value& self, const CallArgs& args) {
  const bool keeps_ends = bool_argument(args, 0, "keepends", false);
  std::string_view text = self.text();
  std::vector<std::string_view> lines;
  while (!text.empty()) {
    const size_t end = std::min(text.find_first_of("\n\r\v\f"), text.size());
    size_t next = std::min(end + 1, text.size());
    if (text.substr(end, 2) == "\r\n") ++next;
    lines.push_back(text.substr(0, keeps_ends ? next : end));
    text.remove_prefix(next);
  }
  return list_of_texts(rt, lines);
}

template <bool from_right>
Value string_partition(Runtime& rt, const Value& self, const CallArgs& args) {
  const std::string separator = text_argument(args, 0, "sep", "");
  if (separator.empty()) fail("partition: the separator must not be empty");
  const std::string& text = self.text();
  const size_t at = from_right ? text.rfind(separator) : text.find(separator);
  if (at == std::string::npos)
    return from_right ? rt.tuple({rt.string(""), rt.string(""), self})
                      : rt.tuple({self, rt.string(""), rt.string("")});
  return rt.tuple(
      {rt.string(text.substr(0, at)), rt.string(separator), rt.string(text.substr(at + separator.size()))});
}

/// startswith() and endswith(): one text, or a tuple of which any will do.
template <bool at_end>
Value string_has_affix(Runtime& rt, const Value& self, const CallArgs& args) {
  const Value& affix = args.get(0, "");
  const std::vector<Value> candidates =
      affix.is(ValueKind::tuple) ? iterate(rt, affix) : std::vector<Value>{affix};
  for (const Value& candidate : candidates) {
    if (!candidate.is_string())
      fail(fmt::format("startswith and endswith need a string, not {}", type_name(candidate)));
    const std::string& text = candidate.text();
    if (text.size() > self.text().size()) continue;
    if (self.text().compare(at_end ? self.text().size() - text.size() : 0, text.size(), text) == 0)
      return Value::boolean(true);
  }
  return Value::boolean(false);
}

Value string_replace(Runtime& rt, const Value& self, const CallArgs& args) {
  const std::string from = text_argument(args, 0, "old", ""), to = text_argument(args, 1, "new", "");
  const int64_t limit = int_argument(args, 2, "count", -1);
  return replaced(rt, self.text(), from, to, limit);
}

/// The part [start, end) that find() and count() look at, and where it begins in characters.
std::string searched_part(const Value& self, const CallArgs& args, int64_t& start) {
  const auto size = static_cast<int64_t>(text_length(self.text()));
  const auto bound = [&](size_t index, int64_t fallback) {
    const int64_t at = int_argument(args, index, "", fallback);
    return std::clamp<int64_t>(at < 0 ? at + size : at, 0, size);
  };
  start = bound(1, 0);
  return text_substring(self.text(), start, bound(2, size));
}

template <bool from_right, bool must_exist>
Value string_find(Runtime& rt, const Value& self, const CallArgs& args) {
  int64_t start = 0;
  rt.charge(self.text().size() / 16);
  const std::string part = searched_part(self, args, start), wanted = text_argument(args, 0, "sub", "");
  const size_t at = from_right ? part.rfind(wanted) : part.find(wanted);
  if (at != std::string::npos)
    return Value::integer(start + static_cast<int64_t>(text_length(std::string_view(part).substr(0, at))));
  if (must_exist) fail("index: the text was not found");
  return Value::integer(-1);
}

Value string_count(Runtime& rt, const Value& self, const CallArgs& args) {
  int64_t start = 0;
  rt.charge(self.text().size() / 16);
  const std::string part = searched_part(self, args, start), wanted = text_argument(args, 0, "sub", "");
  if (wanted.empty()) return Value::integer(static_cast<int64_t>(text_length(part)) + 1);
  return Value::integer(static_cast<int64_t>(split_at(part, wanted, -1, false).size()) - 1);
}

Value string_join(Runtime& rt, const Value& self, const CallArgs& args) {
  const std::vector<Value> items = iterate(rt, args.get(0, "iterable"));
  for (const Value& item : items)
    if (!item.is_string()) fail(fmt::format("join: the items must be strings, not {}", type_name(item)));
  return rt.string(join_texts(rt, items, self.text()));
}

Value string_upper(Runtime& rt, const Value& self, const CallArgs&) {
  return rt.string(upper_text(self.text()));
}
Value string_lower(Runtime& rt, const Value& self, const CallArgs&) {
  return rt.string(lower_text(self.text()));
}
Value string_title(Runtime& rt, const Value& self, const CallArgs&) {
  return rt.string(title_text(self.text(), false));
}
Value string_capitalize(Runtime& rt, const Value& self, const CallArgs&) {
  return rt.string(capitalize_text(self.text()));
}
Value string_removeprefix(Runtime& rt, const Value& self, const CallArgs& args) {
  const std::string affix = text_argument(args, 0, "prefix", "");
  return self.text().compare(0, affix.size(), affix) == 0 ? rt.string(self.text().substr(affix.size())) : self;
}
Value string_removesuffix(Runtime& rt, const Value& self, const CallArgs& args) {
  const std::string affix = text_argument(args, 0, "suffix", "");
  const size_t n = self.text().size();
  const bool has = affix.size() <= n && self.text().compare(n - affix.size(), affix.size(), affix) == 0;
  return has ? rt.string(self.text().substr(0, n - affix.size())) : self;
}
Value string_isdigit(Runtime&, const Value& self, const CallArgs&) {
  const std::string& text = self.text();
  return Value::boolean(!text.empty() && text.find_first_not_of("0123456789") == std::string::npos);
}
Value string_isspace(Runtime&, const Value& self, const CallArgs&) {
  return Value::boolean(!self.text().empty() && strip_text(self.text(), true, false).empty());
}
Value string_islower(Runtime& rt, const Value& self, const CallArgs& args) {
  return Value::boolean(find_test("lower")->holds(rt, self, args));
}
Value string_isupper(Runtime& rt, const Value& self, const CallArgs& args) {
  return Value::boolean(find_test("upper")->holds(rt, self, args));
}

/// str.format() with plain fields: {}, {0}, {name}, and the escapes {{ and }}.
Value string_format(Runtime& rt, const Value& self, const CallArgs& args) {
  const std::string& format = self.text();
  std::string out;
  size_t n_automatic = 0;
  for (size_t i = 0; i < format.size(); ++i) {
    const char c = format[i];
    if ((c == '{' || c == '}') && i + 1 < format.size() && format[i + 1] == c) {
      out += format[i++];
    } else if (c == '{') {
      const size_t end = format.find('}', i);
      if (end == std::string::npos) fail("format: a '{' has no '}'");
      const std::string field = format.substr(i + 1, end - i - 1);
      if (field.find_first_of(":!.[") != std::string::npos)
        fail("format: only {}, {0} and {name} are supported; use '%' for widths");
      const bool is_index = field.size() < 10 && field.find_first_not_of("0123456789") == std::string::npos;
      const size_t index = !is_index ? SIZE_MAX : field.empty() ? n_automatic++ : std::stoul(field);
      const Value* value = args.find(index, field);
      if (!value) fail(fmt::format("format: there is no argument for '{{{}}}'", field));
      const std::string piece = to_text(rt, *value);
      rt.reserve(out.size() + piece.size());
      out += piece;
      i = end;
    } else if (c == '}') {
      fail("format: a '}' has no '{'");
    } else {
      out += c;
    }
  }
  return rt.string(std::move(out));
}

// --- lists ------------------------------------------------------------------------------------------------------

Value list_append(Runtime& rt, const Value& self, const CallArgs& args) {
  rt.append(self, args.get(0, "object"));
  return Value::none();
}
Value list_extend(Runtime& rt, const Value& self, const CallArgs& args) {
  for (Value& item : iterate(rt, args.get(0, "iterable"))) rt.append(self, std::move(item));
  return Value::none();
}
Value list_insert(Runtime& rt, const Value& self, const CallArgs& args) {
  auto& items = self.items().items;
  const auto size = static_cast<int64_t>(items.size());
  const int64_t index = int_argument(args, 0, "index", 0);
  rt.append(self, args.get(1, "object"));
  rt.charge(items.size() / 8);
  std::rotate(items.begin() + std::clamp<int64_t>(index < 0 ? index + size : index, 0, size), items.end() - 1,
              items.end());
  return Value::none();
}
Value list_pop(Runtime& rt, const Value& self, const CallArgs& args) {
  auto& items = self.items().items;
  const auto size = static_cast<int64_t>(items.size());
  int64_t index = int_argument(args, 0, "index", -1);
  if (index < 0) index += size;
  if (index < 0 || index >= size) fail("pop: there is no item at this index");
  rt.charge(items.size() / 8);
  Value item = std::move(items[static_cast<size_t>(index)]);
  items.erase(items.begin() + index);
  return item;
}
Value list_index(Runtime& rt, const Value& self, const CallArgs& args) {
  const auto& items = self.items().items;
  for (size_t i = 0; i < items.size(); ++i)
    if (equals(rt, items[i], args.get(0, "value"))) return Value::integer(static_cast<int64_t>(i));
  fail("index: the item was not found");
}
Value list_count(Runtime& rt, const Value& self, const CallArgs& args) {
  int64_t n = 0;
  for (const Value& item : self.items().items) n += equals(rt, item, args.get(0, "value"));
  return Value::integer(n);
}

// --- dictionaries -----------------------------------------------------------------------------------------------

Value dict_get(Runtime& rt, const Value& self, const CallArgs& args) {
  if (const Value* item = rt.find(self, args.get(0, "key"))) return *item;
  return args.has(1, "default") ? args.get(1, "default") : Value::none();
}
Value dict_items(Runtime& rt, const Value& self, const CallArgs& args) {
  return find_filter("items")->apply(rt, self, args);
}
Value dict_keys(Runtime& rt, const Value& self, const CallArgs&) {
  return rt.list(iterate(rt, self));
}
Value dict_values(Runtime& rt, const Value& self, const CallArgs&) {
  std::vector<Value> values;
  rt.reserve(self.dict_data().entries.size() * sizeof(Value));
  for (const auto& entry : self.dict_data().entries) values.push_back(entry.second);
  return rt.list(std::move(values));
}
Value dict_copy(Runtime& rt, const Value& self, const CallArgs&) {
  return rt.dict(self.dict_data().entries);
}
Value dict_update(Runtime& rt, const Value& self, const CallArgs& args) {
  for (const Value& source : args.positional) {
    if (!source.is_dict()) fail(fmt::format("update: needs a dictionary, not {}", type_name(source)));
    for (const auto& [key, value] : std::vector(source.dict_data().entries)) rt.set(self, key, value);
  }
  for (const auto& [key, value] : args.named) rt.set(self, rt.string(key), value);
  return Value::none();
}
Value dict_setdefault(Runtime& rt, const Value& self, const CallArgs& args) {
  if (const Value* item = rt.find(self, args.get(0, "key"))) return *item;
  const Value value = args.has(1, "default") ? args.get(1, "default") : Value::none();
  rt.set(self, args.get(0, "key"), value);
  return value;
}
Value dict_pop(Runtime& rt, const Value& self, const CallArgs& args) {
  auto& entries = self.dict_data().entries;
  for (size_t i = 0; i < entries.size(); ++i) {
    if (!equals(rt, entries[i].first, args.get(0, "key"))) continue;
    Value value = std::move(entries[i].second);
    entries.erase(entries.begin() + static_cast<std::ptrdiff_t>(i));
    return value;
  }
  if (!args.has(1, "default")) fail("pop: there is no such key");
  return args.get(1, "default");
}

// --- the loop variable ------------------------------------------------------------------------------------------

Value loop_cycle(Runtime&, const Value& self, const CallArgs& args) {
  if (args.positional.empty()) fail("loop.cycle: needs at least one item");
  return args.positional[static_cast<size_t>(self.loop_data().index0) % args.positional.size()];
}
Value loop_changed(Runtime& rt, const Value& self, const CallArgs& args) {
  Value now = rt.tuple(args.positional);
  const bool has_changed = !equals(rt, self.loop_data().last_changed, now);
  self.loop_data().last_changed = std::move(now);
  return Value::boolean(has_changed);
}

constexpr MethodDef kStringMethods[] = {
    {"capitalize", string_capitalize},
    {"count", string_count},
    {"endswith", string_has_affix<true>},
    {"find", string_find<false, false>},
    {"format", string_format},
    {"index", string_find<false, true>},
    {"isdigit", string_isdigit},
    {"islower", string_islower},
    {"isspace", string_isspace},
    {"isupper", string_isupper},
    {"join", string_join},
    {"lower", string_lower},
    {"lstrip", string_strip<true, false>},
    {"partition", string_partition<false>},
    {"removeprefix", string_removeprefix},
    {"removesuffix", string_removesuffix},
    {"replace", string_replace},
    {"rfind", string_find<true, false>},
    {"rpartition", string_partition<true>},
    {"rsplit", string_split<true>},
    {"rstrip", string_strip<false, true>},
    {"split", string_split<false>},
    {"splitlines", string_splitlines},
    {"startswith", string_has_affix<false>},
    {"strip", string_strip<true, true>},
    {"title", string_title},
    {"upper", string_upper},
};
constexpr MethodDef kListMethods[] = {
    {"append", list_append}, {"count", list_count},   {"extend", list_extend},
    {"index", list_index},   {"insert", list_insert}, {"pop", list_pop},
};
constexpr MethodDef kTupleMethods[] = {{"count", list_count}, {"index", list_index}};
constexpr MethodDef kDictMethods[] = {
    {"copy", dict_copy},     {"get", dict_get},       {"items", dict_items},
    {"keys", dict_keys},     {"pop", dict_pop},       {"setdefault", dict_setdefault},
    {"update", dict_update}, {"values", dict_values},
};
constexpr MethodDef kLoopMethods[] = {{"changed", loop_changed}, {"cycle", loop_cycle}};

std::span<const MethodDef> methods_of(const Value& self) {
  switch (self.kind()) {
    case ValueKind::string:
      return kStringMethods;
    case ValueKind::list:
      return kListMethods;
    case ValueKind::tuple:
      return kTupleMethods;
    case ValueKind::dict:
      return kDictMethods;
    case ValueKind::loop:
      return kLoopMethods;
    default:
      return {};
  }
}

}  // namespace

const MethodDef* find_method(const Value& self, std::string_view name) {
  for (const MethodDef& method : methods_of(self))
    if (method.name == name) return &method;
  return nullptr;
}

// --- text % values ----------------------------------------------------------------------------------------------

namespace {

struct PercentField {
  bool is_left = false, is_zero_padded = false, has_sign = false, has_blank = false;
  int64_t width = 0, precision = -1;
};

/// Digits from `at` on, at most 1000: wider fields would be a way to ask for any amount of memory.
int64_t read_width(std::string_view format, size_t& at) {
  int64_t width = 0;
  while (at < format.size() && format[at] >= '0' && format[at] <= '9') {
    width = width * 10 + (format[at++] - '0');
    if (width > 1000) fail("%: a width of 1000 is the most");
  }
  return width;
}

std::string signed_text(const PercentField& field, bool is_negative, std::string digits) {
  const std::string sign = is_negative ? "-" : field.has_sign ? "+" : field.has_blank ? " " : "";
  const auto missing = field.width - static_cast<int64_t>(sign.size() + digits.size());
  if (field.is_zero_padded && !field.is_left && missing > 0) digits.insert(0, static_cast<size_t>(missing), '0');
  return sign + digits;
}

std::string percent_number(const PercentField& field, char kind, const Value& value) {
  if (!value.is_number()) fail(fmt::format("%{}: needs a number, not {}", kind, type_name(value)));
  const int64_t precision = field.precision < 0 ? 6 : field.precision;
  const double real = value.as_real();
  if (kind == 'f' || kind == 'F')
    return signed_text(field, std::signbit(real), fmt::format("{:.{}f}", std::fabs(real), precision));
  if (kind == 'e' || kind == 'E')
    return signed_text(field, std::signbit(real), fmt::format("{:.{}e}", std::fabs(real), precision));
  if (kind == 'g' || kind == 'G')
    return signed_text(field, std::signbit(real),
                       fmt::format("{:.{}g}", std::fabs(real), std::max<int64_t>(precision, 1)));
  if (!value.is_integral() && !(std::fabs(real) < 9.2e18))
    fail(fmt::format("%{}: the number is out of range", kind));
  const int64_t integer = value.is_integral() ? value.as_int() : static_cast<int64_t>(real);
  const uint64_t magnitude = integer < 0 ? 0 - static_cast<uint64_t>(integer) : static_cast<uint64_t>(integer);
  if (kind == 'x') return signed_text(field, integer < 0, fmt::format("{:x}", magnitude));
  if (kind == 'X') return signed_text(field, integer < 0, fmt::format("{:X}", magnitude));
  if (kind == 'o') return signed_text(field, integer < 0, fmt::format("{:o}", magnitude));
  return signed_text(field, integer < 0, fmt::to_string(magnitude));
}

std::string percent_text(Runtime& rt, const PercentField& field, char kind, const Value& value) {
  if (kind == 's' || kind == 'r') {
    const std::string text = kind == 's' ? to_text(rt, value) : to_repr(rt, value);
    return field.precision < 0 ? text : text_substring(text, 0, field.precision);
  }
  if (std::string_view("diufFeEgGxXo").find(kind) == std::string_view::npos)
    fail(fmt::format("%: unknown conversion '{}'", kind));
  return percent_number(field, kind, value);
}

}  // namespace

std::string format_percent(Runtime& rt, std::string_view format, const Value& values) {
  const std::vector<Value> items = values.is(ValueKind::tuple) ? iterate(rt, values) : std::vector<Value>{values};
  size_t n_used = 0;
  std::string out;
  for (size_t i = 0; i < format.size(); ++i) {
    if (format[i] != '%') {
      out += format[i];
      continue;
    }
    PercentField field;
    Value named;
    if (++i < format.size() && format[i] == '(') {
      const size_t end = format.find(')', i);
      if (end == std::string_view::npos) fail("%: a '(' has no ')'");
      if (!values.is_dict()) fail("%: a named field needs a dictionary");
      const Value* value = rt.find(values, format.substr(i + 1, end - i - 1));
      if (!value) fail("%: the dictionary lacks a named field");
      named = *value;
      i = end + 1;
    }
    for (; i < format.size() && std::string_view("-0+ #").find(format[i]) != std::string_view::npos; ++i) {
      field.is_left |= format[i] == '-';
      field.is_zero_padded |= format[i] == '0';
      field.has_sign |= format[i] == '+';
      field.has_blank |= format[i] == ' ';
    }
    field.width = read_width(format, i);
    if (i < format.size() && format[i] == '.') field.precision = read_width(format, ++i);
    if (i >= format.size()) fail("%: the format ends inside a field");
    if (format[i] == '%') {
      out += '%';
      continue;
    }
    if (named.is_undefined() && n_used == items.size()) fail("%: there are more fields than values");
    const std::string text = percent_text(rt, field, format[i], named.is_undefined() ? items[n_used++] : named);
    const auto n_missing =
        static_cast<size_t>(std::max<int64_t>(0, field.width - static_cast<int64_t>(text_length(text))));
    rt.reserve(out.size() + text.size() + n_missing);
    if (!field.is_left) out.append(n_missing, ' ');
    out += text;
    if (field.is_left) out.append(n_missing, ' ');
  }
  if (!values.is_dict() && n_used < items.size()) fail("%: there are more values than fields");
  return out;
}

}  // namespace sh::chat
