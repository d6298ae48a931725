// SPDX-License-Identifier: MIT
// POST /compact and the actions on slots.
#include <fmt/format.h>

#include <charconv>
#include <cmath>
#include <limits>

#include "base/env.h"
#include "compaction/method.h"
#include "server/compaction_json.h"
#include "server/errors.h"
#include "server/field_reader.h"
#include "server/handlers.h"
#include "server/server_state.h"

namespace sh::server {
namespace {

/// Fields that the fork's solver has and ours decides on its own: accepted, and named in the answer.
constexpr const char* kUnusedFields[] = {"lambda", "n_generate", "n_on_policy_passes", "n_generate_q_sequential"};

bool is_allowed(const std::string& method) {
  const std::optional<std::string> allowed = env::compact_allowed_methods();
  if (!allowed) return true;
  const std::string list = "," + *allowed + ",";
  return list.find("," + method + ",") != std::string::npos;
}

/// An unknown slot or method is a mistake in the request, so 400 and not 404: the path exists.
Error as_bad_request(const Error& error) {
  return error.kind == ErrorKind::not_found ? Error{ErrorKind::invalid_argument, error.message} : error;
}

struct ParsedCompaction {
  int32_t id_slot = 0;
  engine::CompactionRequest request;
  Json unused_fields = Json::array();
};

Result<ParsedCompaction> parse_compaction(const Json& body, int32_t n_slots) {
  constexpr int64_t kMaxTokens = int64_t{1} << 40;
  ParsedCompaction out;
  engine::CompactionRequest& request = out.request;
  FieldReader fields(body);
  fields.read("id_slot", out.id_slot, std::numeric_limits<int32_t>::min());
  if (out.id_slot < 0 || out.id_slot >= n_slots)
    fields.fail("id_slot", fmt::format("a slot from 0 to {}", n_slots - 1), Json(out.id_slot));
  fields.read("method", request.method);
  fields.read("ratio", request.ratio, 1, 1e9);
  fields.read("target_tokens", request.target_rows, -1, kMaxTokens);
  fields.read("live_suffix_tokens", request.n_live_suffix, 0, kMaxTokens);
  fields.read("p0", request.n_protected_prefix, 0, kMaxTokens);
  fields.read("of_whole_cache", request.of_whole_cache);
  int32_t max_queries = 0, n_sweeps = -1;
  fields.read("max_queries", max_queries, 0);
  fields.read("max_queries_per_kv_head", max_queries, 0);
  if (max_queries > 0) request.solve.max_queries_per_head = request.solve.max_score_queries_per_head = max_queries;
  fields.read("nnls_iters", n_sweeps, -1);
  if (n_sweeps > 0) request.solve.max_nnls_sweeps = n_sweeps;
  bool reclaims = true;
  fields.read("reclaim", reclaims);
  if (!reclaims) out.unused_fields.push_back("reclaim");
  for (const char* name : kUnusedFields) {
    const Json* value = fields.find(name);
    if (value == nullptr) continue;
    if (!value->is_number()) fields.fail(name, "a number", *value);
    out.unused_fields.push_back(name);
  }
  SH_RETURN_IF_ERROR(fields.result());
  if (const auto method = compaction::find_method(request.method); !method.ok())
    return as_bad_request(method.error());
  if (!is_allowed(request.method))
    return Error{ErrorKind::invalid_argument,
                 fmt::format("method: '{}' is not in LLAMA_COMPACT_ALLOWED_METHODS", request.method)};
  return out;
}

Json compaction_answer(const ParsedCompaction& parsed, const engine::CompactionReport& report) {
  Json out = {{"success", true},
              {"id_slot", parsed.id_slot},
              {"method", report.method},
              {"compacted_tokens", std::llround(mean_kept_rows(report))},
              {"original_tokens", report.n_region},
              {"compression_ratio", report.region_ratio},
              {"compaction_time_ms", report.total_seconds * 1e3},
              {"active_n_kv_before", std::llround(report.rows_before)},
              {"active_n_kv_after", std::llround(report.rows_after)},
              {"reclaimed", true},
              {"n_logical", report.n_logical},
              {"bytes_before", report.bytes_before},
              {"bytes_after", report.bytes_after},
              {"real_ratio", report.real_ratio},
              {"queries", compaction::name_of(report.queries)},
              {"n_queries", report.n_queries},
              {"heldout_error", report.heldout_fitted},
              {"heldout_error_unfitted", report.heldout_plain},
              {"fallback_heads", report.fallback_heads}};
  if (!parsed.unused_fields.empty()) out["unused_fields"] = parsed.unused_fields;
  return out;
}

Result<void> start_compaction(const Call& call) {
  if (!call.state.params.server.has_compact)
    return Error{ErrorKind::unsupported, "this endpoint is off; start the server with --endpoint-compact"};
  const std::string& text = call.exchange->request().body;
  Json body = Json::object();
  if (!text.empty()) {
    SH_ASSIGN(body, parse_body(text));
  }
  SH_ASSIGN(const ParsedCompaction parsed, parse_compaction(body, call.state.engine->options().n_parallel));
  call.state.scheduler->compact(
      parsed.id_slot, parsed.request, [exchange = call.exchange, parsed](Result<engine::CompactionReport> report) {
        exchange->post([exchange, parsed, report = std::move(report)] {
          exchange->respond(report.ok() ? json_response(compaction_answer(parsed, *report))
                                        : error_response(api_error(as_bad_request(report.error()))));
        });
      });
  return {};
}

Result<void> erase_slot(const Call& call, int32_t id_slot) {
  call.state.scheduler->erase_slot(id_slot, [exchange = call.exchange, id_slot](Result<int64_t> n_erased) {
    exchange->post([exchange, id_slot, n_erased = std::move(n_erased)] {
      exchange->respond(n_erased.ok() ? json_response(Json{{"id_slot", id_slot}, {"n_erased", *n_erased}})
                                      : error_response(api_error(as_bad_request(n_erased.error()))));
    });
  });
  return {};
}

Result<void> start_slot_action(const Call& call) {
  int32_t id_slot = -1;
  const auto [end, code] = std::from_chars(call.id.data(), call.id.data() + call.id.size(), id_slot);
  if (code != std::errc() || end != call.id.data() + call.id.size() || id_slot < 0 ||
      id_slot >= call.state.engine->options().n_parallel)
    return Error{ErrorKind::invalid_argument,
                 fmt::format("there is no slot '{}'; this server has slots 0 to {}", call.id.substr(0, 20),
                             call.state.engine->options().n_parallel - 1)};
  const auto& query = call.exchange->request().query;
  const auto action = query.find("action");
  const std::string name = action == query.end() ? "" : action->second;
  if (name == "erase") return erase_slot(call, id_slot);
  if (name == "save" || name == "restore")
    return Error{
        ErrorKind::unsupported,
        "saving and restoring slots does not exist yet: there is no file format for compacted conversations"};
  return Error{ErrorKind::invalid_argument,
               fmt::format("action: expected erase, save or restore, got '{}'", name.substr(0, 60))};
}

void answer_error(const Call& call, const Result<void>& started) {
  if (!started.ok()) call.exchange->respond(error_response(api_error(started.error())));
}

}  // namespace

void post_compact(Call call) {
  answer_error(call, start_compaction(call));
}
void post_slot_action(Call call) {
  answer_error(call, start_slot_action(call));
}

}  // namespace sh::server
