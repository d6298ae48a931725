// SPDX-License-Identifier: MIT
#include "compaction/method.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <string>

namespace sh::compaction {

#define SH_PLUGIN(name) extern const CompactionMethod name;
#include "methods_list.inc"
#undef SH_PLUGIN

namespace {

const CompactionMethod* const kMethods[] = {
#define SH_PLUGIN(name) &name,
#include "methods_list.inc"
#undef SH_PLUGIN
};

// Public names that other programs know and that this version cannot do.
constexpr std::array<std::string_view, 9> kNotYet = {"omp",
                                                     "nonuniform",
                                                     "chunked",
                                                     "chunked_self_study",
                                                     "on_policy",
                                                     "sequential",
                                                     "sequential_on_policy",
                                                     "context_prefill",
                                                     "snapkv"};

std::string available() {
  std::string names;
  for (const CompactionMethod* method : kMethods)
    names += fmt::format("{}{}", names.empty() ? "" : ", ", method->name);
  return names;
}

}  // namespace

std::span<const CompactionMethod* const> methods() {
  return kMethods;
}

Result<const CompactionMethod*> find_method(std::string_view name) {
  for (const CompactionMethod* method : kMethods)
    if (name == method->name) return method;
  if (std::find(kNotYet.begin(), kNotYet.end(), name) != kNotYet.end())
    return Error{ErrorKind::unsupported,
                 fmt::format("compaction method '{}' is a public method name that this version does not have yet; "
                             "available: {}",
                             name, available())};
  return Error{ErrorKind::not_found,
               fmt::format("unknown compaction method '{}'; available: {}", name, available())};
}

std::string_view name_of(QuerySource v) {
  switch (v) {
    case QuerySource::none:
      return "none";
    case QuerySource::prefill:
      return "prefill";
    case QuerySource::repeat_prefill:
      return "repeat_prefill";
    case QuerySource::self_study:
      return "self_study";
  }
  return "";
}

std::string_view name_of(RowScore v) {
  switch (v) {
    case RowScore::recency:
      return "recency";
    case RowScore::max:
      return "max";
    case RowScore::rms:
      return "rms";
    case RowScore::mean:
      return "mean";
  }
  return "";
}

std::string_view name_of(Weighting v) {
  switch (v) {
    case Weighting::none:
      return "none";
    case Weighting::attention_share:
      return "attention_share";
  }
  return "";
}

std::string_view name_of(Fit v) {
  switch (v) {
    case Fit::none:
      return "none";
    case Fit::biases:
      return "biases";
    case Fit::values:
      return "values";
    case Fit::both:
      return "both";
  }
  return "";
}

std::string_view name_of(BudgetPolicy v) {
  switch (v) {
    case BudgetPolicy::uniform:
      return "uniform";
    case BudgetPolicy::global:
      return "global";
  }
  return "";
}

}  // namespace sh::compaction
