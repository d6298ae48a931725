// SPDX-License-Identifier: MIT
// The functions that every template sees, and what filters, methods and the evaluator share about items and
// arguments.
#include <fmt/format.h>

#include <ctime>

#include "chat/jinja_builtins.h"
#include "chat/jinja_text.h"

namespace sh::chat {

std::string text_argument(const CallArgs& args, size_t index, std::string_view name, std::string_view fallback) {
  const Value* value = args.find(index, name);
  if (!value) return std::string(fallback);
  if (!value->is_string())
    fail(fmt::format("the argument '{}' must be a string, not {}", name, type_name(*value)));
  return value->text();
}

int64_t int_argument(const CallArgs& args, size_t index, std::string_view name, int64_t fallback) {
  const Value* value = args.find(index, name);
  if (!value || value->is_none()) return fallback;
  if (!value->is_integral())
    fail(fmt::format("the argument '{}' must be an integer, not {}", name, type_name(*value)));
  return value->as_int();
}

bool bool_argument(const CallArgs& args, size_t index, std::string_view name, bool fallback) {
  const Value* value = args.find(index, name);
  return value ? is_true(*value) : fallback;
}

std::string join_texts(Runtime& rt, const std::vector<Value>& items, std::string_view separator) {
  std::string text;
  for (size_t i = 0; i < items.size(); ++i) {
    const std::string piece = to_text(rt, items[i]);
    const size_t n_bytes = text.size() + piece.size() + separator.size();
    rt.reserve(n_bytes > text.capacity() ? 2 * n_bytes : piece.size());
    if (i > 0) text += separator;
    text += piece;
  }
  return text;
}

Value replaced(Runtime& rt, std::string_view text, std::string_view from, std::string_view to, int64_t limit) {
  rt.charge(text.size() / 8);
  const int64_t n_matches = count_matches(text, from, limit);
  const auto n = static_cast<uint64_t>(n_matches);
  rt.charge(n);  // a match costs more than its bytes
  if (to.size() > 0 && n > rt.limits().max_live_bytes / to.size()) rt.reserve(rt.limits().max_live_bytes + 1);
  rt.reserve(text.size() - n * from.size() + n * to.size());
  return rt.string(replace_text(text, from, to, n_matches));
}

namespace {

const Value* loop_item(const LoopData& loop, int64_t index) {
  return index >= 0 && index < static_cast<int64_t>(loop.items.size()) ? &loop.items[static_cast<size_t>(index)]
                                                                       : nullptr;
}

/// A field of the `loop` variable. Source: Jinja2 documentation, "For".
Value loop_field(Runtime& rt, const LoopData& loop, std::string_view name) {
  const int64_t n_items = static_cast<int64_t>(loop.items.size()), i = loop.index0;
  if (name == "index") return Value::integer(i + 1);
  if (name == "index0") return Value::integer(i);
  if (name == "revindex") return Value::integer(n_items - i);
  if (name == "revindex0") return Value::integer(n_items - i - 1);
  if (name == "first") return Value::boolean(i == 0);
  if (name == "last") return Value::boolean(i + 1 == n_items);
  if (name == "length") return Value::integer(n_items);
  if (name == "depth") return Value::integer(1);
  if (name == "depth0") return Value::integer(0);
  const Value* item = name == "previtem"   ? loop_item(loop, i - 1)
                      : name == "nextitem" ? loop_item(loop, i + 1)
                                           : nullptr;
  return item ? *item : rt.undefined(fmt::format("loop.{}", name));
}

Value named_item(Runtime& rt, const Value& object, std::string_view name) {
  if (object.is_undefined()) fail(fmt::format("'{}' is undefined", object.missing_name()));
  if (object.is(ValueKind::loop)) return loop_field(rt, object.loop_data(), name);
  if (object.is_dict() || object.is(ValueKind::name_space))
    if (const Value* item = rt.find(object, name)) return *item;
  return rt.undefined(std::string(name));
}

}  // namespace

Value item_of(Runtime& rt, const Value& object, const Value& key) {
  if (object.is_undefined()) fail(fmt::format("'{}' is undefined", object.missing_name()));
  if (object.is_dict()) {
    const Value* item = rt.find(object, key);
    return item ? *item : rt.undefined(to_text(rt, key));
  }
  if (key.is_integral() && (object.is_sequence() || object.is_string())) {
    const int64_t size = length_of(rt, object);
    const int64_t index = key.as_int() < 0 ? key.as_int() + size : key.as_int();
    if (index < 0 || index >= size) return rt.undefined(fmt::format("item {}", key.as_int()));
    if (object.is_string()) return rt.string(text_substring(object.text(), index, index + 1));
    return object.items().items[static_cast<size_t>(index)];
  }
  if (key.is_string()) return named_item(rt, object, key.text());
  return rt.undefined(to_text(rt, key));
}

Value dotted_item(Runtime& rt, const Value& object, std::string_view path, const Value* fallback) {
  Value value = object;
  while (true) {
    const size_t dot = path.find('.');
    const std::string_view part = path.substr(0, dot);
    const bool is_index =
        !part.empty() && part.size() < 10 && part.find_first_not_of("0123456789") == std::string_view::npos;
    value =
        is_index ? item_of(rt, value, Value::integer(std::stoll(std::string(part)))) : named_item(rt, value, part);
    if (fallback && value.is_undefined()) value = *fallback;
    if (dot == std::string_view::npos) return value;
    path.remove_prefix(dot + 1);
  }
}

namespace {

Value function_range(Runtime& rt, const CallArgs& args) {
  if (args.positional.empty() || args.positional.size() > 3) fail("range: needs one to three integers");
  const bool has_start = args.positional.size() > 1;
  const int64_t start = has_start ? int_argument(args, 0, "", 0) : 0;
  const int64_t stop = int_argument(args, has_start ? 1 : 0, "", 0), step = int_argument(args, 2, "", 1);
  if (step == 0) fail("range: the step cannot be zero");
  constexpr __int128 kMostItems = 100'000;  // the bound of Jinja2's sandbox
  const __int128 span = step > 0 ? static_cast<__int128>(stop) - start : static_cast<__int128>(start) - stop;
  const __int128 stride = step > 0 ? step : -static_cast<__int128>(step);
  const __int128 n_items = span > 0 ? (span + stride - 1) / stride : 0;
  if (n_items > kMostItems) fail("range: more than 100000 items");
  rt.reserve(static_cast<uint64_t>(n_items) * sizeof(Value));
  std::vector<Value> items;
  items.reserve(static_cast<size_t>(n_items));
  for (int64_t i = 0; i < static_cast<int64_t>(n_items); ++i)
    items.push_back(Value::integer(static_cast<int64_t>(start + static_cast<__int128>(step) * i)));
  return rt.list(std::move(items));
}

/// A dictionary from another one and named arguments.
std::vector<std::pair<Value, Value>> keyword_entries(Runtime& rt, const CallArgs& args) {
  const Value dict = rt.dict({});
  for (const Value& source : args.positional) {
    if (source.is_dict()) {
      for (const auto& [key, value] : std::vector(source.dict_data().entries)) rt.set(dict, key, value);
      continue;
    }
    for (const Value& entry : iterate(rt, source)) {
      const std::vector<Value> pair = iterate(rt, entry);
      if (pair.size() != 2) fail("a dictionary is made of pairs");
      rt.set(dict, pair[0], pair[1]);
    }
  }
  for (const auto& [key, value] : args.named) rt.set(dict, rt.string(key), value);
  return dict.dict_data().entries;
}
Value function_dict(Runtime& rt, const CallArgs& args) {
  return rt.dict(keyword_entries(rt, args));
}
Value function_namespace(Runtime& rt, const CallArgs& args) {
  return rt.name_space(keyword_entries(rt, args));
}

Value function_raise(Runtime& rt, const CallArgs& args) {
  fail(to_text(rt, args.get(0, "message")));
}

/// A function whose calls give one item of `items` after the other.
Value function_cycler(Runtime& rt, const CallArgs& args) {
  if (args.positional.empty()) fail("cycler: needs at least one item");
  const Value state = rt.name_space({{rt.string("next"), Value::integer(0)}});
  const Value items = rt.tuple(args.positional);
  return rt.callable("cycler", [state, items](Runtime& inner, const CallArgs&) {
    Value& at = state.dict_data().entries[0].second;
    const auto index = static_cast<size_t>(at.as_int());
    at = Value::integer(static_cast<int64_t>((index + 1) % items.items().items.size()));
    inner.charge(1);
    return items.items().items[index];
  });
}

/// A function whose first call gives nothing and the later ones the separator.
Value function_joiner(Runtime& rt, const CallArgs& args) {
  const Value separator = rt.string(text_argument(args, 0, "sep", ", "));
  const Value state = rt.name_space({{rt.string("used"), Value::boolean(false)}});
  return rt.callable("joiner", [state, separator](Runtime& inner, const CallArgs&) {
    Value& used = state.dict_data().entries[0].second;
    const bool is_first = !used.as_bool();
    used = Value::boolean(true);
    return is_first ? inner.string("") : separator;
  });
}

/// Local time by a strftime format. Widths and modifiers of the C library other than '-' are left out: they could
/// ask for huge texts.
Value function_strftime_now(Runtime& rt, const CallArgs& args) {
  const std::string format = text_argument(args, 0, "format", "%Y-%m-%d");
  const time_t now = rt.now_unix_seconds() != 0 ? static_cast<time_t>(rt.now_unix_seconds()) : std::time(nullptr);
  tm parts{};
  localtime_r(&now, &parts);
  std::string out;
  rt.reserve(32 * format.size());
  for (size_t i = 0; i < format.size(); ++i) {
    if (format[i] != '%' || i + 1 == format.size()) {
      out += format[i];
      continue;
    }
    std::string directive = {'%', format[++i]};
    if (format[i] == '-' && i + 1 < format.size()) directive += format[++i];
    constexpr std::string_view kKnown = "aAbBcdDeFgGhHIjklmMnpPrRsStTuUVwWxXyYzZ%";
    if (kKnown.find(directive.back()) == std::string_view::npos) {
      out += directive;
      continue;
    }
    char buffer[128];
    out.append(buffer, std::strftime(buffer, sizeof buffer, directive.c_str(), &parts));
  }
  return rt.string(std::move(out));
}

constexpr FunctionDef kFunctions[] = {
    {"range", function_range},
    {"dict", function_dict},
    {"namespace", function_namespace},
    {"cycler", function_cycler},
    {"joiner", function_joiner},
    {"raise_exception", function_raise},
    {"strftime_now", function_strftime_now},
};

}  // namespace

std::span<const FunctionDef> global_functions() {
  return kFunctions;
}

}  // namespace sh::chat
