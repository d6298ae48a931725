// SPDX-License-Identifier: MIT
// What the methods are worth next to each other on scribe: KL of answers to questions that no method has seen.
#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <map>
#include <vector>

#include "engine/logit_compare.h"
#include "engine/scribe_document.h"

namespace sh::engine {
namespace {

using compaction::CompactionMethod;
using kv::SequenceCache;

class MethodOrder : public ScribeDocument {
 protected:
  /// A question with the full cache's answer, and what it predicted of each of its tokens.
  struct Asked {
    std::vector<int32_t> ids;  // question and answer
    size_t n_question = 0;
    Mat<float> logits;  // of all ids
  };
  static void SetUpTestSuite() {
    ScribeDocument::SetUpTestSuite();
    for (const Question& question : document_->questions) {
      Asked asked{.ids = question_ids(*engine_, question.text), .n_question = 0, .logits = {}};
      asked.n_question = asked.ids.size();
      asked.ids = joined(asked.ids, continue_greedily(*engine_, *base_, asked.ids, 16));
      asked.logits = all_logits(*base_, asked.ids);
      asked_.push_back(std::move(asked));
    }
  }
  static void TearDownTestSuite() {
    asked_.clear();
    ScribeDocument::TearDownTestSuite();
  }
  static Mat<float> all_logits(const SequenceCache& sequence, const std::vector<int32_t>& ids) {
    SequenceCache fork = sequence.fork();
    return engine_->prefill(fork, ids, {.all_logits = true}).value();
  }
  /// Mean KL over the tokens of all answers.
  static double answer_kl(const SequenceCache& sequence) {
    std::vector<double> kl;
    for (const Asked& asked : asked_) {
      const Mat<float> logits = all_logits(sequence, asked.ids);
      for (size_t i = asked.n_question; i < asked.ids.size(); ++i) {
        const auto row = static_cast<int64_t>(i) - 1;
        kl.push_back(compare_logits(std::span(asked.logits.row(row), static_cast<size_t>(logits.cols)),
                                    std::span(logits.row(row), static_cast<size_t>(logits.cols)), asked.ids[i])
                         .kl);
      }
    }
    return mean(kl);
  }
  static inline std::vector<Asked> asked_;
};

// At 8x of a short text the head that looks facts up has no room for all its rows: what is worth keeping is known
// to those who study. At 4x a sample is enough.
TEST_F(MethodOrder, MatchedCachesBeatBaselinesOfTheSameBytes) {
  const std::pair<double, std::vector<const char*>> trials[] = {
      {8, {"self_study", "on_policy", "sequential_on_policy"}},
      {4, {"select", "solver", "omp", "chunked", "self_study"}}};
  const std::vector<const char*> baselines = {"streaming", "snapkv", "h2o", "random", "truncate"};
  for (const auto& [ratio, matched] : trials) {
    std::map<std::string, double> kl;
    std::vector<const char*> names = matched;
    names.insert(names.end(), baselines.begin(), baselines.end());
    names.push_back("kvzip");
    for (const char* name : names) {
      CompactionRequest request{.method = name, .ratio = ratio, .of_whole_cache = true};
      request.validates = false;
      SequenceCache sequence = base_->fork();
      const CompactionReport report = compact(sequence, request);
      EXPECT_LE(static_cast<double>(sequence.usage().bytes) * ratio, static_cast<double>(base_->usage().bytes))
          << name;
      EXPECT_EQ(report.bytes_after, sequence.usage().bytes) << name;
      kl[name] = answer_kl(sequence);
      ASSERT_TRUE(std::isfinite(kl[name])) << name;
      RecordProperty(fmt::format("{} {}", name, ratio), std::to_string(kl[name]));
    }
    for (const char* name : matched)
      for (const char* baseline : baselines) EXPECT_LT(kl[name], 0.5 * kl[baseline]) << name << " " << baseline;
    EXPECT_LT(kl["kvzip"], kl["streaming"]);
  }
}

TEST_F(MethodOrder, ARatioOfOneChangesNothing) {
  for (const CompactionMethod* method : compaction::methods()) {
    CompactionRequest request = request_of(method->name, 1);
    request.of_whole_cache = true;
    request.self_study.n_conversations = 4;
    SequenceCache sequence = base_->fork();
    const CompactionReport report = compact(sequence, request);
    for_each_head([&](int32_t l, int32_t h) {
      const kv::HeadRows rows = sequence.copy_head(l, h), before = base_->copy_head(l, h);
      EXPECT_TRUE(rows.keys == before.keys && rows.values == before.values && rows.pos == before.pos)
          << method->name;
      EXPECT_TRUE(std::all_of(rows.bias.begin(), rows.bias.end(), [](float bias) { return bias == 0; }))
          << method->name;
    });
    EXPECT_EQ(report.real_ratio, 1) << method->name;
  }
}

// The same bytes, the same rows and nothing but numbers, however many threads there are.
TEST_F(MethodOrder, EveryMethodIsFiniteWithinItsBytesAndTheSameForAnyNumberOfThreads) {
  std::map<std::string, std::string> prints[2];
  for (const int n_threads : {1, 2}) {
    const auto engine = open_scribe({.n_ctx = 1024, .n_threads = n_threads});
    SequenceCache base(engine->block_pool());
    ASSERT_TRUE(engine->prefill(base, ids_).ok());
    for (const CompactionMethod* method : compaction::methods()) {
      CompactionRequest request = request_of(method->name, 8);
      request.of_whole_cache = true;
      request.self_study.n_conversations = 8;
      SequenceCache sequence = base.fork();
      const auto report = compact_sequence(engine->executor(), sequence, ids_, nullptr, request);
      ASSERT_TRUE(report.ok()) << method->name << ": " << report.error().message;
      EXPECT_LE(sequence.usage().bytes * 8, base.usage().bytes) << method->name;
      EXPECT_GE(report->real_ratio, 8) << method->name;
      for_each_head([&](int32_t l, int32_t h) {
        const auto rows = sequence.decode_head(engine->kernels(), l, h);
        for (const float value : rows.values.data) ASSERT_TRUE(std::isfinite(value)) << method->name;
        for (const float bias : rows.bias) ASSERT_TRUE(std::isfinite(bias)) << method->name;
      });
      prints[n_threads - 1][method->name] = fingerprint(sequence);
    }
  }
  for (const auto& [name, print] : prints[0]) EXPECT_TRUE(print == prints[1][name]) << name;
}

// A stretch of the text fitted on its own knows nothing of the rows that others keep, and pays for it: a little.
TEST_F(MethodOrder, ChunksKeepAsManyRowsAsOneShotAndAreNearlyAsGood) {
  for (const char* name : {"chunked", "chunked_self_study"}) {
    CompactionRequest request = request_of(name, 6);
    request.reread_fraction = 1;
    request.solve.chunk_tokens = 100;  // five chunks
    const auto queries = gather_reference_queries(engine_->executor(), *base_, ids_, nullptr, request);
    ASSERT_TRUE(queries.ok());
    SequenceCache chunked = base_->fork(), one_shot = base_->fork(), plain = base_->fork();
    const auto in_chunks = compact_sequence(engine_->executor(), chunked, *queries, request);
    request.schedule = compaction::Schedule::one_shot;
    const auto at_once = compact_sequence(engine_->executor(), one_shot, *queries, request);
    request.fit = compaction::Fit::none;
    const auto unfitted = compact_sequence(engine_->executor(), plain, *queries, request);
    ASSERT_TRUE(in_chunks.ok() && at_once.ok() && unfitted.ok());
    EXPECT_EQ(kept_rows(*in_chunks), kept_rows(*at_once)) << name;
    EXPECT_FALSE(fingerprint(chunked) == fingerprint(one_shot)) << name << ": the chunks changed nothing";
    EXPECT_LE(in_chunks->heldout_fitted, 1.25 * at_once->heldout_fitted) << name;
    EXPECT_LT(in_chunks->heldout_fitted, in_chunks->heldout_plain) << name;
    EXPECT_LT(answer_kl(chunked), 1.5 * answer_kl(plain) + 1e-5) << name << ": worse than the same rows without a fit";
    RecordProperty(name, std::to_string(in_chunks->heldout_fitted) + " " +
                             std::to_string(at_once->heldout_fitted) + " " +
                             std::to_string(unfitted->heldout_plain));
  }
}

}  // namespace
}  // namespace sh::engine
