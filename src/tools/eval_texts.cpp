// SPDX-License-Identifier: MIT
#include "tools/eval_texts.h"

#include <fmt/format.h>

#include <algorithm>
#include <numeric>
#include <string>

#include "tools/eval_retrieval.h"

namespace sh::tools {

namespace {

/// Tokens for text beside those of the template around it.
Result<int64_t> text_room(const SubjectReader& reader, int64_t n_tokens) {
  SH_ASSIGN(const std::vector<int32_t> empty, reader.document_tokens(""));
  const int64_t n_room = n_tokens - static_cast<int64_t>(empty.size());
  if (n_room > 0) return n_room;
  return Error{ErrorKind::invalid_argument,
               fmt::format("{} tokens fit, and the template alone takes {}", n_tokens, empty.size())};
}

/// The document of the longest beginning of `ids` that fits; written anew they may be a few tokens more.
Result<std::vector<int32_t>> fitted_document(const SubjectReader& reader, std::span<const int32_t> ids,
                                             int64_t n_tokens) {
  for (;;) {
    SH_ASSIGN(std::vector<int32_t> document, reader.document_tokens(answer_text(reader.engine(), ids, false)));
    const int64_t n_over = static_cast<int64_t>(document.size()) - n_tokens;
    if (n_over <= 0 || ids.empty()) return document;
    ids = ids.first(ids.size() - std::min(ids.size(), static_cast<size_t>(n_over)));
  }
}

}  // namespace

Result<std::vector<int32_t>> summary_tokens(const SubjectReader& reader, const Subject& subject,
                                            int64_t n_tokens) {
  SH_ASSIGN(const int64_t n_room, text_room(reader, n_tokens));
  const engine::Engine& engine = reader.engine();
  // Three words take about four tokens.
  const std::string request = fmt::format(
      "Summarise the text above in at most {} words. Questions on any detail of it will have to be answered from "
      "the "
      "summary alone: keep names, numbers and dates. Write nothing but the summary.",
      std::max<int64_t>(1, n_room * 3 / 4));
  Reference r;
  r.prompt = reader.user_turn(request);
  r.max_answer_tokens = n_room + reader.n_thought_tokens();
  SH_ASSIGN(Prompted prompted, prompted_with(reader.executor(), subject.cache, std::span(&r, 1)));
  const size_t which = 0;
  const AnswerLimits limits{r.max_answer_tokens, 0};
  SH_ASSIGN(const std::vector<Answer> answers,
            answer_greedily(reader.executor(), prompted, std::span(&which, 1), std::span(&limits, 1)));
  const bool is_thinking = reader.n_thought_tokens() > 0;
  const auto summary = without_thinking(answer_text(engine, answers[0].ids, is_thinking), is_thinking);
  if (!summary || summary->empty())
    return Error{ErrorKind::invalid_argument,
                 fmt::format("the model wrote no summary within {} tokens", r.max_answer_tokens)};
  std::vector<int32_t> ids = encode_plain(engine, *summary);
  return fitted_document(reader, ids, n_tokens);
}

Result<std::vector<int32_t>> retrieved_tokens(const SubjectReader& reader, std::string_view text,
                                              std::string_view query, int64_t n_words, int64_t n_tokens) {
  SH_ASSIGN(const int64_t n_room, text_room(reader, n_tokens));
  const engine::Engine& engine = reader.engine();
  const std::vector<std::string_view> passages = split_passages(text, n_words);
  const std::vector<double> scores = bm25(passages, query);
  std::vector<size_t> order(passages.size());
  std::iota(order.begin(), order.end(), size_t{0});
  std::stable_sort(order.begin(), order.end(), [&](size_t a, size_t b) { return scores[a] > scores[b]; });

  std::vector<size_t> taken;  // the best first
  int64_t n_taken = 0;
  for (const size_t i : order) {
    const auto n = static_cast<int64_t>(encode_plain(engine, std::string(passages[i])).size());
    if (n_taken + n > n_room) continue;
    taken.push_back(i);
    n_taken += n;
  }
  // Joined, the passages may be a few tokens more than alone.
  for (; !taken.empty(); taken.pop_back()) {
    std::vector<size_t> in_order = taken;
    std::sort(in_order.begin(), in_order.end());
    std::string joined;
    for (size_t k = 0; k < in_order.size(); ++k) {
      if (k > 0 && in_order[k] != in_order[k - 1] + 1 && joined.back() != '\n') joined += '\n';
      joined += passages[in_order[k]];
    }
    SH_ASSIGN(std::vector<int32_t> document, reader.document_tokens(joined));
    if (static_cast<int64_t>(document.size()) <= n_tokens) return document;
  }
  if (order.empty()) return reader.document_tokens("");
  const std::vector<int32_t> best = encode_plain(engine, std::string(passages[order[0]]));
  return fitted_document(reader, best, n_tokens);
}

}  // namespace sh::tools
