// SPDX-License-Identifier: MIT
#include "tools/eval_methods.h"

#include <fmt/format.h>

#include <charconv>

#include "kv/layout.h"

namespace sh::tools {

namespace {

constexpr std::string_view kQuantised = "kv:";

/// A method that compacts no cache, and the option that it has.
struct TextMethod {
  const char* name;
  MethodSpec::Kind kind;
  const char* option;  // nullptr: none
  int64_t MethodSpec::*number;
  int64_t least;
};
constexpr TextMethod kTextMethods[] = {
    {"reprefill", MethodSpec::Kind::reprefill, "keep", &MethodSpec::n_keep, 0},
    {"summary", MethodSpec::Kind::summary, nullptr, nullptr, 0},
    {"retrieval", MethodSpec::Kind::retrieval, "words", &MethodSpec::n_words, 1},
};

Result<void> set_number(MethodSpec& spec, const TextMethod& method, const std::string& value) {
  int64_t& number = spec.*method.number;
  const auto [end, code] = std::from_chars(value.data(), value.data() + value.size(), number);
  if (code != std::errc() || end != value.data() + value.size() || number < method.least)
    return Error{ErrorKind::invalid_argument, fmt::format("{}: {}: expected a number of at least {}, got '{}'",
                                                          method.name, method.option, method.least, value)};
  return {};
}

/// ":name=value" after the method's name, any number of them.
Result<void> read_options(MethodSpec& spec, const TextMethod* method, std::string_view rest) {
  while (!rest.empty()) {
    rest.remove_prefix(1);
    const std::string option(rest.substr(0, rest.find(':')));
    rest.remove_prefix(option.size());
    const size_t equals = option.find('=');
    if (equals == std::string::npos)
      return Error{ErrorKind::invalid_argument,
                   fmt::format("method '{}': expected name:option=value, got '{}'", spec.label, option)};
    const std::string name = option.substr(0, equals), value = option.substr(equals + 1);
    const std::string known = method != nullptr && method->option != nullptr ? method->option : "";
    if (method == nullptr) {
      SH_RETURN_IF_ERROR(engine::set_option(spec.request, name, value));
    } else if (name == known) {
      SH_RETURN_IF_ERROR(set_number(spec, *method, value));
    } else {
      return Error{ErrorKind::invalid_argument,
                   fmt::format("method '{}': unknown option '{}'; {}", spec.label, name,
                               known.empty() ? "it has none" : "known: " + known)};
    }
    spec.options[name] = value;
  }
  return {};
}

}  // namespace

Result<MethodSpec> parse_method_spec(const std::string& text) {
  MethodSpec spec{.label = text};
  if (text == "full:rerun") {
    spec.kind = MethodSpec::Kind::rerun;
    return spec;
  }
  std::string_view rest = text;
  if (rest.starts_with(kQuantised)) {
    rest.remove_prefix(kQuantised.size());
    const std::string type(rest.substr(0, rest.find('+')));
    const auto dtype = kv::cache_dtype_from_name(type);
    if (!dtype.ok()) return Error{dtype.error().kind, fmt::format("method '{}': {}", text, dtype.error().message)};
    spec.kv_type = *dtype;
    rest.remove_prefix(type.size());
    if (rest.empty()) {
      spec.kind = MethodSpec::Kind::quantised;
      return spec;
    }
    rest.remove_prefix(1);
  }
  spec.request.method = std::string(rest.substr(0, rest.find(':')));
  rest.remove_prefix(spec.request.method.size());
  const TextMethod* text_method = nullptr;
  for (const TextMethod& method : kTextMethods)
    if (spec.request.method == method.name && !spec.kv_type) text_method = &method;
  if (text_method != nullptr)
    spec.kind = text_method->kind;
  else if (const auto known = compaction::find_method(spec.request.method); !known.ok())
    return Error{known.error().kind,
                 fmt::format("{}; beside them reprefill, summary, retrieval, full:rerun, kv:TYPE and kv:TYPE+METHOD",
                             known.error().message)};
  SH_RETURN_IF_ERROR(read_options(spec, text_method, rest));
  return spec;
}

Result<engine::CompactionRequest> parse_compaction(const char* flag, const std::string& text) {
  const auto spec = parse_method_spec(text);
  if (!spec.ok()) return Error{spec.error().kind, fmt::format("{}: {}", flag, spec.error().message)};
  if (spec->kind != MethodSpec::Kind::compaction || spec->kv_type)
    return Error{ErrorKind::invalid_argument,
                 fmt::format("{}: expected a compaction, got '{}'; -ctk and -ctv choose the encoding of the cache",
                             flag, text)};
  return spec->request;
}

}  // namespace sh::tools
