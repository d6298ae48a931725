// SPDX-License-Identifier: MIT
#include "engine/compaction_report.h"

#include <fmt/format.h>

#include <charconv>
#include <cmath>

#include "engine/region_plan.h"

namespace sh::engine {

namespace {

using compaction::parse_axis;

template <typename Number>
Result<Number> parse_number(std::string_view name, std::string_view value, Number lowest, Number highest) {
  Number n{};
  const auto [end, code] = std::from_chars(value.data(), value.data() + value.size(), n);
  if (code != std::errc() || end != value.data() + value.size() || !(n >= lowest && n <= highest))
    return Error{ErrorKind::invalid_argument,
                 fmt::format("{}: expected a number from {} to {}, got '{}'", name, lowest, highest, value)};
  return n;
}

struct Option {
  std::string_view name;
  Result<void> (*set)(CompactionRequest& request, std::string_view name, std::string_view value);
  bool (*matters)(const compaction::CompactionMethod& method) = nullptr;  // null: for every method
};
bool is_studied(const compaction::CompactionMethod& method) {
  return method.queries.has(compaction::QuerySource::self_study);
}
bool is_pursued(const compaction::CompactionMethod& method) {
  return method.selection == compaction::Selection::omp;
}
bool is_read_again(const compaction::CompactionMethod& method) {
  return method.queries.has(compaction::QuerySource::prefill) ||
         method.queries.has(compaction::QuerySource::repeat_prefill);
}
bool is_chunked(const compaction::CompactionMethod& method) {
  return method.schedule == compaction::Schedule::chunked;
}

template <typename Axis, std::optional<Axis> CompactionRequest::* field>
Result<void> set_axis(CompactionRequest& request, std::string_view, std::string_view value) {
  SH_ASSIGN(request.*field, parse_axis<Axis>(value));
  return {};
}

constexpr Option kOptions[] = {
    {"queries",
     [](CompactionRequest& r, std::string_view, std::string_view value) -> Result<void> {
       SH_ASSIGN(r.queries, compaction::parse_query_sources(value));
       return {};
     }},
    {"score", set_axis<compaction::RowScore, &CompactionRequest::score>},
    {"weighting", set_axis<compaction::Weighting, &CompactionRequest::weighting>},
    {"selection", set_axis<compaction::Selection, &CompactionRequest::selection>},
    {"fit", set_axis<compaction::Fit, &CompactionRequest::fit>},
    {"budget", set_axis<compaction::BudgetPolicy, &CompactionRequest::budget>},
    {"schedule", set_axis<compaction::Schedule, &CompactionRequest::schedule>},
    {"reread",
     [](CompactionRequest& r, std::string_view name, std::string_view value) -> Result<void> {
       SH_ASSIGN(r.reread_fraction, parse_number<double>(name, value, 0.0, 1.0));
       return {};
     },
     is_read_again},
    {"conversations",
     [](CompactionRequest& r, std::string_view name, std::string_view value) -> Result<void> {
       SH_ASSIGN(r.self_study.n_conversations, parse_number<int32_t>(name, value, 1, 65536));
       return {};
     },
     is_studied},
    {"round",
     [](CompactionRequest& r, std::string_view name, std::string_view value) -> Result<void> {
       SH_ASSIGN(r.self_study.round_conversations, parse_number<int32_t>(name, value, 1, 65536));
       return {};
     },
     is_studied},
    {"omp_keys",
     [](CompactionRequest& r, std::string_view name, std::string_view value) -> Result<void> {
       SH_ASSIGN(r.solve.omp.keys_per_step, parse_number<int32_t>(name, value, 1, 1024));
       return {};
     },
     is_pursued},
    {"omp_refit",
     [](CompactionRequest& r, std::string_view name, std::string_view value) -> Result<void> {
       SH_ASSIGN(r.solve.omp.steps_per_refit, parse_number<int32_t>(name, value, 1, 1024));
       return {};
     },
     is_pursued},
    {"omp_seconds",
     [](CompactionRequest& r, std::string_view name, std::string_view value) -> Result<void> {
       SH_ASSIGN(r.solve.omp.deadline_seconds, parse_number<double>(name, value, 0, 1e6));
       return {};
     },
     is_pursued},
    {"prompts",
     [](CompactionRequest& r, std::string_view name, std::string_view value) -> Result<void> {
       SH_ASSIGN(const int32_t n, parse_number<int32_t>(name, value, 0, 1));
       r.self_study.uses_prompts = n == 1;
       return {};
     },
     is_studied},
    {"coverage",
     [](CompactionRequest& r, std::string_view name, std::string_view value) -> Result<void> {
       SH_ASSIGN(r.self_study.coverage_tolerance, parse_number<double>(name, value, 0.0, 1.0));
       return {};
     },
     is_studied},
    {"chunk",
     [](CompactionRequest& r, std::string_view name, std::string_view value) -> Result<void> {
       SH_ASSIGN(r.solve.chunk_tokens, parse_number<int64_t>(name, value, 1, int64_t{1} << 40));
       return {};
     },
     is_chunked},
};

}  // namespace

Result<void> set_option(CompactionRequest& request, std::string_view name, std::string_view value) {
  std::string known;
  for (const Option& option : kOptions) {
    if (option.name == name) return option.set(request, name, value);
    known += fmt::format("{}{}", known.empty() ? "" : ", ", option.name);
  }
  return Error{ErrorKind::invalid_argument,
               fmt::format("unknown compaction option '{}'; known: {}", name.substr(0, 60), known)};
}

bool option_matters(const CompactionRequest& request, std::string_view name) {
  const auto method = method_of(request);
  for (const Option& option : kOptions)
    if (option.name == name) return option.matters == nullptr || !method.ok() || option.matters(*method);
  return true;
}

Result<void> check_request(const CompactionRequest& request) {
  const auto refuse = [](const std::string& message) { return Error{ErrorKind::invalid_argument, message}; };
  if (!(request.ratio >= 1.0) || !std::isfinite(request.ratio))
    return refuse(fmt::format("ratio: expected a number of at least 1, got {}", request.ratio));
  if (request.target.kl > 0 && request.target.head_error > 0)
    return refuse(fmt::format("target: expected a kl or a head_error, got both ({} and {}); leave one out",
                              request.target.kl, request.target.head_error));
  if (request.target.head_error >= 1)
    return refuse(
        fmt::format("target head_error: expected a number below 1, got {}: a head that gives nothing at all "
                    "has an error of 1",
                    request.target.head_error));
  if (request.max_kl > 0 && request.target.kl > request.max_kl)
    return refuse(
        fmt::format("max_kl: expected at least the target's kl ({}), got {}: what is compacted to the "
                    "target would be refused",
                    request.target.kl, request.max_kl));
  return {};
}

std::string shortfall_text(const CompactionReport& report) {
  // Part of a row is rounding.
  if (report.aimed_rows <= 0 || report.rows_after < report.aimed_rows + 1) return "";
  return fmt::format(", not the {:.0f} that --compact-ratio asks for: {:.0f} stay as they are", report.aimed_rows,
                     report.rows_fixed);
}

const char* name_of(Verdict verdict) {
  switch (verdict) {
    case Verdict::unknown:
      return "unknown";
    case Verdict::transparent:
      return "transparent";
    case Verdict::good:
      return "good";
    case Verdict::gist:
      return "gist";
    case Verdict::reject:
      return "reject";
  }
  return "";
}

}  // namespace sh::engine
