// SPDX-License-Identifier: MIT
// Compacting what was compacted before: rows stand for more and more text, and what must stay stays.
#include <algorithm>
#include <cmath>
#include <limits>

#include "engine/region_plan.h"
#include "engine/scheduler_bench.h"
#include "engine/scribe_document.h"

namespace sh::engine {
namespace {

using kv::HeadRows;
using kv::Pos;
using kv::SequenceCache;

class RepeatedCompaction : public ScribeDocument {
 protected:
  /// rms over queries of log(mass of the compacted rows / mass of all rows of the text), of one head.
  static double log_mass_error(const SequenceCache& sequence, const HeadPlan& plan, const CacheProblems& full) {
    compaction::HeadStorage storage;
    const auto head = static_cast<int64_t>(plan.layer) * 2 + plan.head;
    const compaction::HeadProblem problem = full.load(head, storage);
    const auto kept = sequence.decode_head(engine_->kernels(), plan.layer, plan.head);
    double sum = 0;
    for (int64_t q = 0; q < problem.queries.rows; ++q) {
      double before = 0, after = 0;
      const auto add = [&](double& mass, const float* key, double bias) {
        double score = 0;
        for (int64_t c = 0; c < problem.keys.cols; ++c)
          score += static_cast<double>(problem.queries.row(q)[c]) * static_cast<double>(key[c]);
        mass += std::exp(static_cast<double>(problem.scale) * score + bias);
      };
      for (int64_t row = 0; row < problem.keys.rows; ++row) add(before, problem.keys.row(row), 0);
      for (int64_t row = 0; row < kept.keys.rows; ++row) {
        const Pos pos = kept.pos[static_cast<size_t>(row)];
        if (pos >= Pos(4) && pos < Pos(n() - 4))
          add(after, kept.keys.row(row), static_cast<double>(kept.bias[static_cast<size_t>(row)]));
      }
      sum += std::pow(std::log(after / before), 2);
    }
    return std::sqrt(sum / static_cast<double>(problem.queries.rows));
  }
};

// The second compaction begins from rows that stand for many others. What it keeps must still weigh what the whole
// text weighed, not what the rows of the first would weigh as single tokens.
TEST_F(RepeatedCompaction, TheMassOfTheTextIsPreserved) {
  CompactionRequest request = request_of("self_study", 3);
  const auto queries = gather_reference_queries(engine_->executor(), *base_, ids_, nullptr, request);
  ASSERT_TRUE(queries.ok());
  const Region region = plan_region(*base_, method_of(request).value(), request).value();
  const std::vector<HeadPlan> plans = plan_heads(*base_, region, false);
  const CacheProblems full(*engine_, *base_, plans, queries->sets, false);

  SequenceCache twice = base_->fork();
  const CompactionReport first = compact(twice, request);
  SequenceCache once = twice.fork();
  const CompactionReport second = compact(twice, request);
  EXPECT_EQ(second.rows_before, first.rows_after);
  EXPECT_LT(twice.usage().n_rows * 2, once.usage().n_rows);

  SequenceCache direct = base_->fork();
  CompactionRequest to_the_same_size = request;
  to_the_same_size.target_rows = (twice.usage().n_rows - 10 * 8) / 10;
  const CompactionReport at_once = compact(direct, to_the_same_size);

  // The same rows without their biases.
  SequenceCache unbiased = twice.fork();
  std::vector<std::vector<HeadRows>> rows(5);
  for_each_head([&](int32_t l, int32_t h) {
    rows[static_cast<size_t>(l)].push_back(twice.copy_head(l, h));
    std::fill(rows[static_cast<size_t>(l)].back().bias.begin(), rows[static_cast<size_t>(l)].back().bias.end(),
              0.0f);
  });
  ASSERT_TRUE(unbiased.replace(rows, twice.compacted_end()).ok());
  double error = 0, error_unbiased = 0, error_direct = 0;
  for (const HeadPlan& plan : plans) {
    if (first.heads[static_cast<size_t>(plan.layer * 2 + plan.head)].n_kept == 0 ||
        second.heads[static_cast<size_t>(plan.layer * 2 + plan.head)].n_kept == 0 ||
        at_once.heads[static_cast<size_t>(plan.layer * 2 + plan.head)].n_kept == 0)
      continue;
    error += log_mass_error(twice, plan, full);
    error_unbiased += log_mass_error(unbiased, plan, full);
    error_direct += log_mass_error(direct, plan, full);
  }
  EXPECT_LT(error, error_unbiased);
  // Twice loses little more of it than once to the same size (1.66 times as much here).
  EXPECT_EQ(direct.usage().n_rows / 10, twice.usage().n_rows / 10);
  EXPECT_LT(error, 2 * error_direct);
}

// H2: rows before p0 are not the compaction's, the first time and again.
TEST_F(RepeatedCompaction, RowsBeforeThePrefixAndBehindTheSuffixStayBitForBit) {
  SequenceCache sequence = base_->fork();
  CompactionRequest request = request_of("self_study", 3);
  request.n_protected_prefix = 57;
  request.n_live_suffix = 33;
  request.pinned = {{150, 170}};
  for (int round = 0; round < 3; ++round) {
    compact(sequence, request);
    for_each_head([&](int32_t l, int32_t h) {
      const HeadRows before = base_->copy_head(l, h), after = sequence.copy_head(l, h);
      size_t n_stay = 0;
      for (size_t i = 0; i < after.pos.size(); ++i) {
        const int32_t pos = after.pos[i].value;
        if (pos >= 57 && pos < n() - 33 && !(pos >= 150 && pos < 170)) continue;
        ++n_stay;
        ASSERT_EQ(row_bytes_of(after, i), row_bytes_of(before, static_cast<size_t>(pos))) << "round " << round;
      }
      EXPECT_EQ(n_stay, 57u + 33u + 20u);
    });
  }
}

// What a report calls verbatim is, although all heads happened to keep a token when it was condensed before.
TEST_F(RepeatedCompaction, WhatIsSaidToBeKeptVerbatimIs) {
  SequenceCache sequence = base_->fork();
  CompactionRequest even = request_of("self_study", 1.2);
  even.budget = compaction::BudgetPolicy::uniform;
  const CompactionReport first = compact(sequence, even);
  ASSERT_EQ(first.kept_verbatim.size(), 2u) << "sinks and the newest";
  CompactionRequest request = request_of("self_study", 2);
  request.n_protected_prefix = 200;
  const CompactionReport second = compact(sequence, request);
  std::vector<int> n_heads(200, 0);  // that kept a token of the prefix when it was condensed
  int n_moved = 0;
  for_each_head([&](int32_t l, int32_t h) {
    const HeadRows rows = sequence.copy_head(l, h);
    for (size_t i = 0; i < rows.pos.size() && rows.pos[i] < Pos(200); ++i) {
      ++n_heads[static_cast<size_t>(rows.pos[i].value)];
      n_moved += rows.bias[i] != 0.0f;
    }
  });
  ASSERT_GT(std::count(n_heads.begin() + 4, n_heads.end(), 10), 10) << "no token could be mistaken";
  ASSERT_GT(n_moved, 100);
  ASSERT_FALSE(second.kept_verbatim.empty());
  EXPECT_EQ(second.kept_verbatim.front().begin, 0);
  EXPECT_EQ(second.kept_verbatim.back().end, n());
  for (const Span& span : second.kept_verbatim)
    for_each_head([&](int32_t l, int32_t h) {
      const HeadRows before = base_->copy_head(l, h), after = sequence.copy_head(l, h);
      for (int64_t pos = span.begin; pos < span.end; ++pos) {
        const auto at = std::find(after.pos.begin(), after.pos.end(), Pos(pos));
        ASSERT_TRUE(at != after.pos.end()) << pos;
        ASSERT_EQ(row_bytes_of(after, static_cast<size_t>(at - after.pos.begin())),
                  row_bytes_of(before, static_cast<size_t>(pos)))
            << "layer " << l << " head " << h << " pos " << pos;
      }
    });
}

// New text comes after each compaction and is compacted together with what is left of the old.
TEST_F(RepeatedCompaction, OldAndNewRowsAreCompactedTogether) {
  SequenceCache sequence = base_->fork();
  std::vector<int32_t> tokens = ids_;
  CompactionRequest request = request_of("self_study", 3);
  const std::vector<int32_t> more(ids_.begin() + 10, ids_.begin() + 130);
  for (int round = 0; round < 3; ++round) {
    const auto report = compact_sequence(engine_->executor(), sequence, tokens, nullptr, request);
    ASSERT_TRUE(report.ok()) << report.error().message;
    EXPECT_EQ(report->n_logical, std::ssize(tokens));
    EXPECT_EQ(sequence.n_compactions(), round + 1);
    EXPECT_LT(report->rows_after, 0.6 * report->rows_before) << "H1: a compaction that does nothing";
    ASSERT_TRUE(engine_->prefill(sequence, more).ok());
    tokens = joined(tokens, more);
    EXPECT_EQ(sequence.next_pos().value, std::ssize(tokens));
  }
  EXPECT_EQ(ask(*engine_, sequence, document_->questions[0].text), document_->questions[0].answer);
}

// Trap 14: budgets that are smaller than the heads are many, up to nothing at all.
TEST_F(RepeatedCompaction, EveryRatioIsAnsweredOrRefusedWithAReason) {
  int n_answered = 0, n_refused = 0;
  for (const bool of_whole_cache : {false, true})
    for (double ratio = 1; ratio <= 1000; ratio *= 1.9) {
      SequenceCache sequence = base_->fork();
      CompactionRequest request = request_of("solver", ratio);
      request.of_whole_cache = of_whole_cache;
      request.validates = false;
      const std::string before = fingerprint(sequence);
      const auto report = compact_sequence(engine_->executor(), sequence, ids_, capture_, request);
      if (!report.ok()) {
        ++n_refused;
        EXPECT_EQ(report.error().kind, ErrorKind::invalid_argument) << ratio;
        EXPECT_NE(report.error().message.find("blocks"), std::string::npos) << report.error().message;
        EXPECT_TRUE(fingerprint(sequence) == before) << ratio;
        continue;
      }
      ++n_answered;
      if (of_whole_cache) {
        EXPECT_LE(static_cast<double>(report->bytes_after) * ratio, static_cast<double>(report->bytes_before))
            << ratio;
      } else {
        // At least two rows a head stay, on average.
        const auto n_region = static_cast<double>(report->n_region);
        EXPECT_DOUBLE_EQ(report->region_ratio, n_region / std::max(2.0, std::ceil(n_region / ratio))) << ratio;
      }
      const Mat<float> logits =
          engine_->prefill(sequence, question_ids(*engine_, document_->questions[0].text)).value();
      for (const float value : logits.data) ASSERT_TRUE(std::isfinite(value)) << ratio;
    }
  EXPECT_GT(n_answered, 15);
  EXPECT_GT(n_refused, 0) << "sinks and recent rows alone are more than a thousandth";
}

// ---- through the scheduler ----

// Trap 2: after every compaction a turn reads what is new, and nothing else.
TEST(RepeatedCompactionOfASlot, TheNextTurnReadsOnlyItsOwnTokens) {
  Bench bench({.n_ctx = 4096, .n_parallel = 1});
  bench.read(bench.ids, 0);
  std::vector<int32_t> tokens = bench.ids;
  for (int round = 0; round < 3; ++round) {
    const auto report = bench.compact(small_request("select", 2));
    ASSERT_TRUE(report.ok()) << report.error().message;
    EXPECT_EQ(report->n_logical, std::ssize(tokens));
    const std::vector<int32_t> turn =
        question_ids(*bench.engine, bench.document.questions[static_cast<size_t>(round)].text);
    GenerationEvent last;
    const std::vector<int32_t> prompt = joined(tokens, turn);
    const std::vector<int32_t> answer = bench.run(bench.greedy(prompt), &last);
    EXPECT_EQ(last.timings.prompt_n, std::ssize(turn)) << "round " << round;
    EXPECT_EQ(last.timings.cache_n, std::ssize(tokens)) << "round " << round;
    tokens = Bench::conversation(prompt, answer);
    EXPECT_EQ(bench.scheduler->slots()[0].usage.n_compactions, round + 1);
  }
}

TEST(RepeatedCompactionOfASlot, SlotsThatDoNotExistAreRefused) {
  Bench bench({.n_ctx = 1024, .n_parallel = 2});
  bench.read(bench.ids, 0);
  for (const int32_t id : {-1, 2, 3, std::numeric_limits<int32_t>::max(), std::numeric_limits<int32_t>::min()}) {
    const auto report = bench.compact(small_request("select"), id);
    ASSERT_FALSE(report.ok()) << id;
    EXPECT_EQ(report.error().kind, ErrorKind::invalid_argument) << id;
    EXPECT_NE(report.error().message.find("slot"), std::string::npos) << report.error().message;
  }
  EXPECT_EQ(bench.scheduler->slots()[0].usage.n_compactions, 0);
  ASSERT_TRUE(bench.compact(small_request("select"), 0).ok()) << "the first";
  bench.read(bench.ids, 1);
  EXPECT_TRUE(bench.compact(small_request("select"), 1).ok()) << "and the last";
}

}  // namespace
}  // namespace sh::engine
