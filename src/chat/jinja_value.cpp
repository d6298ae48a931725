// SPDX-License-Identifier: MIT
#include "chat/jinja_value.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "chat/jinja_text.h"

namespace sh::chat {

namespace {
/// Deeper values are refused by what recurses over them. JSON from outside is at most 256 deep.
constexpr int kMaxValueDepth = 300;
/// One step buys the handling of this many bytes.
constexpr uint64_t kBytesPerStep = 64;

void check_depth(int depth) {
  if (depth > kMaxValueDepth) fail(fmt::format("a value is nested deeper than {} levels", kMaxValueDepth));
}
}  // namespace

void fail(std::string message) {
  throw TemplateError{std::move(message)};
}

const Value* CallArgs::find(size_t index, std::string_view name) const {
  if (index < positional.size()) return &positional[index];
  for (const auto& [key, value] : named)
    if (key == name) return &value;
  return nullptr;
}

const Value& CallArgs::get(size_t index, std::string_view name) const {
  static const Value undefined = Value();
  const Value* value = find(index, name);
  return value ? *value : undefined;
}

void Runtime::charge(uint64_t n_steps) {
  n_steps_ += n_steps;
  if (n_steps_ > limits_.max_steps)
    fail(fmt::format("the template took more than {} steps; it probably never ends", limits_.max_steps));
}

void Runtime::reserve(uint64_t n_bytes) {
  if (n_bytes > limits_.max_live_bytes || live_bytes_ > limits_.max_live_bytes - n_bytes)
    fail(fmt::format("the values of the template need more than {} bytes", limits_.max_live_bytes));
  charge(n_bytes / kBytesPerStep);
}

Value Runtime::string(std::string text) {
  reserve(text.size());
  return Value::string(std::make_shared<const StringData>(std::move(text), &live_bytes_));
}

Value Runtime::undefined(std::string what) {
  return Value::undefined(std::make_shared<const StringData>(std::move(what), &live_bytes_));
}

void Value::release() {
  Object* released = object();
  if (--released->n_references == 0) released->runtime->retire(released);
}

Runtime::~Runtime() {
  // What is left is held by cycles only. Objects stay allocated until all of them have let go of their values.
  is_freeing_ = true;
  for (Object* object = objects_; object; object = object->next) object->drop_values();
  while (objects_) delete std::exchange(objects_, objects_->next);
}

void Runtime::retire(Object* object) {
  retired_.push_back(object);
  if (!is_freeing_) free_retired();
}

void Runtime::free_retired() {
  is_freeing_ = true;
  while (!retired_.empty()) {
    Object* object = retired_.back();
    retired_.pop_back();
    object->drop_values();
    (object->previous ? object->previous->next : objects_) = object->next;
    if (object->next) object->next->previous = object->previous;
    live_bytes_ -= object->n_charged_bytes;
    delete object;
  }
  is_freeing_ = false;
}

template <typename Data>
Value Runtime::adopt(ValueKind kind, std::unique_ptr<Data> data, uint64_t n_bytes) {
  data->runtime = this;
  data->next = objects_;
  if (objects_) objects_->previous = data.get();
  objects_ = data.get();
  live_bytes_ += data->n_charged_bytes = n_bytes;
  return Value::object(kind, data.release());
}

void Runtime::charge_growth(Object& object, uint64_t n_bytes) {
  reserve(n_bytes);
  object.n_charged_bytes += n_bytes;
  live_bytes_ += n_bytes;
}

Value Runtime::list(std::vector<Value> items) {
  const uint64_t n_bytes = sizeof(ListData) + items.capacity() * sizeof(Value);
  reserve(n_bytes);
  auto data = std::make_unique<ListData>();
  data->items = std::move(items);
  return adopt(ValueKind::list, std::move(data), n_bytes);
}

Value Runtime::tuple(std::vector<Value> items) {
  const Value made = list(std::move(items));
  return Value::object(ValueKind::tuple, &made.items());
}

Value Runtime::dict(std::vector<std::pair<Value, Value>> entries) {
  const uint64_t n_bytes = sizeof(DictData) + entries.capacity() * 2 * sizeof(Value);
  reserve(n_bytes);
  auto data = std::make_unique<DictData>();
  data->entries = std::move(entries);
  return adopt(ValueKind::dict, std::move(data), n_bytes);
}

Value Runtime::name_space(std::vector<std::pair<Value, Value>> entries) {
  const Value made = dict(std::move(entries));
  return Value::object(ValueKind::name_space, &made.dict_data());
}

Value Runtime::callable(std::string name, std::function<Value(Runtime&, const CallArgs&)> call) {
  reserve(sizeof(CallableData));
  auto data = std::make_unique<CallableData>();
  data->name = std::move(name);
  data->call = std::move(call);
  return adopt(ValueKind::callable, std::move(data), sizeof(CallableData));
}

Value Runtime::loop(std::vector<Value> items) {
  const uint64_t n_bytes = sizeof(LoopData) + items.capacity() * sizeof(Value);
  reserve(n_bytes);
  auto data = std::make_unique<LoopData>();
  data->items = std::move(items);
  return adopt(ValueKind::loop, std::move(data), n_bytes);
}

Value Runtime::from_json(const Json& json) {
  switch (json.type()) {
    case Json::value_t::boolean:
      return Value::boolean(json.get<bool>());
    case Json::value_t::number_integer:
      return Value::integer(json.get<int64_t>());
    case Json::value_t::number_unsigned: {
      const auto number = json.get<uint64_t>();
      return number <= static_cast<uint64_t>(INT64_MAX) ? Value::integer(static_cast<int64_t>(number))
                                                        : Value::real(static_cast<double>(number));
    }
    case Json::value_t::number_float:
      return Value::real(json.get<double>());
    case Json::value_t::string:
      return Value::constant(json.get_ref<const std::string&>());
    case Json::value_t::array: {
      auto data = std::make_unique<ListData>();
      data->items.reserve(json.size());
      for (const Json& item : json) data->items.push_back(from_json(item));
      return adopt(ValueKind::list, std::move(data), 0);
    }
    case Json::value_t::object: {
      auto data = std::make_unique<DictData>();
      data->entries.reserve(json.size());
      for (const auto& [key, item] : json.items())
        data->entries.emplace_back(Value::constant(key), from_json(item));
      return adopt(ValueKind::dict, std::move(data), 0);
    }
    case Json::value_t::null:
    case Json::value_t::binary:
    case Json::value_t::discarded:
      break;
  }
  return Value::none();
}

void Runtime::append(const Value& list, Value item) {
  // Twice the value: the vector may have doubled.
  charge_growth(list.items(), 2 * sizeof(Value));
  list.items().items.push_back(std::move(item));
}

void Runtime::set(const Value& dict, const Value& key, Value value) {
  if (const Value* slot = find(dict, key)) {
    *const_cast<Value*>(slot) = std::move(value);
    return;
  }
  charge_growth(dict.dict_data(), 4 * sizeof(Value));
  dict.dict_data().entries.emplace_back(key, std::move(value));
}

const Value* Runtime::find(const Value& dict, const Value& key) {
  if (key.is_string()) return find(dict, std::string_view(key.text()));
  charge(1 + dict.dict_data().entries.size());
  for (const auto& [candidate, value] : dict.dict_data().entries)
    if (!candidate.is_string() && equals(*this, candidate, key)) return &value;
  return nullptr;
}

const Value* Runtime::find(const Value& dict, std::string_view key) {
  charge(1 + dict.dict_data().entries.size() / 8);
  for (const auto& [candidate, value] : dict.dict_data().entries)
    if (candidate.is_string() && candidate.text() == key) return &value;
  return nullptr;
}

std::string_view type_name(const Value& value) {
  switch (value.kind()) {
    case ValueKind::undefined:
      return "Undefined";
    case ValueKind::none:
      return "NoneType";
    case ValueKind::boolean:
      return "bool";
    case ValueKind::integer:
      return "int";
    case ValueKind::real:
      return "float";
    case ValueKind::string:
      return "str";
    case ValueKind::list:
      return "list";
    case ValueKind::tuple:
      return "tuple";
    case ValueKind::dict:
      return "dict";
    case ValueKind::name_space:
      return "Namespace";
    case ValueKind::callable:
      return "function";
    case ValueKind::loop:
      return "LoopContext";
  }
  return "";
}

bool is_true(const Value& value) {
  switch (value.kind()) {
    case ValueKind::undefined:
    case ValueKind::none:
      return false;
    case ValueKind::boolean:
      return value.as_bool();
    case ValueKind::integer:
      return value.as_int() != 0;
    case ValueKind::real:
      return value.as_real() != 0;
    case ValueKind::string:
      return !value.text().empty();
    case ValueKind::list:
    case ValueKind::tuple:
      return !value.items().items.empty();
    case ValueKind::dict:
      return !value.dict_data().entries.empty();
    case ValueKind::name_space:
    case ValueKind::callable:
    case ValueKind::loop:
      return true;
  }
  return false;
}

namespace {

/// Text under construction that pays for its growth.
struct TextSink {
  Runtime& rt;
  std::string text;
  void add(std::string_view piece) {
    rt.charge(piece.size() / 16);
    rt.reserve(text.size() + piece.size() > text.capacity() ? 2 * (text.size() + piece.size()) : piece.size());
    text.append(piece);
  }
};

void write_repr(TextSink& sink, const Value& value, int depth);

void write_items(TextSink& sink, const std::vector<Value>& items, int depth) {
  for (size_t i = 0; i < items.size(); ++i) {
    if (i > 0) sink.add(", ");
    write_repr(sink, items[i], depth);
  }
}

void write_repr(TextSink& sink, const Value& value, int depth) {
  check_depth(depth);
  sink.rt.charge(1);
  switch (value.kind()) {
    case ValueKind::undefined:
      return sink.add("Undefined");
    case ValueKind::none:
      return sink.add("None");
    case ValueKind::boolean:
      return sink.add(value.as_bool() ? "True" : "False");
    case ValueKind::integer:
      return sink.add(fmt::to_string(value.as_int()));
    case ValueKind::real:
      return sink.add(repr_real(value.as_real()));
    case ValueKind::string:
      return sink.add(repr_text(value.text()));
    case ValueKind::list:
      sink.add("[");
      write_items(sink, value.items().items, depth + 1);
      return sink.add("]");
    case ValueKind::tuple:
      sink.add("(");
      write_items(sink, value.items().items, depth + 1);
      return sink.add(value.items().items.size() == 1 ? ",)" : ")");
    case ValueKind::dict:
    case ValueKind::name_space: {
      sink.add(value.is_dict() ? "{" : "<Namespace {");
      bool first = true;
      for (const auto& [key, item] : value.dict_data().entries) {
        if (!first) sink.add(", ");
        first = false;
        write_repr(sink, key, depth + 1);
        sink.add(": ");
        write_repr(sink, item, depth + 1);
      }
      return sink.add(value.is_dict() ? "}" : "}>");
    }
    case ValueKind::callable:
      return sink.add(fmt::format("<function {}>", value.callable_data().name));
    case ValueKind::loop:
      return sink.add(
          fmt::format("<LoopContext {}/{}>", value.loop_data().index0 + 1, value.loop_data().items.size()));
  }
}

}  // namespace

std::string to_text(Runtime& rt, const Value& value) {
  if (value.is_string()) return value.text();
  if (value.is_undefined()) return {};
  return to_repr(rt, value);
}

std::string to_repr(Runtime& rt, const Value& value) {
  TextSink sink{rt, {}};
  write_repr(sink, value, 0);
  return std::move(sink.text);
}

namespace {

bool equals_at(Runtime& rt, const Value& a, const Value& b, int depth) {
  check_depth(depth);
  rt.charge(1);
  if (a.is_number() && b.is_number()) {
    if (a.is_integral() && b.is_integral()) return a.as_int() == b.as_int();
    return a.as_real() == b.as_real();
  }
  if (a.kind() != b.kind()) return false;
  switch (a.kind()) {
    case ValueKind::undefined:
    case ValueKind::none:
      return true;
    case ValueKind::string:
      rt.charge(std::min(a.text().size(), b.text().size()) / kBytesPerStep);
      return a.text() == b.text();
    case ValueKind::list:
    case ValueKind::tuple: {
      const auto &x = a.items().items, &y = b.items().items;
      if (x.size() != y.size()) return false;
      for (size_t i = 0; i < x.size(); ++i)
        if (!equals_at(rt, x[i], y[i], depth + 1)) return false;
      return true;
    }
    case ValueKind::dict: {
      if (a.dict_data().entries.size() != b.dict_data().entries.size()) return false;
      for (const auto& [key, item] : a.dict_data().entries) {
        const Value* other = rt.find(b, key);
        if (other == nullptr || !equals_at(rt, item, *other, depth + 1)) return false;
      }
      return true;
    }
    default:
      return a.same_object(b);
  }
}

bool less_at(Runtime& rt, const Value& a, const Value& b, int depth) {
  check_depth(depth);
  rt.charge(1);
  if (a.is_number() && b.is_number()) {
    if (a.is_integral() && b.is_integral()) return a.as_int() < b.as_int();
    return a.as_real() < b.as_real();
  }
  if (a.is_string() && b.is_string()) {
    rt.charge(std::min(a.text().size(), b.text().size()) / kBytesPerStep);
    return a.text() < b.text();  // the order of UTF-8 bytes is the order of code points
  }
  if (a.is_sequence() && a.kind() == b.kind()) {
    const auto &x = a.items().items, &y = b.items().items;
    for (size_t i = 0; i < std::min(x.size(), y.size()); ++i)
      if (!equals_at(rt, x[i], y[i], depth + 1)) return less_at(rt, x[i], y[i], depth + 1);
    return x.size() < y.size();
  }
  fail(fmt::format("values of type {} and {} cannot be ordered", type_name(a), type_name(b)));
}

}  // namespace

bool equals(Runtime& rt, const Value& a, const Value& b) {
  return equals_at(rt, a, b, 0);
}
bool less(Runtime& rt, const Value& a, const Value& b) {
  return less_at(rt, a, b, 0);
}

bool contains(Runtime& rt, const Value& container, const Value& item) {
  switch (container.kind()) {
    case ValueKind::string:
      if (!item.is_string())
        fail(fmt::format("'in <string>' needs a string on its left, not {}", type_name(item)));
      rt.charge(container.text().size() / kBytesPerStep);
      return container.text().find(item.text()) != std::string::npos;
    case ValueKind::list:
    case ValueKind::tuple:
      for (const Value& candidate : container.items().items)
        if (equals(rt, candidate, item)) return true;
      return false;
    case ValueKind::dict:
      return rt.find(container, item) != nullptr;
    case ValueKind::undefined:
      return false;
    default:
      fail(fmt::format("'in' cannot look into a value of type {}", type_name(container)));
  }
}

std::vector<Value> iterate(Runtime& rt, const Value& value) {
  std::vector<Value> items;
  switch (value.kind()) {
    case ValueKind::undefined:
      break;
    case ValueKind::list:
    case ValueKind::tuple:
      rt.reserve(value.items().items.size() * sizeof(Value));
      rt.charge(value.items().items.size() / 4);
      items = value.items().items;
      break;
    case ValueKind::dict:
      rt.reserve(value.dict_data().entries.size() * sizeof(Value));
      rt.charge(value.dict_data().entries.size() / 4);
      for (const auto& entry : value.dict_data().entries) items.push_back(entry.first);
      break;
    case ValueKind::string: {
      // About 100 bytes a character: the value, its shared string and their bookkeeping.
      rt.reserve(value.text().size() * 100);
      for (const std::string_view c : text_characters(value.text())) items.push_back(rt.string(std::string(c)));
      break;
    }
    default:
      fail(fmt::format("a value of type {} cannot be iterated", type_name(value)));
  }
  return items;
}

int64_t length_of(Runtime& rt, const Value& value) {
  switch (value.kind()) {
    case ValueKind::undefined:
      return 0;
    case ValueKind::string:
      rt.charge(value.text().size() / kBytesPerStep);
      return static_cast<int64_t>(text_length(value.text()));
    case ValueKind::list:
    case ValueKind::tuple:
      return static_cast<int64_t>(value.items().items.size());
    case ValueKind::dict:
      return static_cast<int64_t>(value.dict_data().entries.size());
    default:
      fail(fmt::format("a value of type {} has no length", type_name(value)));
  }
}

namespace {

void write_json(TextSink& sink, const Value& value, const JsonStyle& style, int depth);

void new_json_line(TextSink& sink, const JsonStyle& style, int depth) {
  if (style.indent < 0) return;
  sink.add("\n");
  for (int i = 0; i < depth; ++i) sink.add(style.indent_text);
}

std::string json_key(Runtime& rt, const Value& key) {
  if (key.is_string()) return key.text();
  if (key.is_none()) return "null";
  if (key.is(ValueKind::boolean)) return key.as_bool() ? "true" : "false";
  if (key.is_number()) return to_repr(rt, key);
  fail(fmt::format("tojson: a key of type {} cannot be written as JSON", type_name(key)));
}

void write_json_dict(TextSink& sink, const Value& value, const JsonStyle& style, int depth) {
  std::vector<std::pair<std::string, const Value*>> entries;
  for (const auto& [key, item] : value.dict_data().entries) entries.emplace_back(json_key(sink.rt, key), &item);
  if (style.sort_keys)
    std::stable_sort(entries.begin(), entries.end(),
                     [](const auto& a, const auto& b) { return a.first < b.first; });
  if (entries.empty()) return sink.add("{}");
  sink.add("{");
  for (size_t i = 0; i < entries.size(); ++i) {
    if (i > 0) sink.add(style.item_separator);
    new_json_line(sink, style, depth + 1);
    sink.add(quote_json(entries[i].first, style.ascii_only));
    sink.add(style.key_separator);
    write_json(sink, *entries[i].second, style, depth + 1);
  }
  new_json_line(sink, style, depth);
  sink.add("}");
}

void write_json(TextSink& sink, const Value& value, const JsonStyle& style, int depth) {
  check_depth(depth);
  sink.rt.charge(1);
  switch (value.kind()) {
    case ValueKind::none:
      return sink.add("null");
    case ValueKind::boolean:
      return sink.add(value.as_bool() ? "true" : "false");
    case ValueKind::integer:
      return sink.add(fmt::to_string(value.as_int()));
    case ValueKind::real:
      if (std::isnan(value.as_real())) return sink.add("NaN");
      if (std::isinf(value.as_real())) return sink.add(value.as_real() > 0 ? "Infinity" : "-Infinity");
      return sink.add(repr_real(value.as_real()));
    case ValueKind::string:
      return sink.add(quote_json(value.text(), style.ascii_only));
    case ValueKind::list:
    case ValueKind::tuple: {
      const auto& items = value.items().items;
      if (items.empty()) return sink.add("[]");
      sink.add("[");
      for (size_t i = 0; i < items.size(); ++i) {
        if (i > 0) sink.add(style.item_separator);
        new_json_line(sink, style, depth + 1);
        write_json(sink, items[i], style, depth + 1);
      }
      new_json_line(sink, style, depth);
      return sink.add("]");
    }
    case ValueKind::dict:
      return write_json_dict(sink, value, style, depth);
    case ValueKind::undefined:
      fail(fmt::format("tojson: '{}' is undefined", value.missing_name()));
    case ValueKind::name_space:
    case ValueKind::callable:
    case ValueKind::loop:
      fail(fmt::format("tojson: a value of type {} cannot be written as JSON", type_name(value)));
  }
}

}  // namespace

std::string to_json_text(Runtime& rt, const Value& value, const JsonStyle& style) {
  TextSink sink{rt, {}};
  write_json(sink, value, style, 0);
  return std::move(sink.text);
}

}  // namespace sh::chat
