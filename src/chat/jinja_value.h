// SPDX-License-Identifier: MIT
// The values of the Jinja interpreter, with Python's semantics, and the store that owns them during one render.
#pragma once

#include <bit>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "base/json.h"
#include "chat/chat_template.h"
#include "chat/jinja_error.h"

namespace sh::chat {

class Runtime;
struct ListData;
struct DictData;
struct LoopData;
struct CallableData;

/// What values share: counted references, so that temporaries of long conversations are freed while a render runs.
/// The Runtime knows all objects and frees what cycles keep alive.
struct Object {
  virtual ~Object() = default;
  /// Lets go of the values inside, before the object is deleted: deep nesting must not recurse in destructors.
  virtual void drop_values() = 0;
  Runtime* runtime = nullptr;
  Object *previous = nullptr, *next = nullptr;  // all objects of the Runtime
  uint64_t n_references = 0;
  uint64_t n_charged_bytes = 0;
};

/// A string and the counter of living bytes that it is charged to (null for constants of the template).
struct StringData {
  StringData(std::string t, size_t* counter) : text(std::move(t)), live_bytes(counter) {
    if (live_bytes) *live_bytes += text.capacity();
  }
  ~StringData() {
    if (live_bytes) *live_bytes -= text.capacity();
  }
  StringData(const StringData&) = delete;
  StringData& operator=(const StringData&) = delete;
  std::string text;
  size_t* live_bytes;
};

enum class ValueKind : uint8_t {
  undefined,
  none,
  boolean,
  integer,
  real,
  string,
  list,
  tuple,
  dict,
  name_space,
  callable,
  loop,  // objects, see Value::is_object
};

/// One value. Strings are immutable and shared (shared_ptr: constants of a template are used by many renders at
/// once); containers, functions and loops are objects of one Runtime, which must outlive their values.
class Value {
 public:
  Value() = default;
  Value(const Value& other) : kind_(other.kind_), integer_(other.integer_), text_(other.text_) { retain(); }
  Value(Value&& other) noexcept
      : kind_(std::exchange(other.kind_, ValueKind::undefined)),
        integer_(std::exchange(other.integer_, 0)),
        text_(std::move(other.text_)) {}
  Value& operator=(const Value& other) { return *this = Value(other); }
  Value& operator=(Value&& other) noexcept {
    std::swap(kind_, other.kind_);
    std::swap(integer_, other.integer_);
    std::swap(text_, other.text_);
    return *this;
  }
  ~Value() {
    if (is_object()) release();
  }

  static Value none() { return Value(ValueKind::none, 0); }
  static Value boolean(bool b) { return Value(ValueKind::boolean, b); }
  static Value integer(int64_t i) { return Value(ValueKind::integer, i); }
  static Value real(double r) { return Value(ValueKind::real, std::bit_cast<int64_t>(r)); }
  static Value constant(std::string text) {
    return string(std::make_shared<const StringData>(std::move(text), nullptr));
  }
  static Value string(std::shared_ptr<const StringData> text) {
    Value v(ValueKind::string, 0);
    v.text_ = std::move(text);
    return v;
  }
  /// An undefined value that knows what was missing.
  static Value undefined(std::shared_ptr<const StringData> what) {
    Value v;
    v.text_ = std::move(what);
    return v;
  }
  /// Needs: the kind fits the object (list and tuple: ListData, dict and name_space: DictData).
  static Value object(ValueKind kind, Object* object) {
    Value v(kind, static_cast<int64_t>(reinterpret_cast<intptr_t>(object)));
    v.retain();
    return v;
  }

  ValueKind kind() const { return kind_; }
  bool is(ValueKind kind) const { return kind_ == kind; }
  bool is_undefined() const { return kind_ == ValueKind::undefined; }
  bool is_none() const { return kind_ == ValueKind::none; }
  bool is_string() const { return kind_ == ValueKind::string; }
  bool is_sequence() const { return kind_ == ValueKind::list || kind_ == ValueKind::tuple; }
  bool is_dict() const { return kind_ == ValueKind::dict; }
  bool is_number() const {
    return kind_ == ValueKind::integer || kind_ == ValueKind::real || kind_ == ValueKind::boolean;
  }
  /// An integer or a boolean, which Python counts as one.
  bool is_integral() const { return kind_ == ValueKind::integer || kind_ == ValueKind::boolean; }

  // Needs: the kind fits.
  bool as_bool() const { return integer_ != 0; }
  int64_t as_int() const { return integer_; }
  double as_real() const {
    return kind_ == ValueKind::real ? std::bit_cast<double>(integer_) : static_cast<double>(integer_);
  }
  const std::string& text() const { return text_->text; }
  inline ListData& items() const;
  inline DictData& dict_data() const;
  inline LoopData& loop_data() const;
  inline CallableData& callable_data() const;
  /// What an undefined value was meant to be, for messages.
  std::string missing_name() const { return text_ ? text_->text : "value"; }
  /// Containers and callables: the same object.
  bool same_object(const Value& other) const { return kind_ == other.kind_ && integer_ == other.integer_; }

 private:
  Value(ValueKind kind, int64_t payload) : kind_(kind), integer_(payload) {}
  bool is_object() const { return kind_ >= ValueKind::list; }
  Object* object() const { return reinterpret_cast<Object*>(static_cast<intptr_t>(integer_)); }
  void retain() {
    if (is_object()) ++object()->n_references;
  }
  void release();

  ValueKind kind_ = ValueKind::undefined;
  int64_t integer_ = 0;  // an integer, a boolean, the bits of a real or the address of an Object
  std::shared_ptr<const StringData> text_;
};

struct ListData final : Object {
  void drop_values() override { items.clear(); }
  std::vector<Value> items;
};

/// Insertion-ordered. Looked up one by one: the dictionaries of chat templates have a handful of keys, and every
/// look-up pays steps.
struct DictData final : Object {
  void drop_values() override { entries.clear(); }
  std::vector<std::pair<Value, Value>> entries;
};

/// The `loop` variable of a for loop.
struct LoopData final : Object {
  void drop_values() override {
    items.clear();
    last_changed = Value();
  }
  std::vector<Value> items;
  int64_t index0 = 0;
  Value last_changed;  // what loop.changed() saw last; a tuple, or undefined before the first call
};

/// Arguments of a call: filter, test, function, method or macro.
struct CallArgs {
  std::vector<Value> positional;
  std::vector<std::pair<std::string, Value>> named;

  /// The argument at `index`, or called `name`; null or undefined if there is neither.
  const Value* find(size_t index, std::string_view name) const;
  const Value& get(size_t index, std::string_view name) const;
  bool has(size_t index, std::string_view name) const { return find(index, name) != nullptr; }
};

struct CallableData final : Object {
  void drop_values() override { call = nullptr; }
  std::string name;
  std::function<Value(Runtime&, const CallArgs&)> call;
};

ListData& Value::items() const {
  return static_cast<ListData&>(*object());
}
DictData& Value::dict_data() const {
  return static_cast<DictData&>(*object());
}
LoopData& Value::loop_data() const {
  return static_cast<LoopData&>(*object());
}
CallableData& Value::callable_data() const {
  return static_cast<CallableData&>(*object());
}

/// Owns the objects of one render and enforces its limits. Not thread-safe: one per render.
class Runtime {
 public:
  explicit Runtime(const RenderLimits& limits, int64_t now_unix_seconds)
      : limits_(limits), now_unix_seconds_(now_unix_seconds) {}
  ~Runtime();
  Runtime(const Runtime&) = delete;
  Runtime& operator=(const Runtime&) = delete;

  /// Pays for work. Throws TemplateError when the budget of steps is spent.
  void charge(uint64_t n_steps);
  /// Checks that `n_bytes` more may live. Throws TemplateError.
  void reserve(uint64_t n_bytes);

  Value string(std::string text);
  Value undefined(std::string what);
  Value list(std::vector<Value> items);
  Value tuple(std::vector<Value> items);
  Value dict(std::vector<std::pair<Value, Value>> entries);
  Value name_space(std::vector<std::pair<Value, Value>> entries);
  Value callable(std::string name, std::function<Value(Runtime&, const CallArgs&)> call);
  Value loop(std::vector<Value> items);
  /// A value from JSON; not charged against the limits, since its size is the request's.
  Value from_json(const Json& json);

  /// Appends to a list, or sets a key of a dictionary.
  void append(const Value& list, Value item);
  void set(const Value& dict, const Value& key, Value value);
  /// Null if the key is missing.
  const Value* find(const Value& dict, const Value& key);
  const Value* find(const Value& dict, std::string_view key);

  const RenderLimits& limits() const { return limits_; }
  int64_t now_unix_seconds() const { return now_unix_seconds_; }

  /// Deletes an object that no value refers to any more; called by Value.
  void retire(Object* object);

 private:
  template <typename Data>
  Value adopt(ValueKind kind, std::unique_ptr<Data> data, uint64_t n_bytes);
  void charge_growth(Object& object, uint64_t n_bytes);
  void free_retired();

  RenderLimits limits_;
  int64_t now_unix_seconds_;
  uint64_t n_steps_ = 0;
  size_t live_bytes_ = 0;
  Object* objects_ = nullptr;
  std::vector<Object*> retired_;
  bool is_freeing_ = false;
};

[[noreturn]] void fail(std::string message);

/// Python's names: str, int, list ...
std::string_view type_name(const Value& value);
bool is_true(const Value& value);
/// What `{{ value }}` prints: str(), with undefined as "".
std::string to_text(Runtime& rt, const Value& value);
/// Python's repr().
std::string to_repr(Runtime& rt, const Value& value);
bool equals(Runtime& rt, const Value& a, const Value& b);
/// a < b for numbers, strings and sequences. Throws TemplateError for other pairs.
bool less(Runtime& rt, const Value& a, const Value& b);
/// `item in container`.
bool contains(Runtime& rt, const Value& container, const Value& item);
/// The items that a for loop would see: of a list, the keys of a dict, the characters of a string; nothing for
/// undefined. Throws TemplateError for what cannot be iterated.
std::vector<Value> iterate(Runtime& rt, const Value& value);
int64_t length_of(Runtime& rt, const Value& value);

struct JsonStyle {
  int64_t indent = -1;      // negative: one line
  std::string indent_text;  // what one level is indented by, if not `indent` blanks
  bool ascii_only = false;
  bool sort_keys = false;
  std::string item_separator = ", ", key_separator = ": ";
};
/// Python's json.dumps().
std::string to_json_text(Runtime& rt, const Value& value, const JsonStyle& style);

}  // namespace sh::chat
