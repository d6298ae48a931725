// SPDX-License-Identifier: MIT
// The values of the Jinja interpreter, with Python's semantics, and the store that owns them during one render.
#pragma once

#include <cstdint>
#include <deque>
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
  undefined, none, boolean, integer, real, string, list, tuple, dict, name_space, callable, loop
};

/// One value. Strings are shared and immutable (shared_ptr: constants of a template are used by many renders at once); containers live in
/// the Runtime of the render, so that cycles neither leak nor recurse in a destructor.
class Value {
 public:
  Value() = default;
  static Value none() { return Value(ValueKind::none); }
  static Value boolean(bool b) { Value v(ValueKind::boolean); v.boolean_ = b; return v; }
  static Value integer(int64_t i) { Value v(ValueKind::integer); v.integer_ = i; return v; }
  static Value real(double r) { Value v(ValueKind::real); v.real_ = r; return v; }
  static Value constant(std::string text) { return string(std::make_shared<const StringData>(std::move(text), nullptr)); }
  static Value string(std::shared_ptr<const StringData> text) {
    Value v(ValueKind::string);
    v.text_ = std::move(text);
    return v;
  }
  /// An undefined value that knows what was missing.
  static Value undefined(std::shared_ptr<const StringData> what) { Value v; v.text_ = std::move(what); return v; }
  static Value list(ListData* data) { Value v(ValueKind::list); v.list_ = data; return v; }
  static Value tuple(ListData* data) { Value v(ValueKind::tuple); v.list_ = data; return v; }
  static Value dict(DictData* data) { Value v(ValueKind::dict); v.dict_ = data; return v; }
  static Value name_space(DictData* data) { Value v(ValueKind::name_space); v.dict_ = data; return v; }
  static Value callable(CallableData* data) { Value v(ValueKind::callable); v.callable_ = data; return v; }
  static Value loop(LoopData* data) { Value v(ValueKind::loop); v.loop_ = data; return v; }

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
  bool as_bool() const { return boolean_; }
  int64_t as_int() const { return kind_ == ValueKind::boolean ? boolean_ : integer_; }
  double as_real() const { return kind_ == ValueKind::real ? real_ : static_cast<double>(as_int()); }
  const std::string& text() const { return text_->text; }
  ListData& items() const { return *list_; }
  DictData& dict_data() const { return *dict_; }
  LoopData& loop_data() const { return *loop_; }
  CallableData& callable_data() const { return *callable_; }
  /// What an undefined value was meant to be, for messages.
  std::string missing_name() const { return text_ ? text_->text : "value"; }
  /// Containers and callables: the same object.
  bool same_object(const Value& other) const { return kind_ == other.kind_ && list_ == other.list_; }

 private:
  explicit Value(ValueKind kind) : kind_(kind) {}

  ValueKind kind_ = ValueKind::undefined;
  union {
    bool boolean_;
    int64_t integer_ = 0;
    double real_;
    ListData* list_;
    DictData* dict_;
    LoopData* loop_;
    CallableData* callable_;
  };
  std::shared_ptr<const StringData> text_;
};

struct ListData {
  std::vector<Value> items;
};

/// Insertion-ordered. Looked up one by one: the dictionaries of chat templates have a handful of keys, and every look-up pays steps.
struct DictData {
  std::vector<std::pair<Value, Value>> entries;
};

/// The `loop` variable of a for loop.
struct LoopData {
  std::vector<Value> items;  // emptied when the loop ends, so that many loops do not add up
  int64_t index0 = 0;
  int64_t depth0 = 0;
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

struct CallableData {
  std::string name;
  std::function<Value(Runtime&, const CallArgs&)> call;
};

/// Owns the containers of one render and enforces its limits. Not thread-safe: one per render.
class Runtime {
 public:
  explicit Runtime(const RenderLimits& limits, int64_t now_unix_seconds)
      : limits_(limits), now_unix_seconds_(now_unix_seconds) {}
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
  LoopData* loop();
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

 private:
  RenderLimits limits_;
  int64_t now_unix_seconds_;
  uint64_t n_steps_ = 0;
  size_t live_bytes_ = 0;  // above the containers, so that it outlives their strings
  std::deque<ListData> lists_;
  std::deque<DictData> dicts_;
  std::deque<LoopData> loops_;
  std::deque<CallableData> callables_;
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
/// The items that a for loop would see: of a list, the keys of a dict, the characters of a string; nothing for undefined.
/// Throws TemplateError for what cannot be iterated.
std::vector<Value> iterate(Runtime& rt, const Value& value);
int64_t length_of(Runtime& rt, const Value& value);

struct JsonStyle {
  int64_t indent = -1;         // negative: one line
  std::string indent_text;     // what one level is indented by, if not `indent` blanks
  bool ascii_only = false;
  bool sort_keys = false;
  std::string item_separator = ", ", key_separator = ": ";
};
/// Python's json.dumps().
std::string to_json_text(Runtime& rt, const Value& value, const JsonStyle& style);

}  // namespace sh::chat
