// SPDX-License-Identifier: MIT
// POST /compact and the actions on slots.
#include <fmt/format.h>

#include <charconv>
#include <cmath>

#include "server/compact_request.h"
#include "server/compaction_json.h"
#include "server/errors.h"
#include "server/field_reader.h"
#include "server/handlers.h"
#include "server/server_state.h"

namespace sh::server {
namespace {

/// The keys that scripts of the fork read, and ours.
Json compaction_answer(const ParsedCompaction& parsed, const engine::CompactionReport& report) {
  const RegionRows rows = mean_region_rows(report);
  Json out = {{"success", true},
              {"id_slot", parsed.id_slot},
              {"method", report.method},
              {"compacted_tokens", std::llround(rows.kept)},
              {"original_tokens", std::llround(rows.before)},
              {"compression_ratio", report.region_ratio},
              {"compaction_time_ms", report.total_seconds * 1e3},
              {"active_n_kv_before", std::llround(report.rows_before)},
              {"active_n_kv_after", std::llround(report.rows_after)},
              {"reclaimed", true},
              {"n_region", report.n_region},
              {"n_logical", report.n_logical},
              {"bytes_before", report.bytes_before},
              {"bytes_after", report.bytes_after},
              {"real_ratio", report.real_ratio},
              {"queries", compaction::name_of(report.queries)},
              {"n_queries", report.n_queries},
              {"heldout_error", report.heldout_fitted},
              {"heldout_error_unfitted", report.heldout_plain},
              {"head_error", report.head_error},
              {"fallback_heads", report.fallback_heads},
              {"verdict", engine::name_of(report.check.verdict)},
              {"check", check_json(report.check)},
              {"compaction", compaction_json(report, false)}};
  if (!parsed.unused_fields.empty()) out["unused_fields"] = parsed.unused_fields;
  return out;
}

/// The body, or an empty object when there is none.
Result<Json> optional_body(const Call& call) {
  const std::string& text = call.exchange->request().body;
  if (text.empty()) return Json::object();
  return parse_body(text);
}

Result<void> check_endpoint(const Call& call) {
  if (call.state.params.server.has_compact) return {};
  return Error{ErrorKind::unsupported, "this endpoint is off; start the server with --endpoint-compact"};
}

/// Answers when the compaction has ended; a client that hangs up before ends it.
void order_compaction(const Call& call, const ParsedCompaction& parsed) {
  engine::Scheduler* scheduler = call.state.scheduler;
  const uint64_t id = scheduler->compact(
      parsed.id_slot, parsed.request, [exchange = call.exchange, parsed](Result<engine::CompactionReport> report) {
        exchange->post([exchange, parsed, report = std::move(report)] {
          exchange->respond(report.ok() ? json_response(compaction_answer(parsed, *report))
                                        : error_response(api_error(as_bad_request(report.error()))));
        });
      });
  call.exchange->on_hang_up([scheduler, id] { scheduler->cancel(id); });
}

Result<void> start_compaction(const Call& call) {
  SH_RETURN_IF_ERROR(check_endpoint(call));
  SH_ASSIGN(const Json body, optional_body(call));
  SH_ASSIGN(const ParsedCompaction parsed, parse_compaction(body, call.state.engine->options().n_parallel));
  order_compaction(call, parsed);
  return {};
}

Result<void> start_keep_compaction(const Call& call, int32_t id_slot) {
  SH_RETURN_IF_ERROR(check_endpoint(call));
  SH_ASSIGN(const Json body, optional_body(call));
  SH_ASSIGN(const ParsedCompaction parsed, parse_keep_compaction(body, id_slot));
  order_compaction(call, parsed);
  return {};
}

/// Posts {"id_slot", name: value} or the error.
template <typename Value>
std::function<void(Result<Value>)> respond_with(const Call& call, int32_t id_slot, const char* name) {
  return [exchange = call.exchange, id_slot, name](Result<Value> value) {
    exchange->post([exchange, id_slot, name, value = std::move(value)] {
      exchange->respond(value.ok() ? json_response(Json{{"id_slot", id_slot}, {name, *value}})
                                   : error_response(api_error(as_bad_request(value.error()))));
    });
  };
}

Result<void> start_slot_action(const Call& call) {
  SH_ASSIGN(const int32_t id_slot, slot_of(call));
  engine::Scheduler& scheduler = *call.state.scheduler;
  const auto& query = call.exchange->request().query;
  const auto action = query.find("action");
  const std::string name = action == query.end() ? "" : action->second;
  if (name == "compact") return start_keep_compaction(call, id_slot);
  if (name == "erase") {
    scheduler.erase_slot(id_slot, respond_with<int64_t>(call, id_slot, "n_erased"));
    return {};
  }
  if (name == "cancel-compaction") {
    scheduler.cancel_compaction(id_slot, respond_with<bool>(call, id_slot, "cancelled"));
    return {};
  }
  if (name == "save" || name == "restore")
    return Error{
        ErrorKind::unsupported,
        "saving and restoring slots does not exist yet: there is no file format for compacted conversations"};
  return Error{ErrorKind::invalid_argument,
               fmt::format("action: expected erase, compact, cancel-compaction, save or restore, got '{}'",
                           name.substr(0, 60))};
}

void answer_error(const Call& call, const Result<void>& started) {
  if (!started.ok()) call.exchange->respond(error_response(api_error(started.error())));
}

}  // namespace

Result<int32_t> slot_of(const Call& call) {
  int32_t id_slot = -1;
  const auto [end, code] = std::from_chars(call.id.data(), call.id.data() + call.id.size(), id_slot);
  const int32_t n_slots = call.state.engine->options().n_parallel;
  if (code == std::errc() && end == call.id.data() + call.id.size() && id_slot >= 0 && id_slot < n_slots)
    return id_slot;
  return Error{ErrorKind::invalid_argument, fmt::format("there is no slot '{}'; this server has slots 0 to {}",
                                                        call.id.substr(0, 20), n_slots - 1)};
}

void post_compact(Call call) {
  answer_error(call, start_compaction(call));
}
void post_slot_action(Call call) {
  answer_error(call, start_slot_action(call));
}

}  // namespace sh::server
