// SPDX-License-Identifier: MIT
#include "tools/eval_methods.h"

#include <fmt/format.h>

#include <charconv>

#include "kernels/kernel_set.h"

namespace sh::tools {

namespace {

constexpr std::string_view kQuantised = "kv:";

Result<void> set_keep(MethodSpec& spec, const std::string& value) {
  const auto [end, code] = std::from_chars(value.data(), value.data() + value.size(), spec.n_keep);
  if (code != std::errc() || end != value.data() + value.size() || spec.n_keep < 0)
    return Error{ErrorKind::invalid_argument,
                 fmt::format("reprefill: keep: expected a number of tokens of at least 0, got '{}'", value)};
  return {};
}

/// ":name=value" after the method's name, any number of them.
Result<void> read_options(MethodSpec& spec, std::string_view rest) {
  while (!rest.empty()) {
    rest.remove_prefix(1);
    const std::string option(rest.substr(0, rest.find(':')));
    rest.remove_prefix(option.size());
    const size_t equals = option.find('=');
    if (equals == std::string::npos)
      return Error{ErrorKind::invalid_argument,
                   fmt::format("method '{}': expected name:option=value, got '{}'", spec.label, option)};
    const std::string name = option.substr(0, equals), value = option.substr(equals + 1);
    if (spec.kind == MethodSpec::Kind::compaction) {
      SH_RETURN_IF_ERROR(engine::set_option(spec.request, name, value));
    } else if (spec.kind == MethodSpec::Kind::reprefill && name == "keep") {
      SH_RETURN_IF_ERROR(set_keep(spec, value));
    } else {
      return Error{ErrorKind::invalid_argument,
                   fmt::format("method '{}': unknown option '{}'{}", spec.label, name,
                               spec.kind == MethodSpec::Kind::reprefill ? "; known: keep" : "")};
    }
    spec.options[name] = value;
  }
  return {};
}

Result<DType> cache_type(const std::string& label, const std::string& name) {
  const auto type = dtype_from_name(name);
  if (!type.ok() || !kernels::is_kv_dtype(*type))
    return Error{ErrorKind::invalid_argument,
                 fmt::format("method '{}': '{}' cannot hold a KV cache; use one of {}", label, name,
                             kernels::kv_dtype_names())};
  return *type;
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
    SH_ASSIGN(spec.kv_type, cache_type(text, type));
    rest.remove_prefix(type.size());
    if (rest.empty()) {
      spec.kind = MethodSpec::Kind::quantised;
      return spec;
    }
    rest.remove_prefix(1);
  }
  spec.request.method = std::string(rest.substr(0, rest.find(':')));
  rest.remove_prefix(spec.request.method.size());
  if (spec.request.method == "reprefill" && !spec.kv_type) {
    spec.kind = MethodSpec::Kind::reprefill;
  } else {
    SH_RETURN_IF_ERROR(compaction::find_method(spec.request.method));
  }
  SH_RETURN_IF_ERROR(read_options(spec, rest));
  return spec;
}

}  // namespace sh::tools
