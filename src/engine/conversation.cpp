// SPDX-License-Identifier: MIT
#include "engine/conversation.h"

#include <algorithm>

namespace sh::engine {

using kv::Pos;

Conversation::Conversation(Engine& engine, bool captures_queries) : engine_(engine), cache_(engine.block_pool()) {
  if (captures_queries && engine.options().capture_bytes > 0)
    capture_ = std::make_unique<QueryCapture>(engine.model(), engine.kv_layout(), engine.options().capture_bytes);
}

Result<void> Conversation::append(std::span<const int32_t> ids, MatView<float> logits) {
  const auto n = static_cast<int64_t>(ids.size());
  std::vector<Pos> pos;
  for (int64_t i = 0; i < n; ++i) pos.push_back(cache_.next_pos() + i);
  const std::vector<kv::SequenceCache*> sequences(ids.size(), &cache_);
  std::vector<int32_t> logit_rows;
  if (logits.rows > 0) logit_rows.push_back(static_cast<int32_t>(n) - 1);
  if (capture_) capture_->begin_batch(pos);
  SH_RETURN_IF_ERROR(engine_.forward({ids, pos, sequences, logit_rows}, logits, capture_.get()));
  tokens_.insert(tokens_.end(), ids.begin(), ids.end());
  return {};
}

Result<void> Conversation::truncate(int64_t n_tokens) {
  if (n_tokens >= this->n_tokens()) return {};
  if (n_tokens <= 0) {
    clear();
    return {};
  }
  SH_RETURN_IF_ERROR(cache_.truncate(Pos(n_tokens)));
  tokens_.resize(static_cast<size_t>(n_tokens));
  if (capture_) capture_->truncate(Pos(n_tokens));
  return {};
}

void Conversation::clear() {
  cache_.clear();
  tokens_.clear();
  if (capture_) capture_->clear();
  rows_at_last_attempt_ = -1;
}

Result<CompactionReport> Conversation::compact(const CompactionRequest& request, const std::atomic<bool>* cancel,
                                               const CompactionProgress& on_progress) {
  return compact_sequence(engine_, cache_, tokens_, capture_.get(), request, cancel, on_progress);
}

double Conversation::n_physical() const {
  const kv::KvLayout& layout = engine_.kv_layout();
  int64_t n_rows = 0;
  for (size_t l = 0; l < layout.layers.size(); ++l)
    for (int32_t h = 0; h < layout.layers[l].n_heads; ++h)
      n_rows += cache_.head(static_cast<int32_t>(l), h).n_rows;
  return static_cast<double>(n_rows) / static_cast<double>(std::max<int64_t>(1, layout.n_heads_total()));
}

int64_t Conversation::rows_left() const {
  return std::max<int64_t>(0, static_cast<int64_t>(static_cast<double>(engine_.n_ctx_slot()) - n_physical()));
}

bool Conversation::wants_compaction() const {
  if (!engine_.compacts_automatically()) return false;
  const auto capacity = static_cast<double>(engine_.n_ctx_slot());
  const double n = n_physical();
  if (n < engine_.options().compact_threshold * capacity) return false;
  return rows_at_last_attempt_ < 0 || n - rows_at_last_attempt_ >= capacity / 16 || rows_left() == 0;
}

Result<CompactionReport> Conversation::compact_automatically(int64_t n_keep, const std::atomic<bool>* cancel,
                                                             const CompactionProgress& on_progress) {
  CompactionRequest request;
  request.method = engine_.options().compact_method;
  request.ratio = engine_.options().compact_ratio;
  request.n_protected_prefix = n_keep < 0 ? n_tokens() : std::min(n_keep, n_tokens());
  request.n_live_suffix = std::min(engine_.n_ctx_slot() / 16, n_tokens());
  auto report = compact(request, cancel, on_progress);
  rows_at_last_attempt_ = n_physical();
  return report;
}

Result<std::string> TurnFormat::render(Json messages) const {
  const tokenizer::Tokenizer& tokenizer = engine_.tokenizer();
  chat::PromptInput input;
  input.messages = std::move(messages);
  if (tokenizer.data().bos != tokenizer::kNoToken) input.bos_token = tokenizer.piece(tokenizer.data().bos, true);
  if (tokenizer.data().eos != tokenizer::kNoToken) input.eos_token = tokenizer.piece(tokenizer.data().eos, true);
  return engine_.chat_template().apply(input);
}

Result<std::string> TurnFormat::first_turn(const std::string& system, const std::string& user) const {
  Json messages = Json::array();
  if (!system.empty()) messages.push_back({{"role", "system"}, {"content", system}});
  messages.push_back({{"role", "user"}, {"content", user}});
  return render(std::move(messages));
}

Result<std::string> TurnFormat::next_turn(const std::string& user) const {
  static const std::string kAnswer = "Answer-of-the-assistant";
  const Json messages = Json::array({{{"role", "user"}, {"content", "Question"}},
                                     {{"role", "assistant"}, {"content", kAnswer}},
                                     {{"role", "user"}, {"content", user}}});
  SH_ASSIGN(const std::string text, render(messages));
  const size_t at = text.find(kAnswer);
  if (at == std::string::npos)
    return Error{
        ErrorKind::unsupported,
        "the chat template does not show what the assistant said, so a second turn cannot be added; use -st, or "
        "--chat-template with another one"};
  return text.substr(at + kAnswer.size());
}

std::vector<int32_t> encode_opening(const Engine& engine, std::string_view text) {
  const tokenizer::Tokenizer& tokenizer = engine.tokenizer();
  std::vector<int32_t> ids = tokenizer.encode(text, {.add_special = true, .parse_special = true});
  const int32_t bos = tokenizer.data().bos;
  if (tokenizer.adds_bos() && ids.size() > 1 && ids[0] == bos && ids[1] == bos) ids.erase(ids.begin());
  if (tokenizer.adds_eos() && ids.size() > 1 && ids.back() == tokenizer.data().eos)
    ids.pop_back();  // an opening goes on
  return ids;
}

std::vector<int32_t> encode_following(const Engine& engine, std::string_view text) {
  return engine.tokenizer().encode(text, {.add_special = false, .parse_special = true});
}

}  // namespace sh::engine
