// SPDX-License-Identifier: MIT
#include "server/generation_run.h"

#include <fmt/format.h>

#include <utility>

#include "base/log.h"
#include "server/compaction_json.h"
#include "server/errors.h"

namespace sh::server {
namespace {

using engine::GenerationEvent;
using engine::StopReason;

/// Lives as long as the scheduler's callbacks and the exchange's hang-up function need it.
class GenerationRun : public std::enable_shared_from_this<GenerationRun> {
 public:
  GenerationRun(ServerState& state, std::shared_ptr<Exchange> exchange, const ParsedRequest& parsed,
                std::unique_ptr<Dialect> dialect)
      : state_(state),
        exchange_(std::move(exchange)),
        is_stream_(parsed.is_stream),
        returns_progress_(parsed.returns_progress),
        ping_seconds_(parsed.ping_seconds >= 0 ? parsed.ping_seconds : state.params.server.sse_ping_seconds),
        dialect_(std::move(dialect)) {}

  void start(const ParsedRequest& parsed, const std::vector<std::vector<int32_t>>& prompts) {
    exchange_->on_hang_up([self = shared_from_this()] { self->cancel_all(); });
    for (size_t prompt = 0; prompt < prompts.size(); ++prompt)
      for (int32_t i = 0; i < parsed.n_choices; ++i) {
        Choice choice{.index = static_cast<int32_t>(choices_.size()),
                      .prompt_index = static_cast<int32_t>(prompt),
                      .request = parsed.generation};
        choice.request.prompt = prompts[prompt];
        // Choices of one prompt with a seed must differ, and be the same when asked again.
        if (choice.request.sampling.seed != sampling::kRandomSeed)
          choice.request.sampling.seed += static_cast<uint32_t>(i);
        choices_.push_back(std::move(choice));
      }
    pending_.resize(choices_.size());
    for (const Choice& choice : choices_) {
      const Result<uint64_t> id = state_.scheduler->submit(
          choice.request,
          [self = shared_from_this(), index = static_cast<size_t>(choice.index)](const GenerationEvent& event) {
            self->exchange_->post([self, index, event] { self->on_event(index, event); });
          });
      if (!id.ok()) return fail(id.error(), choice);
      tasks_.push_back(*id);
    }
  }

 private:
  void on_event(size_t index, const GenerationEvent& event) {
    if (is_over_) return;
    Choice& choice = choices_[index];
    if (event.error) return fail(*event.error, choice);
    if (event.stop_reason == StopReason::cancelled)
      return fail(Error{ErrorKind::cancelled, "the server is shutting down"}, choice);
    Piece& pending = pending_[index];
    keep(choice, pending, event);
    if (!is_stream_) {
      if (event.is_final) finish_choice(choice);
      return;
    }
    std::vector<Json> records;
    if (!has_begun_ && (!event.is_prompt_progress || returns_progress_)) {
      has_begun_ = true;
      exchange_->begin_stream("text/event-stream");
      exchange_->ping_every(ping_seconds_, ":\n\n");
      dialect_->stream_begin(choices_, records);
    }
    if (event.is_prompt_progress) {
      if (returns_progress_) dialect_->stream_progress(choice, records);
    } else {
      if (!pending.text.empty()) dialect_->stream_piece(choice, std::exchange(pending, Piece{}), records);
      if (event.is_final) dialect_->stream_choice_end(choice, records);
    }
    exchange_->write(sse_text(records));
    if (event.is_final) finish_choice(choice);
  }

  /// Ids and probabilities of a token whose text is held back go out with the text.
  void keep(Choice& choice, Piece& pending, const GenerationEvent& event) {
    choice.text += event.text;
    choice.ids.insert(choice.ids.end(), event.ids.begin(), event.ids.end());
    choice.probs.insert(choice.probs.end(), event.probs.begin(), event.probs.end());
    choice.compactions.insert(choice.compactions.end(), event.compactions.begin(), event.compactions.end());
    choice.last = event;
    if (!is_stream_) return;
    pending.text += event.text;
    pending.ids.insert(pending.ids.end(), event.ids.begin(), event.ids.end());
    pending.probs.insert(pending.probs.end(), event.probs.begin(), event.probs.end());
  }

  void finish_choice(Choice& choice) {
    choice.is_done = true;
    log_timings(choice);
    if (++n_done_ < choices_.size()) return;
    is_over_ = true;
    if (!is_stream_) return exchange_->respond(json_response(dialect_->whole_answer(choices_)));
    std::vector<Json> records;
    dialect_->stream_end(choices_, records);
    std::string text = sse_text(records);
    if (dialect_->ends_with_done_line()) text += "data: [DONE]\n\n";
    exchange_->write(std::move(text));
    exchange_->end_stream();
  }

  void fail(const Error& error, const Choice& choice) {
    cancel_all();
    ApiError api = api_error(error);
    if (error.kind == ErrorKind::context_exceeded) {
      api.n_prompt_tokens = static_cast<int64_t>(choice.request.prompt.size());
      api.n_ctx = state_.engine->n_ctx_logical();
    }
    if (!has_begun_) return exchange_->respond(error_response(api));
    exchange_->write(sse_text({error_json(api)}));
    exchange_->end_stream();
  }

  void cancel_all() {
    is_over_ = true;
    for (const uint64_t id : tasks_) state_.scheduler->cancel(id);
  }

  void log_timings(const Choice& choice) const {
    const engine::Timings& t = choice.last.timings;
    const auto line = [](const char* name, double ms, int64_t n) {
      return fmt::format(
          "{:>16} time = {:10.2f} ms / {:5} tokens ({:8.2f} ms per token, {:8.2f} tokens per second)", name, ms, n,
          n > 0 ? ms / static_cast<double>(n) : 0, ms > 0 ? 1e3 * static_cast<double>(n) / ms : 0);
    };
    log_info("slot print_timing: id {} | logical {} tokens, physical {:.0f} rows, {} bytes", choice.last.id_slot,
             choice.last.n_logical, choice.last.n_physical, choice.last.kv_bytes);
    log_info("{}", line("prompt eval", t.prompt_ms, t.prompt_n));
    log_info("{}", line("eval", t.predicted_ms, t.predicted_n));
    log_info("{}", line("total", t.prompt_ms + t.predicted_ms, t.prompt_n + t.predicted_n));
  }

  ServerState& state_;
  std::shared_ptr<Exchange> exchange_;
  const bool is_stream_, returns_progress_;
  const int ping_seconds_;
  std::unique_ptr<Dialect> dialect_;
  std::vector<Choice> choices_;
  std::vector<Piece> pending_;  // one a choice: not sent yet
  std::vector<uint64_t> tasks_;
  size_t n_done_ = 0;
  bool has_begun_ = false, is_over_ = false;
};

double per(double value, double count) {
  return count > 0 ? value / count : 0.0;
}

}  // namespace

void run_generation(ServerState& state, std::shared_ptr<Exchange> exchange, const ParsedRequest& parsed,
                    const std::vector<std::vector<int32_t>>& prompts, std::unique_ptr<Dialect> dialect) {
  std::make_shared<GenerationRun>(state, std::move(exchange), parsed, std::move(dialect))->start(parsed, prompts);
}

RequestDefaults request_defaults(const ServerState& state) {
  return RequestDefaults{.sampling = state.params.sampling,
                         .n_predict = state.params.n_predict,
                         .ignore_eos = state.params.ignore_eos,
                         .cache_prompt = state.params.cache_prompt,
                         .n_slots = state.engine->options().n_parallel,
                         .end_tokens = state.end_tokens};
}

Json timings_json(const engine::Timings& t) {
  return Json{{"cache_n", t.cache_n},
              {"prompt_n", t.prompt_n},
              {"prompt_ms", t.prompt_ms},
              {"prompt_per_token_ms", per(t.prompt_ms, static_cast<double>(t.prompt_n))},
              {"prompt_per_second", per(1e3 * static_cast<double>(t.prompt_n), t.prompt_ms)},
              {"predicted_n", t.predicted_n},
              {"predicted_ms", t.predicted_ms},
              {"predicted_per_token_ms", per(t.predicted_ms, static_cast<double>(t.predicted_n))},
              {"predicted_per_second", per(1e3 * static_cast<double>(t.predicted_n), t.predicted_ms)}};
}

Json kv_json(const GenerationEvent& event) {
  return Json{{"logical", event.n_logical},
              {"physical", event.n_physical},
              {"bytes", event.kv_bytes},
              {"n_rebases", event.n_rebases}};
}

Json usage_json(const std::vector<Choice>& choices) {
  int64_t n_prompt = 0, n_cached = 0, n_completion = 0;
  int32_t counted_prompt = -1;
  for (const Choice& choice : choices) {
    n_completion += choice.last.timings.predicted_n;
    if (choice.prompt_index == counted_prompt) continue;
    counted_prompt = choice.prompt_index;
    n_prompt += static_cast<int64_t>(choice.request.prompt.size());
    n_cached += choice.last.timings.cache_n;
  }
  return Json{{"completion_tokens", n_completion},
              {"prompt_tokens", n_prompt},
              {"total_tokens", n_prompt + n_completion},
              {"prompt_tokens_details", {{"cached_tokens", n_cached}}}};
}

Json progress_json(const GenerationEvent& event) {
  return Json{{"total", event.n_prompt},
              {"cache", event.timings.cache_n},
              {"processed", event.n_prompt_done},
              {"time_ms", event.timings.prompt_ms}};
}

Json probs_json(const std::vector<engine::TokenProbs>& probs, int32_t n_top,
                const tokenizer::Tokenizer& tokenizer) {
  const auto entry = [&](int32_t id, float logprob) {
    const std::string piece = tokenizer.piece(id, true);
    Json bytes = Json::array();
    for (const char byte : piece) bytes.push_back(static_cast<unsigned char>(byte));
    // JSON has no infinity: a banned token gets the lowest number that clients' float32 holds.
    return Json{{"id", id},
                {"token", piece},
                {"bytes", std::move(bytes)},
                {"logprob", std::max(logprob, std::numeric_limits<float>::lowest())}};
  };
  Json out = Json::array();
  for (const engine::TokenProbs& token : probs) {
    Json top = Json::array();
    for (const auto& [id, logprob] : token.top)
      if (static_cast<int32_t>(top.size()) < n_top) top.push_back(entry(id, logprob));
    Json taken = entry(token.id, token.logprob);
    taken["top_logprobs"] = std::move(top);
    out.push_back(std::move(taken));
  }
  return out;
}

void add_measurements(Json& out, const Choice& choice) {
  out["id_slot"] = choice.last.id_slot;
  out["timings"] = timings_json(choice.last.timings);
  out["kv"] = kv_json(choice.last);
  if (!choice.compactions.empty()) out["compaction"] = compaction_json(choice.compactions);
}

std::string sse_text(const std::vector<Json>& records) {
  std::string out;
  for (const Json& record : records) out += "data: " + dump_json(record) + "\n\n";
  return out;
}

}  // namespace sh::server
