// SPDX-License-Identifier: MIT
#include "tools/eval_measure.h"

#include <algorithm>

#include "base/clock.h"

namespace sh::tools {

namespace {

using engine::Engine;
using kv::SequenceCache;

std::span<const float> row_of(const Mat<float>& m, size_t r) {
  return {m.row(static_cast<int64_t>(r)), static_cast<size_t>(m.cols)};
}

/// Measures one group of references.
class Measurer {
 public:
  Measurer(const Probe& probe, std::span<const Reference> references)
      : engine_(*probe.engine),
        cache_(*probe.cache),
        references_(references),
        items_(references.size()),
        follows_full_(references.size(), true) {}

  Result<std::vector<EvalItem>> run() {
    SH_ASSIGN(Prompted prompted, prompted_with(engine_.executor(), cache_, references_));
    std::vector<Forced> forced;
    for (size_t i = 0; i < references_.size(); ++i) {
      const Reference& r = references_[i];
      items_[i].first_distance = static_cast<int64_t>(r.prompt.size());
      forced.push_back(
          {i, r.forced, [this, i](int64_t at, std::span<const float> logits) { compare(i, at, logits); }});
      if (!r.is_question) continue;
      if (r.expectation.n_options == 0)
        forced.push_back({i, r.gold, [this, i](int64_t at, std::span<const float> logits) {
                            const std::vector<int32_t>& gold = references_[i].gold;
                            const int64_t rank = rank_of(logits, gold[static_cast<size_t>(at)]);
                            items_[i].rank = std::max(items_[i].rank.value_or(1), rank);
                            items_[i].nll += negative_log_likelihood(logits, gold[static_cast<size_t>(at)]) /
                                             static_cast<double>(gold.size());
                          }});
    }
    SH_RETURN_IF_ERROR(force(engine_.executor(), prompted, forced));
    SH_RETURN_IF_ERROR(weigh_letters(prompted));
    SH_RETURN_IF_ERROR(answer(prompted));
    return std::move(items_);
  }

 private:
  void compare(size_t i, int64_t at, std::span<const float> logits) {
    const Reference& r = references_[i];
    const auto t = static_cast<size_t>(at);
    TokenComparison& token =
        items_[i].tokens.emplace_back(compare_logits(row_of(r.full_logits, t), logits, r.forced[t]));
    token.nll_none = r.none_nll[t];
    items_[i].overlaps.push_back(overlap_of(row_of(r.full_logits, t), logits));
    follows_full_[i] = follows_full_[i] && argmax(logits) == r.forced[t];
    if (!r.is_question) items_[i].nll += token.nll_compact / static_cast<double>(r.forced.size());
  }

  /// The likelihoods of the options' letters after the stub.
  Result<void> weigh_letters(const Prompted& prompted) {
    std::vector<SequenceCache> forks;
    std::vector<size_t> which;
    for (size_t i = 0; i < references_.size(); ++i)
      if (references_[i].expectation.n_options > 0) {
        which.push_back(i);
        forks.push_back(prompted.forks[i].fork());
      }
    std::vector<Feed> feeds;
    for (size_t k = 0; k < which.size(); ++k) {
      const Reference& r = references_[which[k]];
      EvalItem& item = items_[which[k]];
      feeds.push_back({&forks[k], r.stub, static_cast<int64_t>(r.stub.size()) - 1,
                       [&r, &item](int64_t, std::span<const float> logits) {
                         const auto likelihood = [&](int32_t token) { return logits[static_cast<size_t>(token)]; };
                         const auto best =
                             std::max_element(r.letters.begin(), r.letters.end(),
                                              [&](int32_t a, int32_t b) { return likelihood(a) < likelihood(b); });
                         const auto right = static_cast<size_t>(r.expectation.accept.front().front() - 'A');
                         item.is_likeliest = best - r.letters.begin() == static_cast<std::ptrdiff_t>(right);
                         item.rank = 1 + std::count_if(r.letters.begin(), r.letters.end(), [&](int32_t letter) {
                                       return likelihood(letter) > likelihood(r.letters[right]);
                                     });
                         item.nll = negative_log_likelihood(logits, r.letters[right]);
                       }});
    }
    return feed(engine_.executor(), feeds);
  }

  /// Grades the answers; those that follow the full cache's token for token need not be decoded.
  Result<void> answer(Prompted& prompted) {
    std::vector<size_t> which;
    std::vector<AnswerLimits> limits;
    for (size_t i = 0; i < references_.size(); ++i) {
      const Reference& r = references_[i];
      if (!r.is_question) continue;
      if (follows_full_[i] && r.is_forced_whole) {
        judge(i, r.full);
      } else {
        which.push_back(i);
        limits.push_back({r.max_answer_tokens, 0});
      }
    }
    SH_ASSIGN(const std::vector<Answer> answers, answer_greedily(engine_.executor(), prompted, which, limits));
    for (size_t k = 0; k < which.size(); ++k) {
      const Reference& r = references_[which[k]];
      judge(which[k], grade(r.expectation, answer_text(engine_, answers[k].ids, r.has_thoughts())));
    }
    return {};
  }

  void judge(size_t i, const Grade& grade) {
    const Reference& r = references_[i];
    EvalItem& item = items_[i];
    item.answer = grade.answer;
    item.is_right = grade.is_right;
    item.is_parsed = grade.is_parsed;
    item.obeys = grade.obeys;
    item.obeys_with_full = r.full.obeys;
    item.is_right_with_full = r.full.is_right;
    item.is_same_as_full = grade.answer == r.full.answer && grade.is_parsed == r.full.is_parsed;
  }

  Engine& engine_;
  const SequenceCache& cache_;
  std::span<const Reference> references_;
  std::vector<EvalItem> items_;
  std::vector<bool> follows_full_;
};

}  // namespace

Result<std::vector<EvalItem>> measure_items(const Probe& probe, Subject& subject, ReferenceRange range,
                                            const std::string& method, double ratio) {
  std::vector<EvalItem> items;
  const auto measure = [&](std::span<Reference> references) -> Result<void> {
    SH_ASSIGN(std::vector<EvalItem> some, Measurer(probe, references).run());
    std::move(some.begin(), some.end(), std::back_inserter(items));
    return {};
  };
  SH_RETURN_IF_ERROR(
      in_waves(probe.cache->pool(), std::span(subject.references).subspan(range.first, range.count), measure));
  for (size_t i = 0; i < items.size(); ++i) {
    const Reference& r = subject.references[range.first + i];
    EvalItem& item = items[i];
    item.context = subject.context;
    item.document = subject.id;
    item.kind = r.kind;
    item.method = method;
    item.index = static_cast<int64_t>(range.first + i);
    item.depth = r.depth;
    item.ratio = ratio;
    item.question = r.question;
    item.expected = r.expected;
    item.has_answer = r.is_question;
    item.is_choice = r.expectation.n_options > 0;
  }
  return items;
}

Result<std::pair<double, double>> decode_speeds(const Probe& a, const Probe& b) {
  constexpr int kRepeats = 5, kTokens = 16;
  std::vector<double> speeds[2];
  for (int repeat = 0; repeat <= kRepeats; ++repeat)
    for (const int side : {0, 1}) {
      const Probe& probe = side == 0 ? a : b;
      SequenceCache fork = probe.cache->fork();
      const int32_t id = 0;
      SH_RETURN_IF_ERROR(probe.engine->prefill(fork, std::span(&id, 1)));  // takes the copy of the tail blocks
      const Stopwatch watch;
      for (int i = 0; i < kTokens; ++i) SH_RETURN_IF_ERROR(probe.engine->prefill(fork, std::span(&id, 1)));
      if (repeat > 0) speeds[side].push_back(kTokens / watch.seconds());  // the first round warms up
    }
  return std::pair{quantile(speeds[0], 0.5), quantile(speeds[1], 0.5)};
}

}  // namespace sh::tools
