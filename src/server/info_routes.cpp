// SPDX-License-Identifier: MIT
// Health, models, properties and slots.
#include <algorithm>
#include <cmath>

#include "base/build_info.h"
#include "server/compaction_json.h"
#include "server/errors.h"
#include "server/generation_run.h"
#include "server/handlers.h"
#include "server/server_state.h"

namespace sh::server {
namespace {

const char* vocabulary_type(const engine::Engine& engine) {
  return engine.tokenizer().data().model == "llama" ? "SPM" : "BPE";
}

Json template_capabilities(const chat::TemplateCapabilities& c) {
  return Json{{"supports_system_role", c.supports_system_role},
              {"supports_tools", c.supports_tools},
              {"supports_tool_calls", c.supports_tool_calls},
              {"supports_parallel_tool_calls", c.supports_parallel_tool_calls},
              {"supports_tool_responses", c.supports_tool_responses},
              {"requires_string_content", c.requires_string_content}};
}

/// What the running server holds, summed over its conversations.
struct KvTotals {
  int64_t n_logical = 0, bytes = 0, n_compactions = 0;
  double n_physical = 0, max_physical = 0;
};
KvTotals kv_totals(const std::vector<engine::SlotStatus>& slots) {
  KvTotals totals;
  for (const engine::SlotStatus& slot : slots) {
    totals.n_logical += slot.n_logical;
    totals.bytes += slot.usage.bytes;
    totals.n_compactions += slot.usage.n_compactions;
    totals.n_physical += slot.usage.n_physical;
    totals.max_physical = std::max(totals.max_physical, slot.usage.n_physical);
  }
  return totals;
}

std::string last_failure(const std::vector<engine::SlotStatus>& slots) {
  std::string reason;
  for (const engine::SlotStatus& slot : slots)
    if (!slot.compaction_failure.empty()) reason = slot.compaction_failure;
  return reason;
}

std::string last_method(const std::vector<engine::SlotStatus>& slots) {
  std::string method;
  for (const engine::SlotStatus& slot : slots)
    if (slot.last_compaction) method = slot.last_compaction->report.method;
  return method;
}

/// What the next compaction goes by when nobody names a method.
std::string next_method(const engine::Engine& engine) {
  return engine.compacts_automatically() ? engine.options().compact_method : engine::CompactionRequest{}.method;
}

Json capabilities_json(const ServerState& state, bool has_compacted) {
  const engine::EngineOptions& options = state.engine->options();
  const engine::ServerParams& server = state.params.server;
  return Json{{"effective_context_window", state.engine->n_ctx_logical()},
              {"flash_attention", {{"mode", "on"}, {"supports_additive_kq_b", true}}},
              {"kv_cache",
               {{"type_k", tensor_format(options.type_k).name},
                {"type_v", tensor_format(options.type_v).name},
                {"unified", options.is_kv_unified},
                {"can_shift", false},
                {"cache_reuse_n", 0}}},
              {"prompt_cache", {{"enabled", state.params.cache_prompt}, {"reuse_threshold", 0.1}}},
              {"save_restore", {{"available", false}, {"validated_for_compacted_path", false}}},
              {"structured_output", {{"json_schema", false}, {"grammar", false}}},
              {"chat_templates", template_capabilities(state.engine->chat_template().capabilities())},
              {"features",
               {{"embeddings", false},
                {"reranking", false},
                {"multimodal", false},
                {"router_model_mgmt", false},
                {"slot_save_restore", false},
                {"metrics_endpoint", server.has_metrics},
                {"slots_endpoint", server.has_slots}}},
              {"compacted_prefix",
               {{"available", true},
                {"enabled", has_compacted},
                {"zero_beta_flash_compatible", true},
                {"flash_attn_overridden", false},
                {"last_fallback_reason", nullptr}}}};
}

Json runtime_json(const ServerState& state) {
  const std::vector<engine::SlotStatus> slots = state.scheduler->slots();
  const engine::SchedulerTotals totals = state.scheduler->totals();
  const KvTotals kv = kv_totals(slots);
  const std::string method = last_method(slots), failure = last_failure(slots);
  const auto n_compacting = std::count_if(
      slots.begin(), slots.end(), [](const engine::SlotStatus& slot) { return slot.compaction.has_value(); });
  int64_t n_idle = 0;
  for (const engine::SlotStatus& slot : slots) n_idle += slot.is_processing ? 0 : 1;
  const auto rate = [](int64_t n, double seconds) { return seconds > 0 ? static_cast<double>(n) / seconds : 0.0; };
  return Json{{"state", "ready"},
              {"queue",
               {{"idle_slots", n_idle},
                {"processing_slots", static_cast<int64_t>(slots.size()) - n_idle},
                {"deferred_tasks", totals.requests_deferred}}},
              {"timings",
               {{"prompt_tokens_per_second", rate(totals.prompt_tokens, totals.prompt_seconds)},
                {"predicted_tokens_per_second", rate(totals.predicted_tokens, totals.predicted_seconds)},
                {"n_decode_total", totals.n_decode_calls},
                {"n_busy_slots_total", totals.n_busy_slots_sum}}},
              {"memory",
               {{"allocated_model_bytes", state.engine->model().info().weight_bytes},
                {"allocated_context_bytes", kv.bytes},
                {"allocated_compute_bytes", 0}}},
              {"kv",
               {{"active_n_kv_total", std::llround(kv.n_physical)},
                {"active_n_kv_max", std::llround(kv.max_physical)},
                {"sequence_state_bytes_total", kv.bytes},
                {"n_logical_total", kv.n_logical}}},
              {"compaction",
               {{"available", true},
                {"enabled", kv.n_compactions > 0},
                {"endpoint", state.params.server.has_compact},
                {"automatic", state.engine->compacts_automatically()},
                {"method", method.empty() ? Json(next_method(*state.engine)) : Json(method)},
                {"n_compactions", totals.n_compactions},
                {"n_failures", totals.n_compaction_failures},
                {"n_running", n_compacting},
                {"unsupported_reason", nullptr},
                {"last_fallback_reason", failure.empty() ? Json() : Json(failure)}}}};
}

/// Our object; `modelai` is the same under the name that clients of the fork ask for.
Json shorthand_json(const ServerState& state) {
  const bool has_compacted = kv_totals(state.scheduler->slots()).n_compactions > 0;
  return Json{{"contract",
               {{"name", "shorthand"},
                {"compatible_with", "modelai-llama.cpp"},
                {"contract_version", "0.1.0"},
                {"engine_version", build_info().version},
                {"engine_commit", build_info().commit},
                {"upstream_base_commit", nullptr},
                {"server_mode", "model"}}},
              {"capabilities", capabilities_json(state, has_compacted)},
              {"runtime", runtime_json(state)}};
}

Json slot_json(const engine::SlotStatus& slot) {
  const int64_t n_compacted =
      slot.last_compaction ? std::llround(mean_region_rows(slot.last_compaction->report).kept) : 0;
  Json out = {
      {"id", slot.id}, {"n_ctx", slot.n_ctx}, {"speculative", false}, {"is_processing", slot.is_processing}};
  if (slot.id_task != 0) {
    out["id_task"] = slot.id_task;
    out["n_prompt_tokens"] = slot.n_prompt;
    out["n_prompt_tokens_processed"] = slot.n_prompt_processed;
    out["n_prompt_tokens_cache"] = slot.n_prompt_cache;
    out["next_token"] = Json::array(
        {{{"has_next_token", slot.is_processing}, {"n_remain", slot.n_remain}, {"n_decoded", slot.n_decoded}}});
  }
  out["kv"] = Json{{"seq_pos_min", slot.n_logical > 0 ? 0 : -1},
                   {"seq_pos_max", slot.usage.n_positions - 1},
                   {"active_n_kv", std::llround(slot.usage.n_physical)},
                   {"active_n_kv_compacted", n_compacted},
                   {"sequence_state_bytes", slot.usage.bytes},
                   {"n_logical", slot.n_logical},
                   {"n_physical", slot.usage.n_physical},
                   {"n_rows", slot.usage.n_rows},
                   {"n_blocks", slot.usage.n_blocks},
                   {"n_compactions", slot.usage.n_compactions},
                   {"n_rebases", slot.usage.n_rebases}};
  out["compaction"] = compaction_state_json(slot);
  return out;
}

}  // namespace

void get_health(Call call) {
  call.exchange->respond(json_response(Json{{"status", "ok"}}));
}

void get_models(Call call) {
  const ServerState& state = call.state;
  const models::ModelInfo& info = state.engine->model().info();
  const Json meta = {{"vocab_type", vocabulary_type(*state.engine)},
                     {"n_vocab", info.n_vocab},
                     {"n_ctx", state.engine->n_ctx_logical()},
                     {"n_ctx_train", info.n_ctx_train},
                     {"n_embd", info.n_embd},
                     {"n_params", info.n_params},
                     {"size", info.weight_bytes},
                     {"ftype", info.file_type},
                     {"modelai",
                      {{"supports_embeddings", false},
                       {"supports_json_schema", false},
                       {"supports_prompt_cache", true},
                       {"supports_save_restore", false},
                       {"supports_chat_templates", true}}}};
  const std::string& alias = state.engine->alias();
  const Json entry = {{"id", alias},       {"aliases", Json::array({alias})},       {"tags", Json::array()},
                      {"object", "model"}, {"created", state.started_unix_seconds}, {"owned_by", "llamacpp"},
                      {"meta", meta}};
  const Json ollama_entry = {{"name", alias},
                             {"model", alias},
                             {"modified_at", ""},
                             {"size", ""},
                             {"digest", ""},
                             {"type", "model"},
                             {"description", ""},
                             {"tags", Json::array({""})},
                             {"capabilities", Json::array({"completion"})},
                             {"parameters", ""},
                             {"details",
                              {{"parent_model", ""},
                               {"format", "gguf"},
                               {"family", info.arch},
                               {"families", Json::array({info.arch})},
                               {"parameter_size", ""},
                               {"quantization_level", info.file_type}}}};
  call.exchange->respond(json_response(
      Json{{"models", Json::array({ollama_entry})}, {"object", "list"}, {"data", Json::array({entry})}}));
}

void get_props(Call call) {
  ServerState& state = call.state;
  const engine::Engine& engine = *state.engine;
  const tokenizer::Tokenizer& tokenizer = engine.tokenizer();
  engine::GenerationRequest defaults;
  defaults.sampling = state.params.sampling;
  defaults.n_predict = state.params.n_predict;
  const auto token_text = [&](int32_t id) {
    return id == tokenizer::kNoToken ? std::string() : tokenizer.piece(id, true);
  };
  const Json ours = shorthand_json(state);
  call.exchange->respond(
      json_response(Json{{"default_generation_settings",
                          {{"params", generation_settings(defaults)}, {"n_ctx", engine.n_ctx_logical()}}},
                         {"total_slots", engine.options().n_parallel},
                         {"model_alias", engine.alias()},
                         {"model_path", engine.options().model_path},
                         {"model_ftype", engine.model().info().file_type},
                         {"modalities", {{"vision", false}, {"audio", false}, {"video", false}}},
                         {"endpoint_slots", state.params.server.has_slots},
                         {"endpoint_props", state.params.server.has_props},
                         {"endpoint_metrics", state.params.server.has_metrics},
                         {"endpoint_compact", state.params.server.has_compact},
                         {"chat_template", engine.chat_template().source()},
                         {"chat_template_caps", template_capabilities(engine.chat_template().capabilities())},
                         {"bos_token", token_text(tokenizer.data().bos)},
                         {"eos_token", token_text(tokenizer.data().eos)},
                         {"build_info", system_fingerprint()},
                         {"is_sleeping", false},
                         {"shorthand", ours},
                         {"modelai", ours}}));
}

void post_props(Call call) {
  if (!call.state.params.server.has_props)
    return call.exchange->respond(
        error_response(not_supported("changing properties is off; start the server with --props")));
  call.exchange->respond(json_response(Json{{"success", true}}));
}

void get_slots(Call call) {
  if (!call.state.params.server.has_slots)
    return call.exchange->respond(
        error_response(not_supported("this endpoint is off; start the server without --no-slots")));
  const std::vector<engine::SlotStatus> slots = call.state.scheduler->slots();
  Json list = Json::array();
  bool has_free = false;
  for (const engine::SlotStatus& slot : slots) {
    list.push_back(slot_json(slot));
    has_free = has_free || !slot.is_processing;
  }
  if (call.exchange->request().query.count("fail_on_no_slot") > 0 && !has_free)
    return call.exchange->respond(error_response(unavailable("no slot is free")));
  call.exchange->respond(json_response(list));
}

void get_slot_compaction(Call call) {
  if (!call.state.params.server.has_slots)
    return call.exchange->respond(
        error_response(not_supported("this endpoint is off; start the server without --no-slots")));
  const Result<int32_t> id_slot = slot_of(call);
  if (!id_slot.ok()) return call.exchange->respond(error_response(api_error(id_slot.error())));
  const engine::SlotStatus slot = call.state.scheduler->slots()[static_cast<size_t>(*id_slot)];
  if (!slot.last_compaction && !slot.compaction) {
    const std::string& failure = slot.compaction_failure;
    return call.exchange->respond(error_response(api_error(
        {ErrorKind::not_found, fmt::format("slot {}: its conversation was not compacted{}{}", *id_slot,
                                           failure.empty() ? "" : "; the last attempt failed: ", failure)})));
  }
  Json out = slot.last_compaction ? record_json(*slot.last_compaction) : Json::object();
  out["state"] = compaction_state_json(slot);
  call.exchange->respond(json_response(out));
}

}  // namespace sh::server
