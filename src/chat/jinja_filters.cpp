// SPDX-License-Identifier: MIT
// One table of filters at the end; one function each above it. Source: Jinja2 documentation, "List of Builtin
// Filters"; `tojson` as Hugging Face transformers defines it for chat templates (json.dumps with its four options,
// no HTML escaping).
#include <fmt/format.h>

#include <algorithm>
#include <charconv>
#include <cmath>

#include "base/json.h"
#include "chat/jinja_builtins.h"
#include "chat/jinja_operators.h"
#include "chat/jinja_text.h"

namespace sh::chat {

namespace {

// --- text -------------------------------------------------------------------------------------------------------

Value filter_upper(Runtime& rt, const Value& v, const CallArgs&) {
  return rt.string(upper_text(to_text(rt, v)));
}
Value filter_lower(Runtime& rt, const Value& v, const CallArgs&) {
  return rt.string(lower_text(to_text(rt, v)));
}
Value filter_title(Runtime& rt, const Value& v, const CallArgs&) {
  return rt.string(title_text(to_text(rt, v), true));
}
Value filter_capitalize(Runtime& rt, const Value& v, const CallArgs&) {
  return rt.string(capitalize_text(to_text(rt, v)));
}
Value filter_escape(Runtime& rt, const Value& v, const CallArgs&) {
  const std::string text = to_text(rt, v);
  rt.reserve(5 * text.size());
  return rt.string(escape_html(text));
}
Value filter_string(Runtime& rt, const Value& v, const CallArgs&) {
  return v.is_string() ? v : rt.string(to_text(rt, v));
}

Value filter_trim(Runtime& rt, const Value& v, const CallArgs& args) {
  const std::string text = to_text(rt, v);
  if (!args.has(0, "chars") || args.get(0, "chars").is_none())
    return rt.string(std::string(strip_text(text, true, true)));
  const std::string chars = text_argument(args, 0, "chars", "");
  rt.charge(text.size() * chars.size() / 16);
  return rt.string(std::string(strip_text(text, true, true, &chars)));
}

Value filter_replace(Runtime& rt, const Value& v, const CallArgs& args) {
  const std::string text = to_text(rt, v);
  const std::string from = to_text(rt, args.get(0, "old")), to = to_text(rt, args.get(1, "new"));
  const int64_t limit = int_argument(args, 2, "count", -1);
  return replaced(rt, text, from, to, limit);
}

Value filter_indent(Runtime& rt, const Value& v, const CallArgs& args) {
  const std::string text = to_text(rt, v);
  const Value& width = args.get(0, "width");
  if (width.is_integral() && width.as_int() > 1000) fail("indent: a width of 1000 is the most");
  const std::string blanks =
      width.is_string()
          ? width.text()
          : std::string(static_cast<size_t>(std::max<int64_t>(int_argument(args, 0, "width", 4), 0)), ' ');
  const bool first = bool_argument(args, 1, "first", false), blank = bool_argument(args, 2, "blank", false);
  const auto n_lines = static_cast<uint64_t>(std::count(text.begin(), text.end(), '\n')) + 1;
  rt.reserve(text.size() + n_lines * blanks.size());
  std::string out;
  for (size_t begin = 0, line = 0; begin <= text.size(); ++line) {
    const size_t end = std::min(text.find('\n', begin), text.size());
    if (line > 0) out += '\n';
    if (line == 0 ? first : (end > begin || blank)) out += blanks;
    out.append(text, begin, end - begin);
    begin = end + 1;
  }
  return rt.string(std::move(out));
}

Value filter_center(Runtime& rt, const Value& v, const CallArgs& args) {
  const std::string text = to_text(rt, v);
  const int64_t n_missing = int_argument(args, 0, "width", 80) - static_cast<int64_t>(text_length(text));
  if (n_missing <= 0) return rt.string(text);
  rt.reserve(text.size() + static_cast<uint64_t>(n_missing));
  const auto left =
      static_cast<size_t>(n_missing / 2 + (n_missing & (n_missing + static_cast<int64_t>(text_length(text))) & 1));
  return rt.string(std::string(left, ' ') + text + std::string(static_cast<size_t>(n_missing) - left, ' '));
}

Value filter_truncate(Runtime& rt, const Value& v, const CallArgs& args) {
  const std::string text = to_text(rt, v);
  const int64_t length = int_argument(args, 0, "length", 255), leeway = int_argument(args, 3, "leeway", 5);
  const std::string end = text_argument(args, 2, "end", "...");
  const auto n_chars = static_cast<int64_t>(text_length(text)), n_end = static_cast<int64_t>(text_length(end));
  if (length < n_end || leeway < 0 || leeway > INT64_MAX - length)
    fail("truncate: the length is shorter than its end mark");
  if (n_chars <= length + leeway) return rt.string(text);
  std::string cut = text_substring(text, 0, length - n_end);
  if (!bool_argument(args, 1, "killwords", false)) cut = cut.substr(0, std::min(cut.rfind(' '), cut.size()));
  return rt.string(cut + end);
}

Value filter_wordcount(Runtime& rt, const Value& v, const CallArgs&) {
  int64_t n_words = 0;
  bool in_word = false;
  const std::string text = to_text(rt, v);
  for (const char c : text) {
    const bool is_word =
        std::isalnum(static_cast<unsigned char>(c)) || c == '_' || static_cast<unsigned char>(c) >= 0x80;
    n_words += is_word && !in_word;
    in_word = is_word;
  }
  return Value::integer(n_words);
}

Value filter_format(Runtime& rt, const Value& v, const CallArgs& args) {
  return rt.string(format_percent(rt, to_text(rt, v), rt.tuple(args.positional)));
}

Value filter_urlencode(Runtime& rt, const Value& v, const CallArgs&) {
  const std::string text = to_text(rt, v);
  rt.reserve(3 * text.size());
  std::string out;
  for (const char c : text) {
    const auto byte = static_cast<unsigned char>(c);
    if (byte < 0x80 && (std::isalnum(byte) || std::string_view("-._~/").find(c) != std::string_view::npos))
      out += c;
    else
      out += fmt::format("%{:02X}", byte);
  }
  return rt.string(std::move(out));
}

Value filter_tojson(Runtime& rt, const Value& v, const CallArgs& args) {
  JsonStyle style;
  style.ascii_only = bool_argument(args, 0, "ensure_ascii", false);
  const Value& indent = args.get(1, "indent");
  if (indent.is_string()) {
    style.indent = 0;
    style.indent_text = indent.text();
  } else if (!indent.is_undefined() && !indent.is_none()) {
    style.indent = std::max<int64_t>(int_argument(args, 1, "indent", 0), 0);
    if (style.indent > 100) fail("tojson: an indent of 100 is the most");
    style.indent_text.assign(static_cast<size_t>(style.indent), ' ');
  }
  if (style.indent >= 0) style.item_separator = ",";
  const Value& separators = args.get(2, "separators");
  if (separators.is_sequence() && separators.items().items.size() == 2) {
    style.item_separator = to_text(rt, separators.items().items[0]);
    style.key_separator = to_text(rt, separators.items().items[1]);
  } else if (!separators.is_undefined() && !separators.is_none()) {
    fail("tojson: separators must be a pair of strings");
  }
  style.sort_keys = bool_argument(args, 3, "sort_keys", false);
  return rt.string(to_json_text(rt, v, style));
}

Value filter_fromjson(Runtime& rt, const Value& v, const CallArgs&) {
  const std::string text = to_text(rt, v);
  rt.reserve(50 * text.size());  // the parsed tree: a value of 48 bytes may stand for "1,"
  const Result<Json> json = parse_json(text);
  if (!json) fail(json.error().message);
  return rt.from_json(*json);
}

// --- numbers ----------------------------------------------------------------------------------------------------

Value filter_abs(Runtime&, const Value& v, const CallArgs&) {
  if (!v.is_number()) fail(fmt::format("abs: needs a number, not {}", type_name(v)));
  if (v.is(ValueKind::real)) return Value::real(std::fabs(v.as_real()));
  return v.as_int() < 0 ? negate(v) : Value::integer(v.as_int());
}

/// The number that a whole text stands for, white space around it aside.
template <typename Number, typename... Base>
bool read_number(std::string_view text, Number& number, Base... base) {
  text = strip_text(text, true, true);
  if (!text.empty() && text[0] == '+') text.remove_prefix(1);
  const auto read = std::from_chars(text.data(), text.data() + text.size(), number, base...);
  return read.ec == std::errc() && read.ptr == text.data() + text.size();
}

/// A real cut to an integer; false if it does not fit.
bool truncate_real(double real, int64_t& integer) {
  if (!(std::fabs(real) < 9.2e18)) return false;
  integer = static_cast<int64_t>(real);
  return true;
}

Value filter_int(Runtime&, const Value& v, const CallArgs& args) {
  const Value fallback = args.has(0, "default") ? args.get(0, "default") : Value::integer(0);
  const int64_t base = int_argument(args, 1, "base", 10);
  if (base < 2 || base > 36) fail("int: the base must be between 2 and 36");
  int64_t integer = 0;
  double real = 0;
  if (v.is_integral()) return Value::integer(v.as_int());
  if (v.is(ValueKind::real)) return truncate_real(v.as_real(), integer) ? Value::integer(integer) : fallback;
  if (!v.is_string()) return fallback;
  std::string_view text = strip_text(v.text(), true, true);
  const std::string_view prefix = base == 16 ? "0x" : base == 2 ? "0b" : base == 8 ? "0o" : "";
  if (!prefix.empty() && text.substr(0, 2) == prefix) text.remove_prefix(2);
  if (read_number(text, integer, static_cast<int>(base))) return Value::integer(integer);
  if (base == 10 && read_number(text, real) && truncate_real(real, integer)) return Value::integer(integer);
  return fallback;
}

Value filter_float(Runtime&, const Value& v, const CallArgs& args) {
  double real = 0;
  if (v.is_number()) return Value::real(v.as_real());
  if (v.is_string() && read_number(v.text(), real)) return Value::real(real);
  return args.has(0, "default") ? args.get(0, "default") : Value::real(0);
}

Value filter_round(Runtime&, const Value& v, const CallArgs& args) {
  if (!v.is_number()) fail(fmt::format("round: needs a number, not {}", type_name(v)));
  const int64_t precision = int_argument(args, 0, "precision", 0);
  const std::string method = text_argument(args, 1, "method", "common");
  if (precision < 0 || precision > 15) fail("round: the precision must be between 0 and 15");
  const double scale = std::pow(10.0, static_cast<double>(precision)), value = v.as_real();
  if (method == "ceil") return Value::real(std::ceil(value * scale) / scale);
  if (method == "floor") return Value::real(std::floor(value * scale) / scale);
  if (method != "common") fail("round: the method must be 'common', 'ceil' or 'floor'");
  if (v.is_integral()) return Value::integer(v.as_int());
  if (!std::isfinite(value)) return v;
  // Through decimal digits, because Python rounds the exact binary value: 2.675 gives 2.67.
  const std::string digits = fmt::format("{:.{}f}", value, precision);
  double rounded = 0;
  std::from_chars(digits.data(), digits.data() + digits.size(), rounded);
  return Value::real(rounded);
}

// --- collections ------------------------------------------------------------------------------------------------

Value filter_length(Runtime& rt, const Value& v, const CallArgs&) {
  return Value::integer(length_of(rt, v));
}
Value filter_list(Runtime& rt, const Value& v, const CallArgs&) {
  return rt.list(iterate(rt, v));
}

Value filter_first(Runtime& rt, const Value& v, const CallArgs&) {
  if (v.is_string())
    return v.text().empty() ? rt.undefined("first item") : rt.string(text_substring(v.text(), 0, 1));
  const std::vector<Value> items = iterate(rt, v);
  return items.empty() ? rt.undefined("first item") : items.front();
}

Value filter_last(Runtime& rt, const Value& v, const CallArgs&) {
  const std::vector<Value> items = iterate(rt, v);
  return items.empty() ? rt.undefined("last item") : items.back();
}

Value filter_reverse(Runtime& rt, const Value& v, const CallArgs&) {
  if (v.is_string()) return slice_of(rt, v, {}, {}, Value::integer(-1));
  std::vector<Value> items = iterate(rt, v);
  std::reverse(items.begin(), items.end());
  return rt.list(std::move(items));
}

/// The item itself, or what its attribute names.
Value keyed(Runtime& rt, const Value& item, const Value& attribute, const Value* fallback = nullptr) {
  if (attribute.is_undefined() || attribute.is_none()) return item;
  return dotted_item(rt, item, to_text(rt, attribute), fallback);
}

/// Texts compare without case unless asked otherwise.
Value folded(Runtime& rt, const Value& value, bool case_sensitive) {
  return value.is_string() && !case_sensitive ? rt.string(lower_text(value.text())) : value;
}

Value filter_join(Runtime& rt, const Value& v, const CallArgs& args) {
  const std::string separator = to_text(rt, args.get(0, "d"));
  std::vector<Value> items = iterate(rt, v);
  for (Value& item : items) item = keyed(rt, item, args.get(1, "attribute"));
  return rt.string(join_texts(rt, items, separator));
}

/// Items with the keys they are ordered by, sorted. Stable, as Python's sort.
std::vector<Value> sorted(Runtime& rt, std::vector<std::pair<Value, Value>> keyed_items, bool reverse) {
  std::stable_sort(keyed_items.begin(), keyed_items.end(), [&](const auto& a, const auto& b) {
    return reverse ? less(rt, b.first, a.first) : less(rt, a.first, b.first);
  });
  std::vector<Value> items;
  for (auto& entry : keyed_items) items.push_back(std::move(entry.second));
  return items;
}

Value filter_sort(Runtime& rt, const Value& v, const CallArgs& args) {
  const bool case_sensitive = bool_argument(args, 1, "case_sensitive", false);
  std::vector<std::pair<Value, Value>> keyed_items;
  for (const Value& item : iterate(rt, v))
    keyed_items.emplace_back(folded(rt, keyed(rt, item, args.get(2, "attribute")), case_sensitive), item);
  return rt.list(sorted(rt, std::move(keyed_items), bool_argument(args, 0, "reverse", false)));
}

std::vector<Value> dict_items(Runtime& rt, const Value& v) {
  std::vector<Value> items;
  for (const auto& [key, value] : v.dict_data().entries) items.push_back(rt.tuple({key, value}));
  return items;
}

Value filter_items(Runtime& rt, const Value& v, const CallArgs&) {
  if (v.is_undefined()) return rt.list({});
  if (!v.is_dict()) fail(fmt::format("items: needs a mapping, not {}", type_name(v)));
  return rt.list(dict_items(rt, v));
}

Value filter_dictsort(Runtime& rt, const Value& v, const CallArgs& args) {
  if (!v.is_dict()) fail(fmt::format("dictsort: needs a mapping, not {}", type_name(v)));
  const bool case_sensitive = bool_argument(args, 0, "case_sensitive", false);
  const std::string by = text_argument(args, 1, "by", "key");
  if (by != "key" && by != "value") fail("dictsort: by must be 'key' or 'value'");
  std::vector<std::pair<Value, Value>> keyed_items;
  for (const Value& item : dict_items(rt, v))
    keyed_items.emplace_back(folded(rt, item.items().items[by == "key" ? 0 : 1], case_sensitive), item);
  return rt.list(sorted(rt, std::move(keyed_items), bool_argument(args, 2, "reverse", false)));
}

Value filter_unique(Runtime& rt, const Value& v, const CallArgs& args) {
  const bool case_sensitive = bool_argument(args, 0, "case_sensitive", false);
  std::vector<Value> kept, seen;
  for (const Value& item : iterate(rt, v)) {
    const Value key = folded(rt, keyed(rt, item, args.get(1, "attribute")), case_sensitive);
    if (std::any_of(seen.begin(), seen.end(), [&](const Value& other) { return equals(rt, other, key); }))
      continue;
    seen.push_back(key);
    kept.push_back(item);
  }
  return rt.list(std::move(kept));
}

Value extreme(Runtime& rt, const Value& v, const CallArgs& args, bool largest) {
  const bool case_sensitive = bool_argument(args, 0, "case_sensitive", false);
  const std::vector<Value> items = iterate(rt, v);
  if (items.empty()) return rt.undefined("item of an empty sequence");
  const auto key = [&](const Value& item) {
    return folded(rt, keyed(rt, item, args.get(1, "attribute")), case_sensitive);
  };
  const Value* best = &items[0];
  for (const Value& item : items)
    if (largest ? less(rt, key(*best), key(item)) : less(rt, key(item), key(*best))) best = &item;
  return *best;
}
Value filter_min(Runtime& rt, const Value& v, const CallArgs& args) {
  return extreme(rt, v, args, false);
}
Value filter_max(Runtime& rt, const Value& v, const CallArgs& args) {
  return extreme(rt, v, args, true);
}

Value filter_sum(Runtime& rt, const Value& v, const CallArgs& args) {
  Value total = args.has(1, "start") ? args.get(1, "start") : Value::integer(0);
  for (const Value& item : iterate(rt, v)) total = add(rt, total, keyed(rt, item, args.get(0, "attribute")));
  return total;
}

Value filter_batch(Runtime& rt, const Value& v, const CallArgs& args) {
  const int64_t n_columns = int_argument(args, 0, "linecount", 1);
  if (n_columns < 1) fail("batch: the number of columns must be positive");
  std::vector<Value> rows, row;
  for (const Value& item : iterate(rt, v)) {
    row.push_back(item);
    if (static_cast<int64_t>(row.size()) == n_columns) rows.push_back(rt.list(std::exchange(row, {})));
  }
  if (!row.empty()) {
    if (args.has(1, "fill_with")) {
      rt.reserve(static_cast<uint64_t>(std::min<int64_t>(n_columns, INT64_MAX / 64)) * sizeof(Value));
      row.resize(static_cast<size_t>(n_columns), args.get(1, "fill_with"));
    }
    rows.push_back(rt.list(std::move(row)));
  }
  return rt.list(std::move(rows));
}

Value filter_slice(Runtime& rt, const Value& v, const CallArgs& args) {
  const std::vector<Value> items = iterate(rt, v);
  const int64_t n_slices = int_argument(args, 0, "slices", 1), n_items = static_cast<int64_t>(items.size());
  if (n_slices < 1) fail("slice: the number of slices must be positive");
  rt.charge(static_cast<uint64_t>(n_slices));
  std::vector<Value> slices;
  int64_t at = 0;
  for (int64_t i = 0; i < n_slices; ++i) {
    const int64_t n = n_items / n_slices + (i < n_items % n_slices);
    std::vector<Value> part(items.begin() + at, items.begin() + at + n);
    if (args.has(1, "fill_with") && n_items % n_slices != 0 && i >= n_items % n_slices)
      part.push_back(args.get(1, "fill_with"));
    slices.push_back(rt.list(std::move(part)));
    at += n;
  }
  return rt.list(std::move(slices));
}

Value filter_groupby(Runtime& rt, const Value& v, const CallArgs& args) {
  const bool case_sensitive = bool_argument(args, 2, "case_sensitive", false);
  const auto key_of = [&](const Value& item) {
    return keyed(rt, item, args.get(0, "attribute"), args.find(1, "default"));
  };
  std::vector<std::pair<Value, Value>> keyed_items;
  for (const Value& item : iterate(rt, v))
    keyed_items.emplace_back(folded(rt, key_of(item), case_sensitive), item);
  std::vector<Value> groups, members;
  const auto finish = [&] {
    if (members.empty()) return;
    const Value key = key_of(members[0]);
    groups.push_back(rt.tuple({key, rt.list(std::exchange(members, {}))}));
  };
  for (const Value& item : sorted(rt, std::move(keyed_items), false)) {
    if (!members.empty() &&
        !equals(rt, folded(rt, key_of(members[0]), case_sensitive), folded(rt, key_of(item), case_sensitive)))
      finish();
    members.push_back(item);
  }
  finish();
  return rt.list(std::move(groups));
}

Value filter_attr(Runtime& rt, const Value& v, const CallArgs& args) {
  return dotted_item(rt, v, text_argument(args, 0, "name", ""));
}

Value filter_default(Runtime& rt, const Value& v, const CallArgs& args) {
  const bool replaces = v.is_undefined() || (bool_argument(args, 1, "boolean", false) && !is_true(v));
  if (!replaces) return v;
  return args.has(0, "default_value") ? args.get(0, "default_value") : rt.string("");
}

Value filter_safe(Runtime&, const Value& v, const CallArgs&) {
  return v;
}

/// The arguments after the first `n`.
CallArgs rest_of(const CallArgs& args, size_t n) {
  CallArgs rest;
  for (size_t i = n; i < args.positional.size(); ++i) rest.positional.push_back(args.positional[i]);
  rest.named = args.named;
  return rest;
}

Value filter_map(Runtime& rt, const Value& v, const CallArgs& args) {
  std::vector<Value> items = iterate(rt, v);
  if (args.positional.empty()) {
    if (!args.has(0, "attribute")) fail("map: needs the name of a filter, or attribute=");
    for (Value& item : items) item = keyed(rt, item, args.get(0, "attribute"), args.find(1, "default"));
    return rt.list(std::move(items));
  }
  const std::string name = text_argument(args, 0, "filter", "");
  const FilterDef* filter = find_filter(name);
  if (!filter) fail(fmt::format("map: there is no filter '{}'", name));
  const CallArgs rest = rest_of(args, 1);
  for (Value& item : items) {
    rt.charge(1);
    item = filter->apply(rt, item, rest);
  }
  return rt.list(std::move(items));
}

/// select, reject, selectattr and rejectattr. Without the name of a test, truth decides.
Value select_items(Runtime& rt, const Value& v, const CallArgs& args, bool by_attribute, bool wanted) {
  const size_t n_before_test = by_attribute ? 1 : 0;
  if (by_attribute && args.positional.empty()) fail("selectattr and rejectattr need the name of an attribute");
  const TestDef* test = nullptr;
  if (args.positional.size() > n_before_test) {
    const std::string name = text_argument(args, n_before_test, "test", "");
    test = find_test(name);
    if (!test) fail(fmt::format("there is no test '{}'", name));
  }
  const CallArgs rest = rest_of(args, n_before_test + 1);
  std::vector<Value> kept;
  for (const Value& item : iterate(rt, v)) {
    rt.charge(1);
    const Value subject = by_attribute ? keyed(rt, item, args.positional[0]) : item;
    if ((test ? test->holds(rt, subject, rest) : is_true(subject)) == wanted) kept.push_back(item);
  }
  return rt.list(std::move(kept));
}
Value filter_select(Runtime& rt, const Value& v, const CallArgs& args) {
  return select_items(rt, v, args, false, true);
}
Value filter_reject(Runtime& rt, const Value& v, const CallArgs& args) {
  return select_items(rt, v, args, false, false);
}
Value filter_selectattr(Runtime& rt, const Value& v, const CallArgs& args) {
  return select_items(rt, v, args, true, true);
}
Value filter_rejectattr(Runtime& rt, const Value& v, const CallArgs& args) {
  return select_items(rt, v, args, true, false);
}

constexpr FilterDef kFilters[] = {
    {"abs", filter_abs},
    {"attr", filter_attr},
    {"batch", filter_batch},
    {"capitalize", filter_capitalize},
    {"center", filter_center},
    {"count", filter_length},
    {"d", filter_default},
    {"default", filter_default},
    {"dictsort", filter_dictsort},
    {"e", filter_escape},
    {"escape", filter_escape},
    {"first", filter_first},
    {"float", filter_float},
    {"forceescape", filter_escape},
    {"format", filter_format},
    {"from_json", filter_fromjson},
    {"fromjson", filter_fromjson},
    {"groupby", filter_groupby},
    {"indent", filter_indent},
    {"int", filter_int},
    {"items", filter_items},
    {"join", filter_join},
    {"last", filter_last},
    {"length", filter_length},
    {"list", filter_list},
    {"lower", filter_lower},
    {"map", filter_map},
    {"max", filter_max},
    {"min", filter_min},
    {"reject", filter_reject},
    {"rejectattr", filter_rejectattr},
    {"replace", filter_replace},
    {"reverse", filter_reverse},
    {"round", filter_round},
    {"safe", filter_safe},
    {"select", filter_select},
    {"selectattr", filter_selectattr},
    {"slice", filter_slice},
    {"sort", filter_sort},
    {"string", filter_string},
    {"sum", filter_sum},
    {"title", filter_title},
    {"tojson", filter_tojson},
    {"trim", filter_trim},
    {"truncate", filter_truncate},
    {"unique", filter_unique},
    {"upper", filter_upper},
    {"urlencode", filter_urlencode},
    {"wordcount", filter_wordcount},
};

}  // namespace

std::span<const FilterDef> all_filters() {
  return kFilters;
}

const FilterDef* find_filter(std::string_view name) {
  for (const FilterDef& filter : kFilters)
    if (filter.name == name) return &filter;
  return nullptr;
}

}  // namespace sh::chat
