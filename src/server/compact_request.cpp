// SPDX-License-Identifier: MIT
#include "server/compact_request.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "base/env.h"
#include "compaction/method.h"
#include "engine/region_plan.h"
#include "server/field_reader.h"

namespace sh::server {
namespace {

constexpr int64_t kMaxTokens = int64_t{1} << 40;
constexpr size_t kMaxPinnedSpans = 1000;
constexpr int32_t kMaxConversations = 65536;
constexpr size_t kMaxShownName = 60;  // longer than any method's name

/// Fields of the fork that have no counterpart: lambda (our ridges are chosen by held-out queries), the passes of
/// an on-policy fit (there is one) and the tokens of a sequential study.
constexpr const char* kUnusedFields[] = {"lambda", "n_on_policy_passes", "n_generate_q_sequential"};

void note_unused(const FieldReader& fields, const char* name, Json& unused) {
  if (fields.find(name) != nullptr) unused.push_back(name);
}

/// Sizes that another one overrides.
void note_overridden_sizes(const FieldReader& fields, const engine::CompactionRequest& request, Json& unused) {
  const bool has_target = request.target.is_set();
  if (has_target) note_unused(fields, "target_tokens", unused);
  if (!has_target && request.target_rows <= 0) return;
  note_unused(fields, "ratio", unused);
  note_unused(fields, "of_whole_cache", unused);
}

/// Numbers and options that make no difference to the method. Needs: all axes read.
void note_idle_choices(const FieldReader& fields, const engine::CompactionRequest& request, Json& unused) {
  const auto method = engine::method_of(request);
  if (!method.ok()) return;  // refused for that
  if (!engine::option_matters(request, "conversations")) note_unused(fields, "n_generate", unused);
  const bool fits_biases = method->fit == compaction::Fit::biases || method->fit == compaction::Fit::both;
  if (!fits_biases) note_unused(fields, "nnls_iters", unused);
  if (!method->needs_queries())
    for (const char* name : {"max_queries", "max_queries_per_kv_head"}) note_unused(fields, name, unused);
  const Json* options = fields.find("options");
  if (options == nullptr || !options->is_object()) return;
  for (const auto& [name, value] : options->items())
    if (!engine::option_matters(request, name)) unused.push_back("options." + name);
}

/// What nobody reads is named in the answer: a slip of the pen must not look obeyed.
void note_unread(const FieldReader& fields, Json& unused) {
  for (std::string& name : fields.unread()) unused.push_back(std::move(name));
}

void read_target(FieldReader& fields, engine::QualityTarget& target) {
  const Json* value = fields.find("target");
  if (value == nullptr) return;
  constexpr const char* kExpected = "{\"kl\": a number above 0} or {\"head_error\": a number above 0}";
  if (!value->is_object() || value->size() != 1) return fields.fail("target", kExpected, *value);
  const std::string name = value->begin().key();
  const Json& number = value->begin().value();
  const double amount = number.is_number() ? number.get<double>() : 0;
  if (!(amount > 0 && std::isfinite(amount))) return fields.fail("target", kExpected, *value);
  if (name == "kl")
    target.kl = amount;
  else if (name == "head_error")
    target.head_error = amount;
  else
    fields.fail("target", kExpected, *value);
}

void read_pinned(FieldReader& fields, std::vector<engine::Span>& pinned) {
  const Json* value = fields.find("pinned");
  if (value == nullptr) return;
  constexpr const char* kExpected = "a list of [begin, end] pairs of token positions, begin <= end";
  if (!value->is_array()) return fields.fail("pinned", kExpected, *value);
  if (value->size() > kMaxPinnedSpans)
    return fields.fail("pinned", fmt::format("at most {} spans", kMaxPinnedSpans), Json(value->size()));
  for (const Json& pair : *value) {
    if (!pair.is_array() || pair.size() != 2 || !pair[0].is_number_unsigned() || !pair[1].is_number_unsigned())
      return fields.fail("pinned", kExpected, pair);
    const auto begin = pair[0].get<uint64_t>(), end = pair[1].get<uint64_t>();
    if (begin > end || end > static_cast<uint64_t>(kMaxTokens)) return fields.fail("pinned", kExpected, pair);
    pinned.push_back({static_cast<int64_t>(begin), static_cast<int64_t>(end)});
  }
}

/// An object of names and values, as in --compact-options.
void read_options(FieldReader& fields, engine::CompactionRequest& request) {
  const Json* value = fields.find("options");
  if (value == nullptr) return;
  if (!value->is_object()) return fields.fail("options", "an object of option names and values", *value);
  for (const auto& [name, option] : value->items()) {
    if (!option.is_string() && !option.is_number())
      return fields.fail("options." + name.substr(0, 60), "a string or a number", option);
    const std::string text = option.is_string() ? option.get<std::string>() : dump_json(option);
    if (const auto set = engine::set_option(request, name, text); !set.ok())
      return fields.fail(Error{set.error().kind, fmt::format("options: {}", set.error().message)});
  }
}

/// `budget` may be said in two places, but not twice differently.
void check_one_budget(FieldReader& fields, const std::string& budget) {
  const Json* options = fields.find("options");
  if (budget.empty() || options == nullptr || !options->is_object() || !options->contains("budget")) return;
  if ((*options)["budget"] != budget)
    fields.fail("options.budget", fmt::format("'{}' as in budget, or one of the two left out", budget),
                (*options)["budget"]);
}

/// The fork's self-study says how many tokens it generates; ours how many conversations it holds. Never less than
/// one round of them: below that answers get lost (docs/compact-eval.md).
void read_study(FieldReader& fields, engine::SelfStudyOptions& study) {
  int64_t n_tokens = 0;
  fields.read("n_generate", n_tokens, 0, kMaxTokens);
  if (n_tokens == 0) return;
  const int64_t n_each = study.max_question_tokens + study.max_answer_tokens;
  study.n_conversations = static_cast<int32_t>(
      std::clamp<int64_t>((n_tokens + n_each - 1) / n_each, study.round_conversations, kMaxConversations));
}

Result<void> check_method(const std::string& name) {
  const auto method = compaction::find_method(name.substr(0, kMaxShownName));
  if (!method.ok()) return as_bad_request(method.error());
  const std::optional<std::string> allowed = env::compact_allowed_methods();
  if (!allowed) return {};
  for (size_t begin = 0; begin <= allowed->size();) {
    const size_t end = std::min(allowed->find(',', begin), allowed->size());
    std::string entry = allowed->substr(begin, end - begin);
    std::erase(entry, ' ');
    if (const auto known = compaction::find_method(entry); known.ok() && *known == *method) return {};
    begin = end + 1;
  }
  return Error{ErrorKind::invalid_argument,
               fmt::format("method: '{}' is not in LLAMA_COMPACT_ALLOWED_METHODS ({})", name, *allowed)};
}

}  // namespace

Error as_bad_request(const Error& error) {
  return error.kind == ErrorKind::not_found ? Error{ErrorKind::invalid_argument, error.message} : error;
}

Result<ParsedCompaction> parse_compaction(const Json& body, int32_t n_slots) {
  ParsedCompaction out;
  engine::CompactionRequest& request = out.request;
  FieldReader fields(body);
  fields.read("id_slot", out.id_slot, 0, n_slots - 1);
  fields.read("method", request.method);
  fields.read("ratio", request.ratio, 1, 1e9);
  fields.read("target_tokens", request.target_rows, -1, kMaxTokens);
  read_target(fields, request.target);
  fields.read("max_kl", request.max_kl, 0, 1e9);
  bool validates = false;
  fields.read("validate", validates);
  if (fields.find("validate") != nullptr) request.validates = validates;
  fields.read("live_suffix_tokens", request.n_live_suffix, 0, kMaxTokens);
  fields.read("p0", request.n_protected_prefix, 0, kMaxTokens);
  read_pinned(fields, request.pinned);
  fields.read("of_whole_cache", request.of_whole_cache);
  fields.read("compact_window_layers", request.compacts_window_layers);
  int32_t max_queries = 0, n_sweeps = -1;
  fields.read("max_queries", max_queries, 0);
  fields.read("max_queries_per_kv_head", max_queries, 0);
  if (max_queries > 0) request.solve.max_queries_per_head = request.solve.max_score_queries_per_head = max_queries;
  fields.read("nnls_iters", n_sweeps, -1);
  if (n_sweeps > 0) request.solve.max_nnls_sweeps = n_sweeps;
  read_study(fields, request.self_study);
  std::string budget;
  fields.read("budget", budget);
  if (fields.find("budget") != nullptr)
    if (const auto set = engine::set_option(request, "budget", budget); !set.ok()) fields.fail(set.error());
  read_options(fields, request);
  check_one_budget(fields, budget);
  bool reclaims = true;
  fields.read("reclaim", reclaims);
  if (!reclaims) out.unused_fields.push_back("reclaim");
  for (const char* name : kUnusedFields) {
    const Json* value = fields.find(name);
    if (value != nullptr && !value->is_number()) fields.fail(name, "a number", *value);
    note_unused(fields, name, out.unused_fields);
  }
  note_idle_choices(fields, request, out.unused_fields);
  note_overridden_sizes(fields, request, out.unused_fields);
  note_unread(fields, out.unused_fields);
  SH_RETURN_IF_ERROR(fields.result());
  SH_RETURN_IF_ERROR(check_method(request.method));
  return out;
}

Result<ParsedCompaction> parse_keep_compaction(const Json& body, int32_t id_slot) {
  ParsedCompaction out{.id_slot = id_slot, .request = {}, .unused_fields = Json::array()};
  FieldReader fields(body);
  double keep_ratio = 0.5;
  out.request.n_protected_prefix = 8;
  out.request.n_live_suffix = 15;
  out.request.prefix_name = "keep_first";
  out.request.suffix_name = "keep_last";
  fields.read("keep_ratio", keep_ratio, 1e-9, 1);
  fields.read("keep_first", out.request.n_protected_prefix, 0, kMaxTokens);
  fields.read("keep_last", out.request.n_live_suffix, 0, kMaxTokens);
  out.request.ratio = 1 / keep_ratio;
  note_unread(fields, out.unused_fields);
  SH_RETURN_IF_ERROR(fields.result());
  SH_RETURN_IF_ERROR(check_method(out.request.method));
  return out;
}

}  // namespace sh::server
