// SPDX-License-Identifier: MIT
// GET /metrics: Prometheus text format 0.0.4. Names of llama.cpp keep its prefix; ours are our own.
#include <fmt/format.h>

#include "server/errors.h"
#include "server/handlers.h"
#include "server/server_state.h"

namespace sh::server {
namespace {

struct Metric {
  const char* name;
  const char* kind;  // "counter" or "gauge"
  const char* help;
  double value;
};

double ratio(double a, double b) {
  return b > 0 ? a / b : 0;
}

}  // namespace

void get_metrics(Call call) {
  if (!call.state.params.server.has_metrics)
    return call.exchange->respond(
        error_response(not_supported("this endpoint is off; start the server with --metrics")));
  const engine::SchedulerTotals t = call.state.scheduler->totals();
  const engine::Engine& engine = *call.state.engine;
  double n_logical = 0, n_physical = 0, max_physical = 0, bytes = 0, n_blocks = 0;
  bool has_compacted = false;
  for (const engine::SlotStatus& slot : call.state.scheduler->slots()) {
    n_logical += static_cast<double>(slot.n_logical);
    n_physical += slot.usage.n_physical;
    max_physical = std::max(max_physical, slot.usage.n_physical);
    bytes += static_cast<double>(slot.usage.bytes);
    n_blocks += static_cast<double>(slot.usage.n_blocks);
    has_compacted = has_compacted || slot.usage.n_compactions > 0;
  }
  const double budget = static_cast<double>(engine.n_ctx() * engine.kv_layout().bytes_per_token());
  const double prompt_rate = ratio(static_cast<double>(t.prompt_tokens), t.prompt_seconds);
  const double predicted_rate = ratio(static_cast<double>(t.predicted_tokens), t.predicted_seconds);
  const auto number = [](int64_t n) { return static_cast<double>(n); };
  const Metric metrics[] = {
      {"llamacpp:prompt_tokens_total", "counter", "Prompt tokens evaluated.", number(t.prompt_tokens)},
      {"llamacpp:prompt_seconds_total", "counter", "Seconds spent on prompts.", t.prompt_seconds},
      {"llamacpp:tokens_predicted_total", "counter", "Tokens generated.", number(t.predicted_tokens)},
      {"llamacpp:tokens_predicted_seconds_total", "counter", "Seconds spent on generating.", t.predicted_seconds},
      {"llamacpp:n_decode_total", "counter", "Forward passes.", number(t.n_decode_calls)},
      {"llamacpp:n_tokens_max", "counter", "Longest conversation seen, in tokens.", number(t.n_tokens_max)},
      {"llamacpp:prompt_tokens_seconds", "gauge", "Prompt tokens per second.", prompt_rate},
      {"llamacpp:predicted_tokens_seconds", "gauge", "Generated tokens per second.", predicted_rate},
      {"llamacpp:requests_processing", "gauge", "Requests that run.", number(t.requests_processing)},
      {"llamacpp:requests_deferred", "gauge", "Requests that wait for a slot.", number(t.requests_deferred)},
      {"llamacpp:n_busy_slots_per_decode", "gauge", "Conversations in a forward pass, mean.",
       ratio(number(t.n_busy_slots_sum), number(t.n_decode_calls))},
      {"llamacpp:kv_cache_usage_ratio", "gauge", "Physical bytes of all conversations over the budget.",
       ratio(bytes, budget)},
      {"llamacpp:kv_cache_tokens", "gauge", "Physical rows a head that all conversations hold.", n_physical},
      {"llamacpp:modelai_allocated_model_bytes", "gauge", "Bytes of the weights.",
       number(engine.model().info().weight_bytes)},
      {"llamacpp:modelai_allocated_context_bytes", "gauge", "Bytes of the KV blocks in use.", bytes},
      {"llamacpp:modelai_allocated_compute_bytes", "gauge", "Scratch memory; not counted here.", 0},
      {"llamacpp:modelai_active_n_kv_total", "gauge", "Physical rows a head, all conversations.", n_physical},
      {"llamacpp:modelai_active_n_kv_max", "gauge", "Physical rows a head, largest conversation.", max_physical},
      {"llamacpp:modelai_sequence_state_bytes_total", "gauge", "Bytes of all conversations.", bytes},
      {"llamacpp:modelai_prompt_tokens_per_second", "gauge", "Prompt tokens per second.", prompt_rate},
      {"llamacpp:modelai_predicted_tokens_per_second", "gauge", "Generated tokens per second.", predicted_rate},
      {"llamacpp:modelai_compacted_prefix_available", "gauge", "1: conversations can be compacted.", 1},
      {"llamacpp:modelai_compacted_prefix_enabled", "gauge", "1: a conversation is compacted now.",
       has_compacted ? 1.0 : 0.0},
      {"shorthand_kv_logical_tokens", "gauge", "Tokens that all conversations have.", n_logical},
      {"shorthand_kv_physical_rows", "gauge", "Rows a head that stand for them.", n_physical},
      {"shorthand_kv_bytes", "gauge", "Bytes of the KV blocks in use; shared blocks count in each conversation.",
       bytes},
      {"shorthand_kv_blocks", "gauge", "KV blocks in use.", n_blocks},
      {"shorthand_kv_budget_bytes", "gauge", "Bytes that the KV cache may use.", budget},
      {"shorthand_compactions_total", "counter", "Compactions that were committed.", number(t.n_compactions)},
      {"shorthand_compaction_failures_total", "counter", "Compactions that changed nothing.",
       number(t.n_compaction_failures)},
      {"shorthand_compaction_seconds_total", "counter", "Seconds spent on compacting.", t.compaction_seconds},
  };
  std::string text;
  for (const Metric& metric : metrics)
    text += fmt::format("# HELP {0} {1}\n# TYPE {0} {2}\n{0} {3}\n", metric.name, metric.help, metric.kind,
                        metric.value);
  call.exchange->respond(HttpResponse{.content_type = "text/plain; version=0.0.4", .body = std::move(text)});
}

}  // namespace sh::server
