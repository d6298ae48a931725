// SPDX-License-Identifier: MIT
#include "engine/reference_steps.h"

#include <algorithm>

#include "engine/token_batch.h"

namespace sh::engine {

namespace {

constexpr const char* kRepeatInstruction = "Repeat the text above.";

bool ends_turn(const Engine& engine, std::span<const int32_t> ids) {
  return !ids.empty() &&
         (engine.tokenizer().is_end_of_generation(ids.back()) || engine.tokenizer().is_control(ids.back()));
}

/// Shows a forward's queries to the capture, which keeps some, and to the coverage, which keeps none but sees all.
class StudyTap final : public ops::AttentionTap {
 public:
  StudyTap(QueryCapture& capture, RowCoverage* coverage, std::span<const kv::Pos> pos)
      : capture_(capture), coverage_(coverage), pos_(pos) {}
  bool on_attention(int32_t layer, MatView<const float> queries, MatView<const float> lse,
                    MatView<const float> out) override {
    if (capture_.wants_layer(layer)) capture_.on_attention(layer, queries, lse, out);
    if (coverage_ != nullptr) coverage_->fold(layer, pos_, queries, lse);
    return false;
  }
  bool wants_layer(int32_t layer) const override {
    return capture_.wants_layer(layer) || (coverage_ != nullptr && coverage_->wants_layer(layer));
  }

 private:
  QueryCapture& capture_;
  RowCoverage* coverage_;
  std::span<const kv::Pos> pos_;
};

}  // namespace

std::vector<int32_t> encode_text(const Engine& engine, const std::string& text) {
  return engine.tokenizer().encode(text, {.add_special = false, .parse_special = true});
}

std::vector<int32_t> opening_tokens(const Engine& engine, const TurnTokens& turn, std::span<const int32_t> ids) {
  std::vector<int32_t> opening;
  if (!ends_turn(engine, ids)) opening = turn.close_turn;
  opening.insert(opening.end(), turn.user_open.begin(), turn.user_open.end());
  return opening;
}

Result<std::vector<int32_t>> repeat_opening(const Engine& engine, std::span<const int32_t> ids) {
  SH_ASSIGN(const TurnTokens turn, turn_tokens(engine));
  std::vector<int32_t> opening = opening_tokens(engine, turn, ids);
  const std::vector<int32_t> instruction = encode_text(engine, kRepeatInstruction);
  opening.insert(opening.end(), instruction.begin(), instruction.end());
  opening.insert(opening.end(), turn.user_close.begin(), turn.user_close.end());
  return opening;
}

Replay::Part repeat_part(std::span<const int32_t> ids, int64_t begin, int64_t end) {
  const int64_t first = std::max<int64_t>(0, begin - kRepeatLeadIn);
  return {{ids.begin() + first, ids.begin() + end}, begin - first};
}

std::vector<std::pair<int64_t, int64_t>> spread_pieces(int64_t begin, int64_t end, int64_t n_pieces,
                                                       int64_t length) {
  std::vector<std::pair<int64_t, int64_t>> pieces;
  for (int64_t i = 0; i < n_pieces; ++i) {
    const int64_t from = begin + (end - begin) * i / n_pieces, to = begin + (end - begin) * (i + 1) / n_pieces;
    const int64_t n = std::min(length, to - from), at = from + (to - from - n) / 2;
    pieces.emplace_back(at, at + n);
  }
  return pieces;
}

Error cancelled_error() {
  return {ErrorKind::cancelled,
          "the compaction was cancelled while it gathered reference queries; nothing has changed"};
}

Result<Mat<float>> run_step(Executor& executor, std::span<const StepItem> items, QueryCapture& capture,
                            RowCoverage* coverage) {
  TokenBatch batch;
  std::vector<int64_t> labels;
  for (const StepItem& item : items) {
    batch.add(*item.sequence, item.ids, true);
    if (items.front().label == 0) continue;
    for (size_t i = 0; i < item.ids.size(); ++i) labels.push_back(item.label + static_cast<int64_t>(i));
  }
  Mat<float> logits(static_cast<int64_t>(items.size()), executor.engine().model().info().n_vocab);
  capture.begin_batch(batch.pos, {}, labels);
  StudyTap tap(capture, coverage, batch.pos);
  SH_RETURN_IF_ERROR(executor.forward(batch.view(), logits.view(), &tap));
  return logits;
}

Result<TurnTokens> turn_tokens(const Engine& engine) {
  const std::string a = "First question?", b = "First answer.", c = "Second question?";
  const Json user_a = {{"role", "user"}, {"content", a}}, assistant_b = {{"role", "assistant"}, {"content", b}},
             user_c = {{"role", "user"}, {"content", c}};
  SH_ASSIGN(const std::string two, engine.render_messages(Json::array({user_a, assistant_b}), false));
  SH_ASSIGN(const std::string three, engine.render_messages(Json::array({user_a, assistant_b, user_c}), true));
  const size_t b_in_two = two.rfind(b), b_in_three = three.rfind(b), c_in_three = three.rfind(c);
  if (b_in_two == std::string::npos || b_in_three == std::string::npos || c_in_three == std::string::npos ||
      c_in_three < b_in_three)
    return Error{ErrorKind::unsupported,
                 "the model's chat template does not show where a user turn begins and ends, so no study "
                 "conversation can be "
                 "opened; use another source of reference queries"};
  const std::string close = two.substr(b_in_two + b.size());
  const std::string between = three.substr(b_in_three + b.size(), c_in_three - b_in_three - b.size());
  const std::vector<int32_t> user_close = encode_text(engine, three.substr(c_in_three + c.size()));
  if (between.starts_with(close))
    return TurnTokens{encode_text(engine, close), encode_text(engine, between.substr(close.size())), user_close};
  // The template ends the last turn differently (Phi 3.5, Command R): what closes an open turn is what both have
  // in common.
  const std::vector<int32_t> close_ids = encode_text(engine, close), between_ids = encode_text(engine, between);
  const auto open_begin =
      std::mismatch(close_ids.begin(), close_ids.end(), between_ids.begin(), between_ids.end()).second;
  return TurnTokens{{between_ids.begin(), open_begin}, {open_begin, between_ids.end()}, user_close};
}

}  // namespace sh::engine
