// SPDX-License-Identifier: MIT
#include "compaction/method.h"

#include <fmt/format.h>

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

std::string available() {
  std::string names;
  for (const CompactionMethod* method : kMethods)
    names += fmt::format("{}{}{}{}", names.empty() ? "" : ", ", method->name,
                         method->alias == nullptr ? "" : " or ", method->alias == nullptr ? "" : method->alias);
  return names;
}

}  // namespace

std::span<const CompactionMethod* const> methods() {
  return kMethods;
}

Result<const CompactionMethod*> find_method(std::string_view name) {
  for (const CompactionMethod* method : kMethods)
    if (name == method->name || (method->alias != nullptr && name == method->alias)) return method;
  return Error{ErrorKind::not_found,
               fmt::format("unknown compaction method '{}'; available: {}", name, available())};
}

namespace {

template <typename Axis>
struct Choice {
  Axis value;
  std::string_view name;
};
// One table an axis: names, parsing and the lists in messages are made from it.
template <typename Axis>
struct AxisTable;
template <>
struct AxisTable<QuerySource> {
  static constexpr std::string_view axis = "queries";
  static constexpr Choice<QuerySource> choices[] = {{QuerySource::none, "none"},
                                                    {QuerySource::cache_keys, "cache_keys"},
                                                    {QuerySource::recent, "recent"},
                                                    {QuerySource::prefill, "prefill"},
                                                    {QuerySource::repeat_prefill, "repeat_prefill"},
                                                    {QuerySource::self_study, "self_study"}};
};
template <>
struct AxisTable<RowScore> {
  static constexpr std::string_view axis = "score";
  static constexpr Choice<RowScore> choices[] = {
      {RowScore::recency, "recency"}, {RowScore::max, "max"},   {RowScore::max_or_unasked, "max_or_unasked"},
      {RowScore::rms, "rms"},         {RowScore::mean, "mean"}, {RowScore::random, "random"}};
};
template <>
struct AxisTable<Weighting> {
  static constexpr std::string_view axis = "weighting";
  static constexpr Choice<Weighting> choices[] = {{Weighting::none, "none"},
                                                  {Weighting::attention_share, "attention_share"}};
};
template <>
struct AxisTable<Selection> {
  static constexpr std::string_view axis = "selection";
  static constexpr Choice<Selection> choices[] = {{Selection::attention, "attention"}, {Selection::omp, "omp"}};
};
template <>
struct AxisTable<Fit> {
  static constexpr std::string_view axis = "fit";
  static constexpr Choice<Fit> choices[] = {
      {Fit::none, "none"}, {Fit::biases, "biases"}, {Fit::values, "values"}, {Fit::both, "both"}};
};
template <>
struct AxisTable<BudgetPolicy> {
  static constexpr std::string_view axis = "budget";
  static constexpr Choice<BudgetPolicy> choices[] = {{BudgetPolicy::uniform, "uniform"},
                                                     {BudgetPolicy::global, "global"},
                                                     {BudgetPolicy::sensitivity, "sensitivity"},
                                                     {BudgetPolicy::profile, "profile"}};
};
template <>
struct AxisTable<Schedule> {
  static constexpr std::string_view axis = "schedule";
  static constexpr Choice<Schedule> choices[] = {{Schedule::one_shot, "one_shot"},
                                                 {Schedule::chunked, "chunked"},
                                                 {Schedule::on_policy, "on_policy"},
                                                 {Schedule::layer_sequential, "layer_sequential"}};
};

template <typename Axis>
std::string_view choice_name(Axis value) {
  for (const Choice<Axis>& choice : AxisTable<Axis>::choices)
    if (choice.value == value) return choice.name;
  return "";
}

}  // namespace

template <typename Axis>
Result<Axis> parse_axis(std::string_view text) {
  std::string names;
  for (const Choice<Axis>& choice : AxisTable<Axis>::choices) {
    if (choice.name == text) return choice.value;
    names += fmt::format("{}{}", names.empty() ? "" : ", ", choice.name);
  }
  return Error{ErrorKind::invalid_argument,
               fmt::format("{}: expected one of {}; got '{}'", AxisTable<Axis>::axis, names, text.substr(0, 60))};
}
template Result<QuerySource> parse_axis(std::string_view);
template Result<RowScore> parse_axis(std::string_view);
template Result<Weighting> parse_axis(std::string_view);
template Result<Selection> parse_axis(std::string_view);
template Result<Fit> parse_axis(std::string_view);
template Result<BudgetPolicy> parse_axis(std::string_view);
template Result<Schedule> parse_axis(std::string_view);

Result<QuerySources> parse_query_sources(std::string_view text) {
  QuerySources sources = QuerySource::none;
  for (std::string_view rest = text;;) {
    const size_t plus = rest.find('+');
    SH_ASSIGN(const QuerySource source, parse_axis<QuerySource>(rest.substr(0, plus)));
    sources = sources | source;
    if (plus == std::string_view::npos) return sources;
    rest.remove_prefix(plus + 1);
  }
}

std::string name_of(QuerySources v) {
  std::string names;
  for (const auto& choice : AxisTable<QuerySource>::choices)
    if (v.has(choice.value)) names += fmt::format("{}{}", names.empty() ? "" : "+", choice.name);
  return names.empty() ? "none" : names;
}
std::string_view name_of(RowScore v) {
  return choice_name(v);
}
std::string_view name_of(Weighting v) {
  return choice_name(v);
}
std::string_view name_of(Selection v) {
  return choice_name(v);
}
std::string_view name_of(Fit v) {
  return choice_name(v);
}
std::string_view name_of(BudgetPolicy v) {
  return choice_name(v);
}
std::string_view name_of(Schedule v) {
  return choice_name(v);
}

}  // namespace sh::compaction
