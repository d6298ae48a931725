// SPDX-License-Identifier: MIT
#include "tools/eval_decode.h"

#include <algorithm>

#include "engine/token_batch.h"

namespace sh::tools {

namespace {

/// Logits of one forward; more rows are split over several. 64 MiB: 110 rows of the largest vocabularies.
constexpr int64_t kMaxLogitBytes = int64_t{64} << 20;

}  // namespace

int32_t argmax(std::span<const float> logits) {
  return static_cast<int32_t>(std::max_element(logits.begin(), logits.end()) - logits.begin());
}

Result<void> feed(engine::Executor& executor, std::span<const Feed> feeds) {
  const engine::Engine& engine = executor.engine();
  const int64_t n_vocab = engine.model().info().n_vocab, n_ubatch = engine.options().n_ubatch;
  const int64_t max_rows = std::max<int64_t>(1, kMaxLogitBytes / (n_vocab * int64_t{sizeof(float)}));
  size_t at = 0;
  int64_t n_fed = 0;  // of feeds[at]
  while (at < feeds.size()) {
    engine::TokenBatch batch;
    std::vector<std::pair<size_t, int64_t>> rows;  // feed and token of each row of logits
    while (at < feeds.size()) {
      const Feed& next = feeds[at];
      const auto n = static_cast<int64_t>(next.ids.size());
      // Tokens before the first wanted one cost no row.
      const int64_t n_free = std::max<int64_t>(0, next.first_wanted - n_fed);
      const int64_t n_room = n_ubatch - static_cast<int64_t>(batch.ids.size());
      const int64_t n_now = std::min({n - n_fed, n_room, n_free + max_rows - static_cast<int64_t>(rows.size())});
      if (n_fed < n && n_now <= 0) break;
      const auto first = static_cast<int64_t>(batch.ids.size());
      if (n_now > 0)
        batch.add(*next.sequence, next.ids.subspan(static_cast<size_t>(n_fed), static_cast<size_t>(n_now)), false);
      for (int64_t i = std::max(n_fed, next.first_wanted); i < n_fed + n_now; ++i) {
        batch.logit_rows.push_back(static_cast<int32_t>(first + i - n_fed));
        rows.emplace_back(at, i);
      }
      n_fed += std::max<int64_t>(0, n_now);
      if (n_fed < n) break;
      ++at;
      n_fed = 0;
    }
    if (batch.ids.empty()) continue;
    Mat<float> logits(static_cast<int64_t>(rows.size()), n_vocab);
    SH_RETURN_IF_ERROR(executor.forward(batch.view(), logits.view()));
    for (size_t r = 0; r < rows.size(); ++r)
      feeds[rows[r].first].take(rows[r].second,
                                {logits.row(static_cast<int64_t>(r)), static_cast<size_t>(n_vocab)});
  }
  return {};
}

Result<Prompted> read_prompts(engine::Executor& executor, const kv::SequenceCache& cache,
                              std::span<const std::span<const int32_t>> prompts) {
  Prompted out{.logits =
                   Mat<float>(static_cast<int64_t>(prompts.size()), executor.engine().model().info().n_vocab)};
  for (size_t i = 0; i < prompts.size(); ++i) out.forks.push_back(cache.fork());
  std::vector<Feed> feeds;
  for (size_t i = 0; i < prompts.size(); ++i)
    feeds.push_back({&out.forks[i], prompts[i], static_cast<int64_t>(prompts[i].size()) - 1,
                     [&out, i](int64_t, std::span<const float> logits) {
                       std::copy(logits.begin(), logits.end(), out.logits.row(static_cast<int64_t>(i)));
                     }});
  SH_RETURN_IF_ERROR(feed(executor, feeds));
  return out;
}

Result<void> force(engine::Executor& executor, const Prompted& prompted, std::span<const Forced> all) {
  std::vector<kv::SequenceCache> forks;
  for (const Forced& forced : all) forks.push_back(prompted.forks[forced.prompt].fork());
  std::vector<Feed> feeds;
  for (size_t i = 0; i < all.size(); ++i) {
    const Forced& forced = all[i];
    if (forced.ids.empty()) continue;
    forced.take(0, prompted.logits_of(forced.prompt));
    feeds.push_back({&forks[i], forced.ids.first(forced.ids.size() - 1), 0,
                     [&forced](int64_t at, std::span<const float> logits) { forced.take(at + 1, logits); }});
  }
  return feed(executor, feeds);
}

Result<std::vector<Answer>> answer_greedily(engine::Executor& executor, Prompted& prompted,
                                            std::span<const size_t> which, std::span<const AnswerLimits> limits) {
  const engine::Engine& engine = executor.engine();
  const int64_t n_vocab = engine.model().info().n_vocab;
  std::vector<Answer> answers(which.size());
  const auto take = [&](size_t i, std::span<const float> logits) {
    Answer& answer = answers[i];
    const auto n = static_cast<int64_t>(answer.ids.size());
    if (n == 0) answer.logits = Mat<float>(limits[i].n_logits, n_vocab);
    if (n < limits[i].n_logits) std::copy(logits.begin(), logits.end(), answer.logits.row(n));
    answer.ids.push_back(argmax(logits));
    answer.is_ended = engine.tokenizer().is_end_of_generation(answer.ids.back());
  };
  for (size_t i = 0; i < which.size(); ++i) take(i, prompted.logits_of(which[i]));
  for (;;) {
    std::vector<Feed> step;
    for (size_t i = 0; i < which.size(); ++i) {
      const Answer& answer = answers[i];
      if (answer.is_ended || static_cast<int64_t>(answer.ids.size()) >= limits[i].n_tokens) continue;
      step.push_back({&prompted.forks[which[i]], std::span(&answer.ids.back(), 1), 0,
                      [&take, i](int64_t, std::span<const float> logits) { take(i, logits); }});
    }
    if (step.empty()) break;
    SH_RETURN_IF_ERROR(feed(executor, step));
  }
  for (Answer& answer : answers) {
    answer.logits.rows = std::min(answer.logits.rows, static_cast<int64_t>(answer.ids.size()));
    answer.logits.data.resize(static_cast<size_t>(answer.logits.rows * n_vocab));
  }
  return answers;
}

}  // namespace sh::tools
