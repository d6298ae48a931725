// SPDX-License-Identifier: MIT
#include "engine/compact_sequence.h"

#include <cmath>
#include <limits>

#include "engine/scribe_document.h"

namespace sh::engine {
namespace {

using compaction::CompactionMethod;
using compaction::Fit;
using kv::HeadRows;
using kv::Pos;
using kv::SequenceCache;

class CompactSequence : public ScribeDocument {};

TEST_F(CompactSequence, EveryMethodKeepsWhatItPromises) {
  for (const CompactionMethod* method : compaction::methods()) {
    SCOPED_TRACE(method->name);
    SequenceCache sequence = base_->fork();
    CompactionRequest request = request_of(method->name);
    request.of_whole_cache = true;
    request.n_protected_prefix = 20;
    request.n_live_suffix = 30;
    const CompactionReport report = compact(sequence, request);
    const int32_t n_end = std::max(30, method->n_recent), n_stay = 20 + n_end;

    const kv::CacheUsage usage = sequence.usage();
    EXPECT_LE(static_cast<double>(usage.bytes) * 4, static_cast<double>(base_->usage().bytes));
    EXPECT_GT(static_cast<double>(usage.bytes) * 6, static_cast<double>(base_->usage().bytes)) << "far fewer rows than asked for";
    EXPECT_EQ(report.bytes_before, base_->usage().bytes);
    EXPECT_EQ(report.bytes_after, usage.bytes);
    EXPECT_GE(report.real_ratio, 4.0);
    EXPECT_EQ(report.rows_after, usage.n_physical);
    EXPECT_EQ(report.n_logical, n());
    EXPECT_EQ(report.n_region, n() - n_stay);
    EXPECT_EQ(report.heads.size(), 10u);
    EXPECT_EQ(sequence.next_pos().value, n());
    EXPECT_EQ(sequence.n_compactions(), 1);
    EXPECT_EQ(sequence.compacted_end().value, n() - n_end);

    for_each_head([&](int32_t l, int32_t h) {
      const HeadRows before = base_->copy_head(l, h), after = sequence.copy_head(l, h);
      int64_t n_fixed = 0, n_kept = 0;
      int32_t last = -1;
      for (size_t i = 0; i < after.pos.size(); ++i) {
        const int32_t pos = after.pos[i].value;  // before the compaction the row's index too
        ASSERT_GT(pos, last);
        last = pos;
        ASSERT_EQ(key_bytes_of(after, i), key_bytes_of(before, static_cast<size_t>(pos))) << "layer " << l << " pos " << pos;
        const bool is_fixed = pos < 20 || pos >= n() - n_end;
        (is_fixed ? n_fixed : n_kept) += 1;
        if (is_fixed || method->fit == Fit::none) {
          ASSERT_EQ(row_bytes_of(after, i), row_bytes_of(before, static_cast<size_t>(pos))) << "layer " << l << " pos " << pos;
        }
      }
      EXPECT_EQ(n_fixed, n_stay);
      EXPECT_EQ(n_kept, report.heads[static_cast<size_t>(l * 2 + h)].n_kept);
      const auto decoded = sequence.decode_head(engine_->kernels(), l, h);
      for (const float value : decoded.values.data) ASSERT_TRUE(std::isfinite(value));
      for (const float bias : decoded.bias) ASSERT_TRUE(std::isfinite(bias));
    });

    // The conversation goes on.
    SequenceCache fork = sequence.fork();
    const Mat<float> logits = engine_->prefill(fork, question_ids(*engine_, document_->questions[0].text)).value();
    for (const float value : logits.data) ASSERT_TRUE(std::isfinite(value));
  }
}

TEST_F(CompactSequence, TargetTokensAreExact) {
  for (const CompactionMethod* method : compaction::methods())
    for (const int64_t target : {1, 5, 33}) {
      SequenceCache sequence = base_->fork();
      CompactionRequest request = request_of(method->name);
      request.target_rows = target;
      const CompactionReport report = compact(sequence, request);
      int64_t n_rows = 0;
      for (const auto& head : report.heads) n_rows += head.n_kept;
      EXPECT_EQ(n_rows, target * 10) << method->name;
      EXPECT_EQ(sequence.usage().n_rows, target * 10 + 10 * (n() - report.n_region)) << method->name;
    }
}

// Some heads get no row at all; nothing of that may reach the logits as NaN.
TEST_F(CompactSequence, ExtremeRatiosStayFinite) {
  for (const char* method : {"select", "solver", "truncate"})
    for (const double ratio : {64.0, 1000.0, 1e9}) {
      SequenceCache sequence = base_->fork();
      compact(sequence, request_of(method, ratio));
      const Mat<float> logits = engine_->prefill(sequence, question_ids(*engine_, document_->questions[0].text)).value();
      for (const float value : logits.data) ASSERT_TRUE(std::isfinite(value)) << method << " " << ratio;
    }
  SequenceCache sequence = base_->fork();
  CompactionRequest request = request_of("select");
  request.target_rows = std::numeric_limits<int64_t>::max();
  EXPECT_EQ(compact(sequence, request).region_ratio, 1.0);
}

TEST_F(CompactSequence, RatioOneChangesNoWord) {
  const std::vector<int32_t> prompt = question_ids(*engine_, document_->questions[0].text);
  const std::vector<int32_t> text = encode(*engine_, "\n\nThe ");
  for (const CompactionMethod* method : compaction::methods()) {
    SequenceCache sequence = base_->fork();
    const CompactionReport report = compact(sequence, request_of(method->name, 1));
    EXPECT_EQ(report.region_ratio, 1.0) << method->name;
    EXPECT_EQ(sequence.usage().n_rows, base_->usage().n_rows) << method->name;
    EXPECT_EQ(continue_greedily(*engine_, sequence, prompt, 24), continue_greedily(*engine_, *base_, prompt, 24)) << method->name;
    EXPECT_EQ(continue_greedily(*engine_, sequence, text, 16), continue_greedily(*engine_, *base_, text, 16)) << method->name;
  }
}

TEST_F(CompactSequence, ErrorsChangeNothing) {
  struct Case {
    const char* what;
    ErrorKind kind;
    void (*spoil)(CompactionRequest&);
  };
  const Case cases[] = {
      {"ratio 0.5", ErrorKind::invalid_argument, [](CompactionRequest& r) { r.ratio = 0.5; }},
      {"ratio 0", ErrorKind::invalid_argument, [](CompactionRequest& r) { r.ratio = 0; }},
      {"ratio -1", ErrorKind::invalid_argument, [](CompactionRequest& r) { r.ratio = -1; }},
      {"ratio NaN", ErrorKind::invalid_argument, [](CompactionRequest& r) { r.ratio = std::nan(""); }},
      {"ratio inf", ErrorKind::invalid_argument, [](CompactionRequest& r) { r.ratio = INFINITY; }},
      {"p0 beyond the end", ErrorKind::invalid_argument, [](CompactionRequest& r) { r.n_protected_prefix = 100000; }},
      {"p0 negative", ErrorKind::invalid_argument, [](CompactionRequest& r) { r.n_protected_prefix = -1; }},
      {"suffix beyond the end", ErrorKind::invalid_argument, [](CompactionRequest& r) { r.n_live_suffix = 100000; }},
      {"suffix negative", ErrorKind::invalid_argument, [](CompactionRequest& r) { r.n_live_suffix = -1; }},
      {"nothing left", ErrorKind::invalid_argument, [](CompactionRequest& r) { r.n_protected_prefix = r.n_live_suffix = 250; }},
      {"unknown method", ErrorKind::not_found, [](CompactionRequest& r) { r.method = "magic"; }},
      {"a profile that was not given", ErrorKind::invalid_argument,
       [](CompactionRequest& r) { r.budget = compaction::BudgetPolicy::profile; }},
      {"pinned rows beyond the whole budget", ErrorKind::invalid_argument,
       [](CompactionRequest& r) { r.of_whole_cache = true, r.n_protected_prefix = 200; }},
      {"no row left", ErrorKind::invalid_argument,
       [](CompactionRequest& r) { r.method = "truncate", r.of_whole_cache = true, r.ratio = 1000; }},
      {"bad solver option", ErrorKind::invalid_argument, [](CompactionRequest& r) { r.solve.holdout_every = 0; }},
      {"no conversation", ErrorKind::invalid_argument, [](CompactionRequest& r) { r.self_study.n_conversations = 0; }},
      {"endless questions", ErrorKind::invalid_argument, [](CompactionRequest& r) { r.self_study.max_question_tokens = 1 << 30; }},
      {"no memory for queries", ErrorKind::invalid_argument, [](CompactionRequest& r) { r.max_query_bytes = 0; }},
  };
  SequenceCache sequence = base_->fork();
  const std::string before = fingerprint(sequence);
  const int64_t bytes_used = engine_->block_pool().stats().bytes_used;
  for (const Case& c : cases) {
    CompactionRequest request = request_of("self_study");
    c.spoil(request);
    const auto report = compact_sequence(engine_->executor(), sequence, ids_, nullptr, request);
    ASSERT_FALSE(report.ok()) << c.what;
    EXPECT_EQ(report.error().kind, c.kind) << c.what << ": " << report.error().message;
    EXPECT_GT(report.error().message.size(), 20u) << c.what;
    EXPECT_TRUE(fingerprint(sequence) == before) << c.what;
  }
  EXPECT_EQ(engine_->block_pool().stats().bytes_used, bytes_used) << "blocks of study conversations must be given back";

  SequenceCache empty(engine_->block_pool());
  const auto nothing = compact_sequence(engine_->executor(), empty, {}, nullptr, request_of("select"));
  ASSERT_FALSE(nothing.ok());
  EXPECT_EQ(nothing.error().kind, ErrorKind::invalid_argument);
}

TEST_F(CompactSequence, CancelledAtAnyMomentChangesNothing) {
  const std::string before = fingerprint(*base_);
  for (const CompactionMethod* method : compaction::methods()) {
    SequenceCache sequence = base_->fork();
    std::atomic<bool> cancel{true};
    const auto at_once = compact_sequence(engine_->executor(), sequence, ids_, nullptr, request_of(method->name), &cancel);
    ASSERT_FALSE(at_once.ok()) << method->name;
    EXPECT_EQ(at_once.error().kind, ErrorKind::cancelled) << method->name;
    for (const double moment : {0.0, 0.6}) {
      cancel = false;
      const auto report = compact_sequence(engine_->executor(), sequence, ids_, nullptr, request_of(method->name), &cancel,
                                           [&](const char* stage, double fraction) {
                                             if (std::string(stage) == "solve" && fraction >= moment && fraction < 1) cancel = true;
                                           });
      ASSERT_FALSE(report.ok()) << method->name;
      EXPECT_EQ(report.error().kind, ErrorKind::cancelled) << method->name;
    }
    EXPECT_TRUE(fingerprint(sequence) == before) << method->name;
  }
}

TEST_F(CompactSequence, ASecondCompactionReducesAgain) {
  for (const CompactionMethod* method : compaction::methods()) {
    SCOPED_TRACE(method->name);
    SequenceCache sequence = base_->fork();
    const CompactionReport first = compact(sequence, request_of(method->name, 3));
    const CompactionReport second = compact(sequence, request_of(method->name, 3));
    EXPECT_EQ(second.rows_before, first.rows_after);
    EXPECT_LT(second.rows_after, 0.6 * first.rows_after);
    EXPECT_LT(second.bytes_after, first.bytes_after);
    EXPECT_EQ(sequence.n_compactions(), 2);
    EXPECT_EQ(sequence.next_pos().value, n());
    for_each_head([&](int32_t l, int32_t h) {
      for (const float bias : sequence.copy_head(l, h).bias) ASSERT_TRUE(std::isfinite(bias));
    });
  }
}

// A second compaction of a shorter region must not make the cut-back into the first one legal.
TEST_F(CompactSequence, CompactedEndNeverMovesBack) {
  SequenceCache sequence = base_->fork();
  compact(sequence, request_of("select"));
  const Pos end = sequence.compacted_end();
  EXPECT_GT(end.value, n() - 10);
  CompactionRequest request = request_of("select");
  request.n_live_suffix = 100;
  compact(sequence, request);
  EXPECT_EQ(sequence.compacted_end(), end);
  EXPECT_FALSE(sequence.truncate(Pos(n() - 50)).ok());
}

TEST_F(CompactSequence, ForksDoNotFeelEachOther) {
  const std::string original = fingerprint(*base_);
  SequenceCache sequence = base_->fork();
  compact(sequence, request_of("solver"));
  EXPECT_TRUE(fingerprint(*base_) == original);
  const std::string compacted = fingerprint(sequence);
  EXPECT_FALSE(compacted == original);
  SequenceCache fork = sequence.fork();
  ASSERT_TRUE(engine_->prefill(fork, question_ids(*engine_, document_->questions[0].text)).ok());
  EXPECT_TRUE(fingerprint(sequence) == compacted);
  const std::string longer = fingerprint(fork);
  compact(sequence, request_of("truncate"));
  EXPECT_TRUE(fingerprint(fork) == longer);
}

TEST_F(CompactSequence, TheMemoryIsReallyFreed) {
  SequenceCache own(engine_->block_pool());
  ASSERT_TRUE(engine_->prefill(own, ids_).ok());
  const int64_t before = engine_->block_pool().stats().bytes_used;
  const CompactionReport report = compact(own, request_of("select", 8));
  EXPECT_EQ(before - engine_->block_pool().stats().bytes_used, report.bytes_before - report.bytes_after);
  EXPECT_LT(report.bytes_after * 4, report.bytes_before);
}

TEST_F(CompactSequence, ABatchOfCompactedAndPlainIsEachAlone) {
  SequenceCache compacted = base_->fork();
  compact(compacted, request_of("solver"));
  const std::vector<int32_t> questions[2] = {question_ids(*engine_, document_->questions[0].text),
                                             question_ids(*engine_, document_->questions[1].text)};
  SequenceCache alone[2] = {compacted.fork(), base_->fork()};
  SequenceCache mixed[2] = {compacted.fork(), base_->fork()};
  std::vector<int32_t> ids, logit_rows;
  std::vector<Pos> pos;
  std::vector<SequenceCache*> sequences;
  Mat<float> expected[2];
  for (int i = 0; i < 2; ++i) {
    expected[i] = engine_->prefill(alone[i], questions[i]).value();
    for (size_t t = 0; t < questions[i].size(); ++t) {
      ids.push_back(questions[i][t]);
      pos.push_back(mixed[i].next_pos() + static_cast<int64_t>(t));
      sequences.push_back(&mixed[i]);
    }
    logit_rows.push_back(static_cast<int32_t>(ids.size()) - 1);
  }
  Mat<float> logits(2, engine_->model().info().n_vocab);
  ASSERT_TRUE(engine_->forward({ids, pos, sequences, logit_rows}, logits.view()).ok());
  for (int i = 0; i < 2; ++i) {
    EXPECT_TRUE(std::equal(expected[i].data.begin(), expected[i].data.end(), logits.row(i))) << i;
    EXPECT_TRUE(fingerprint(alone[i]) == fingerprint(mixed[i])) << i;
  }
}

TEST_F(CompactSequence, DoesNotDependOnTheNumberOfThreads) {
  std::vector<std::string> prints[2];
  for (const int n_threads : {1, 2}) {
    const auto engine = open_scribe({.n_ctx = 1024, .n_threads = n_threads});
    for (const char* method : {"solver", "self_study", "streaming"}) {
      SequenceCache sequence(engine->block_pool());
      ASSERT_TRUE(engine->prefill(sequence, ids_).ok());
      CompactionRequest request = request_of(method);
      request.self_study.n_conversations = 8;
      ASSERT_TRUE(compact_sequence(engine->executor(), sequence, ids_, nullptr, request).ok());
      prints[n_threads - 1].push_back(fingerprint(sequence));
    }
  }
  for (size_t i = 0; i < prints[0].size(); ++i) EXPECT_TRUE(prints[0][i] == prints[1][i]) << i;
}

TEST_F(CompactSequence, QuantisedCachesCompact) {
  const auto engine = open_scribe({.n_ctx = 1024, .type_k = DType::q8_0, .type_v = DType::q4_0});
  SequenceCache sequence(engine->block_pool());
  ASSERT_TRUE(engine->prefill(sequence, ids_).ok());
  CompactionRequest request = request_of("solver");
  request.reread_fraction = 1;
  const auto report = compact_sequence(engine->executor(), sequence, ids_, nullptr, request);
  ASSERT_TRUE(report.ok()) << report.error().message;
  EXPECT_LE(report->heldout_fitted, report->heldout_plain);
  EXPECT_EQ(ask(*engine, sequence, document_->questions[0].text), document_->questions[0].answer);
}

TEST_F(CompactSequence, TheFitHelpsOnQueriesThatItDidNotSee) {
  for (const char* method : {"solver", "self_study"}) {
    SequenceCache sequence = base_->fork();
    CompactionRequest request = request_of(method, 8);
    request.reread_fraction = 1;
    const CompactionReport report = compact(sequence, request);
    EXPECT_LE(report.heldout_fitted, report.heldout_plain) << method;
    EXPECT_GT(report.heldout_plain, 0) << method;
    EXPECT_LT(report.fallback_heads, 0.9) << method << ": hardly any fit was accepted";
    EXPECT_GT(report.n_queries, 100) << method;
  }
}

// One fact early in the document and one late: forgetting the start finds the late one, and only that.
TEST_F(CompactSequence, FactsSurviveWhereTruncationForgets) {
  const Question& early = document_->questions[0];  // a seventh into the document
  const Question& late = document_->questions[1];   // six sevenths
  ASSERT_EQ(ask(*engine_, *base_, early.text), early.answer);
  ASSERT_EQ(ask(*engine_, *base_, late.text), late.answer);
  SequenceCache studied = base_->fork(), truncated = base_->fork();
  CompactionRequest request = request_of("self_study");
  request.of_whole_cache = true;
  request.self_study.n_conversations = 64;
  compact(studied, request);
  EXPECT_EQ(ask(*engine_, studied, early.text), early.answer);
  EXPECT_EQ(ask(*engine_, studied, late.text), late.answer);
  request.method = "truncate";
  compact(truncated, request);
  EXPECT_NE(ask(*engine_, truncated, early.text), early.answer);
  EXPECT_EQ(ask(*engine_, truncated, late.text), late.answer);
}

TEST_F(CompactSequence, CapturedQueriesAreUsedOrReplacedOpenly) {
  SequenceCache a = base_->fork(), b = base_->fork();
  CompactionRequest request = request_of("select");
  request.queries = compaction::QuerySource::prefill;
  EXPECT_EQ(compact(a, request).queries, compaction::QuerySource::prefill);
  const auto report = compact_sequence(engine_->executor(), b, ids_, nullptr, request);
  ASSERT_TRUE(report.ok());
  EXPECT_EQ(report->queries, compaction::QuerySource::prefill);  // the text was read again
  EXPECT_GT(report->capture_seconds, 0);
  // Its early rows no longer stand for single tokens: they can only be repeated.
  request.ratio = 2;
  const auto again = compact_sequence(engine_->executor(), b, ids_, nullptr, request);
  ASSERT_TRUE(again.ok());
  EXPECT_EQ(again->queries, compaction::QuerySource::repeat_prefill);
}

TEST_F(CompactSequence, QueriesServeSeveralRatios) {
  const CompactionRequest request = request_of("self_study");
  const auto queries = gather_reference_queries(engine_->executor(), *base_, ids_, nullptr, request);
  ASSERT_TRUE(queries.ok());
  SequenceCache from_queries = base_->fork(), at_once = base_->fork(), smaller = base_->fork();
  ASSERT_TRUE(compact_sequence(engine_->executor(), from_queries, *queries, request).ok());
  ASSERT_TRUE(compact_sequence(engine_->executor(), at_once, ids_, nullptr, request).ok());
  EXPECT_TRUE(fingerprint(from_queries) == fingerprint(at_once));
  ASSERT_TRUE(compact_sequence(engine_->executor(), smaller, *queries, request_of("self_study", 16)).ok());
  EXPECT_LT(smaller.usage().n_rows * 2, from_queries.usage().n_rows);
}

// The compacted cache is built beside the other; where there is no room for both, in its place.
TEST_F(CompactSequence, AFullPoolChangesNothingInTheResult) {
  for (const auto& [method, ratio] : {std::pair{"streaming", 1.3}, std::pair{"select", 1.3}, std::pair{"solver", 4.0}}) {
    SCOPED_TRACE(method);
    CompactionRequest request = request_of(method, ratio);
    request.queries = compaction::QuerySource::prefill;
    request.validates = false;
    SequenceCache roomy = base_->fork();
    compact(roomy, request);
    const auto engine = open_scribe({.n_ctx = 2048});
    SequenceCache sequence(engine->block_pool());
    ASSERT_TRUE(engine->prefill(sequence, ids_).ok());
    const PoolFiller filler(engine->block_pool(), 0);
    ASSERT_EQ(engine->block_pool().n_available(0), 0);
    const auto report = compact_sequence(engine->executor(), sequence, ids_, capture_, request);
    ASSERT_TRUE(report.ok()) << report.error().message;
    EXPECT_TRUE(fingerprint(sequence) == fingerprint(roomy));
    EXPECT_GT(engine->block_pool().n_available(0), 0) << "memory came back";
  }
}

}  // namespace
}  // namespace sh::engine
