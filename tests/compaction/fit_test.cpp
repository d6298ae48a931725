// SPDX-License-Identifier: MIT
#include "compaction/fit.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <iterator>
#include <numeric>

#include "compaction/problem_source.h"
#include "compaction/region.h"
#include "compaction/score.h"
#include "compaction/targets.h"
#include "synthetic.h"

namespace sh::compaction {
namespace {

using testing::clustered_head;
using testing::Head;
using testing::kernel_set;
using testing::mean_of;
using testing::oracle_errors;
using testing::worst_of;

std::vector<float> scores_of(const Head& head, RowScore score = RowScore::rms) {
  return score_rows(head.problem(), testing::scoring(score, Weighting::attention_share), {}, kernel_set());
}

CompactHead fit_best(const Head& head, int64_t n_kept, Fit fit, const SolveOptions& options = {}) {
  const auto scores = scores_of(head);
  return fit_head(head.problem(), top_rows(scores, n_kept), scores, fit, options, kernel_set());
}

bool is_finite(const CompactHead& compact) {
  const auto finite = [](float x) { return std::isfinite(x); };
  const FitReport& r = compact.report;
  return std::all_of(compact.bias.begin(), compact.bias.end(), finite) &&
         std::all_of(compact.values.data.begin(), compact.values.data.end(), finite) &&
         std::isfinite(r.heldout_plain) && std::isfinite(r.heldout_fitted) &&
         std::isfinite(r.heldout_plain_worst) && std::isfinite(r.heldout_fitted_worst) &&
         std::isfinite(r.log_mass_plain) && std::isfinite(r.log_mass_fitted);
}

// Few distinct keys, each a known number of times; every copy has a value of its own.
struct Repeated {
  Head head;
  std::vector<int32_t> first_rows;
  std::vector<int> counts;
  Mat<float> mean_values;
};
Repeated repeated_head(uint64_t seed, bool copies_share_a_value = false) {
  const int64_t n_queries = 1500;
  Rng rng(seed);
  Repeated r;
  const int64_t n_distinct = 12, d = 32;
  const Mat<float> keys = testing::random_mat(rng, n_distinct, d);
  std::vector<std::vector<float>> key_rows;
  for (int64_t k = 0; k < n_distinct; ++k) {
    r.counts.push_back(static_cast<int>(1 + (k * 5) % 14));
    r.first_rows.push_back(static_cast<int32_t>(key_rows.size()));
    for (int copy = 0; copy < r.counts.back(); ++copy) key_rows.emplace_back(keys.row(k), keys.row(k) + d);
  }
  const int64_t n_rows = static_cast<int64_t>(key_rows.size());
  r.head.keys = Mat<float>(n_rows, d);
  for (int64_t row = 0; row < n_rows; ++row)
    std::copy(key_rows[static_cast<size_t>(row)].begin(), key_rows[static_cast<size_t>(row)].end(),
              r.head.keys.row(row));
  r.head.values = testing::random_mat(rng, n_rows, d);
  if (copies_share_a_value)
    for (int64_t k = 0; k < n_distinct; ++k)
      for (int copy = 1; copy < r.counts[static_cast<size_t>(k)]; ++copy)
        std::copy_n(r.head.values.row(r.first_rows[static_cast<size_t>(k)]), d,
                    r.head.values.row(r.first_rows[static_cast<size_t>(k)] + copy));
  r.mean_values = Mat<float>(n_distinct, d);
  for (int64_t k = 0; k < n_distinct; ++k)
    for (int copy = 0; copy < r.counts[static_cast<size_t>(k)]; ++copy)
      for (int64_t c = 0; c < d; ++c)
        r.mean_values(k, c) += r.head.values(r.first_rows[static_cast<size_t>(k)] + copy, c) /
                               static_cast<float>(r.counts[static_cast<size_t>(k)]);
  r.head.scale = 1.0f / std::sqrt(32.0f);
  r.head.queries = testing::random_mat(rng, n_queries, d, 2.0);
  for (int64_t row = 0; row < n_rows; ++row) r.head.pos.push_back(static_cast<int32_t>(row));
  for (int64_t q = 0; q < n_queries; ++q) {
    r.head.query_pos.push_back(static_cast<int32_t>(n_rows + q));
    r.head.live_shift.push_back(static_cast<float>(1.0 + rng.next_normal()));
  }
  r.head.live_keys = testing::random_mat(rng, 20, d);
  r.head.live_values = testing::random_mat(rng, 20, d);
  testing::finish(r.head);
  return r;
}

TEST(Fit, RepeatedKeysCollapseToTheirCountsAndMeans) {
  const Repeated r = repeated_head(21);
  const auto scores = scores_of(r.head);
  const CompactHead compact = fit_head(r.head.problem(), r.first_rows, scores, Fit::both, {}, kernel_set());
  ASSERT_TRUE(compact.report.is_fit_accepted);
  for (size_t k = 0; k < r.counts.size(); ++k) {
    // The weakest shrinkage tried is 1e-5 of the mean eigenvalue; the smallest is about a hundredth of the mean,
    // so 1e-3 relative is left.
    EXPECT_NEAR(std::exp(compact.bias[k]), r.counts[k], 2e-3 * r.counts[k]);
    for (int64_t c = 0; c < 32; ++c)
      EXPECT_NEAR(compact.values(static_cast<int64_t>(k), c), r.mean_values(static_cast<int64_t>(k), c), 5e-3);
  }
  // And so for every query, also next to other live rows.
  const Head fresh = with_queries(r.head, repeated_head(22).head);
  EXPECT_LT(worst_of(oracle_errors(fresh, compact)), 5e-3);
  EXPECT_GT(worst_of(oracle_errors(fresh,
                                   fit_head(r.head.problem(), r.first_rows, scores, Fit::none, {}, kernel_set()))),
            0.3);
}

TEST(Fit, KeepingEverythingIsExact) {
  Head head = clustered_head(1, 64, 200);
  for (int64_t row = 0; row < 64; ++row) head.bias.push_back(0.01f * static_cast<float>(row));
  testing::finish(head);
  const CompactHead compact = fit_best(head, 64, Fit::both);
  EXPECT_EQ(compact.bias, head.bias);
  EXPECT_EQ(compact.values.rows, 0);
  EXPECT_EQ(compact.source_rows.size(), 64u);
  EXPECT_EQ(compact.report.heldout_fitted, 0);
  EXPECT_LT(worst_of(oracle_errors(head, compact)), 1e-12);
}

TEST(Fit, AddingOneVectorToEveryKeyChangesNothing) {
  const Head head = clustered_head(2, 200, 1000, 32);
  Head shifted = head;
  Rng rng(8);
  const Mat<float> vector = testing::random_mat(rng, 1, 32);
  for (int64_t row = 0; row < 200; ++row)
    for (int64_t c = 0; c < 32; ++c) shifted.keys(row, c) += vector(0, c);
  for (int64_t row = 0; row < 64; ++row)
    for (int64_t c = 0; c < 32; ++c) shifted.live_keys(row, c) += vector(0, c);
  testing::finish(shifted);
  const auto scores = scores_of(head);
  const auto rows = top_rows(scores, 40);
  const CompactHead a = fit_head(head.problem(), rows, scores, Fit::both, {}, kernel_set());
  const CompactHead b = fit_head(shifted.problem(), rows, scores, Fit::both, {}, kernel_set());
  ASSERT_TRUE(a.report.is_fit_accepted);
  ASSERT_TRUE(b.report.is_fit_accepted);
  ASSERT_EQ(a.report.value_ridge, b.report.value_ridge);
  // f32 scores of other size: relative errors of shares near 1e-6, amplified by the condition of the ridged
  // system.
  for (size_t j = 0; j < rows.size(); ++j) EXPECT_NEAR(a.bias[j], b.bias[j], 5e-3);
  for (size_t i = 0; i < a.values.data.size(); ++i) EXPECT_NEAR(a.values.data[i], b.values.data[i], 5e-3);
}

TEST(Fit, AConstantShiftOfAllScoresChangesNothing) {
  const Head head = clustered_head(3, 200, 1000, 32);
  Head shifted = head;
  shifted.bias.assign(200, 16.0f);
  for (float& lse : shifted.lse) lse += 16.0f;
  const auto scores = scores_of(head);
  const auto rows = top_rows(scores, 40);
  const CompactHead a = fit_head(head.problem(), rows, scores, Fit::both, {}, kernel_set());
  const CompactHead b = fit_head(shifted.problem(), rows, scores, Fit::both, {}, kernel_set());
  ASSERT_TRUE(a.report.is_fit_accepted);
  for (size_t j = 0; j < rows.size(); ++j) EXPECT_NEAR(a.bias[j] + 16.0f, b.bias[j], 5e-3);
  for (size_t i = 0; i < a.values.data.size(); ++i) EXPECT_NEAR(a.values.data[i], b.values.data[i], 5e-3);
}

TEST(Fit, PermutingRowsPermutesTheAnswer) {
  const Head head = clustered_head(4, 150, 1000, 32);
  Head permuted = head;
  const auto place = [](int64_t row) { return row * 77 % 150; };  // 77 and 150 share no factor
  for (int64_t row = 0; row < 150; ++row) {
    std::copy_n(head.keys.row(row), 32, permuted.keys.row(place(row)));
    std::copy_n(head.values.row(row), 32, permuted.values.row(place(row)));
  }
  const CompactHead a = fit_best(head, 30, Fit::both), b = fit_best(permuted, 30, Fit::both);
  ASSERT_TRUE(a.report.is_fit_accepted);
  for (size_t j = 0; j < a.source_rows.size(); ++j) {
    const auto found =
        std::find(b.source_rows.begin(), b.source_rows.end(), static_cast<int32_t>(place(a.source_rows[j])));
    ASSERT_NE(found, b.source_rows.end());
    const auto k = found - b.source_rows.begin();
    EXPECT_NEAR(a.bias[j], b.bias[static_cast<size_t>(k)], 5e-3);
    for (int64_t c = 0; c < 32; ++c) EXPECT_NEAR(a.values(static_cast<int64_t>(j), c), b.values(k, c), 5e-3);
  }
}

// The head with the queries that a fit holds out, and no others.
Head heldout_part(const Head& head) {
  std::vector<int64_t> all(static_cast<size_t>(head.queries.rows));
  std::iota(all.begin(), all.end(), int64_t{0});
  const QuerySplit split = split_queries(all, SolveOptions{}.holdout_every);
  Head part = head;
  part.queries = Mat<float>(static_cast<int64_t>(all.size()) - split.n_fit, head.queries.cols);
  part.query_pos.clear();
  part.live_shift.clear();
  for (int64_t i = 0; i < part.queries.rows; ++i) {
    const int64_t query = split.queries[static_cast<size_t>(split.n_fit + i)];
    std::copy_n(head.queries.row(query), head.queries.cols, part.queries.row(i));
    part.query_pos.push_back(head.query_pos[static_cast<size_t>(query)]);
    part.live_shift.push_back(head.live_shift[static_cast<size_t>(query)]);
  }
  testing::finish(part);
  return part;
}

TEST(Fit, ReportedErrorsAreThoseOfWhatIsReturned) {
  const Head head = clustered_head(5, 256, 1200), heldout = heldout_part(head);
  for (const Fit fit : {Fit::none, Fit::biases, Fit::values, Fit::both}) {
    SolveOptions options;
    options.max_report_queries_per_head = 1000;
    const CompactHead compact = fit_best(head, 50, fit, options), plain = fit_best(head, 50, Fit::none);
    const auto fitted_errors = oracle_errors(heldout, compact), plain_errors = oracle_errors(heldout, plain);
    const FitReport& report = compact.report;
    // f32 sums of some hundred terms.
    EXPECT_NEAR(report.heldout_fitted, mean_of(fitted_errors), 1e-4 * mean_of(fitted_errors));
    EXPECT_NEAR(report.heldout_plain, mean_of(plain_errors), 1e-4 * mean_of(plain_errors));
    EXPECT_NEAR(report.heldout_fitted_worst, worst_of(fitted_errors), 1e-4 * worst_of(fitted_errors));
    EXPECT_NEAR(report.heldout_plain_worst, worst_of(plain_errors), 1e-4 * worst_of(plain_errors));
    EXPECT_EQ(report.n_heldout_queries, 240);
    EXPECT_EQ(report.n_fit_queries, fit == Fit::none ? 0 : 960);
    for (size_t i = 0; i < plain_errors.size(); ++i)
      EXPECT_LE(std::min(fitted_errors[i], 1.0) - plain_errors[i], report.worst_regret + 1e-4);
  }
}

TEST(Fit, WhatTheScorePassLeavesGivesTheSameFit) {
  Head head = clustered_head(13, 256, 300);
  head.keys(7, 0) = std::nanf("");
  head.queries(4, 1) = INFINITY;
  const HeadProblem problem = head.problem();
  const CompactionMethod method = testing::scoring(RowScore::max, Weighting::attention_share);
  for (const Fit fit : {Fit::none, Fit::both}) {
    RegionSummary region;
    region.queries = queries_of_fit(problem, fit, {}).queries;
    std::sort(region.queries.begin(), region.queries.end());
    EXPECT_EQ(region.queries.size(), fit == Fit::none ? 16u : 299u);
    const auto scores = score_rows(problem, method, {}, kernel_set(), &region);
    EXPECT_EQ(scores, score_rows(problem, method, {}, kernel_set()));
    const auto rows = top_rows(scores, 40);
    HeadStorage storage;
    const CompactHead of_kept =
        fit_kept_rows(gather_rows(problem, rows, storage), rows, scores, region, fit, {}, kernel_set());
    const CompactHead of_all = fit_head(problem, rows, scores, fit, {}, kernel_set());
    EXPECT_EQ(of_kept.bias, of_all.bias);
    EXPECT_EQ(of_kept.values.data, of_all.values.data);
    EXPECT_EQ(of_kept.report.heldout_fitted, of_all.report.heldout_fitted);
    EXPECT_EQ(of_kept.report.is_fit_accepted, fit == Fit::both);
    EXPECT_TRUE(of_kept.report.had_nonfinite_input);
  }
}

TEST(Fit, TheLimitsOfAcceptanceAreHonoured) {
  const Head head = clustered_head(12, 256, 1200);
  SolveOptions loose, strict, never;
  loose.accept_max_regret = loose.accept_worst_factor = 100;
  strict.accept_max_regret = 0.1f;
  never.accept_worst_factor = 1e-3f;
  const FitReport all = fit_best(head, 40, Fit::both, loose).report,
                  some = fit_best(head, 40, Fit::both, strict).report;
  ASSERT_TRUE(all.is_fit_accepted);
  EXPECT_GT(all.worst_regret, 0.1);
  EXPECT_LE(some.worst_regret, 0.1);
  EXPECT_LE(all.heldout_fitted, some.heldout_fitted);
  EXPECT_LE(some.heldout_fitted_worst, 1.05 * some.heldout_plain_worst);
  const CompactHead refused = fit_best(head, 40, Fit::both, never);
  EXPECT_FALSE(refused.report.is_fit_accepted);
  EXPECT_EQ(refused.values.rows, 0);
  EXPECT_EQ(refused.report.heldout_fitted, refused.report.heldout_plain);
}

TEST(Fit, MixedOutputIsTheOracle) {
  Head head = clustered_head(6, 60, 40, 16);
  for (size_t q = 0; q < head.query_pos.size(); ++q) head.query_pos[q] = static_cast<int32_t>(30 + q);
  testing::finish(head);
  const std::vector<int32_t> rows = {3, 17, 18, 40, 59};
  const std::vector<float> bias = {0, 1, -1, 2, 0.5f};
  std::vector<int32_t> pos;
  for (const int32_t row : rows) pos.push_back(head.pos[static_cast<size_t>(row)]);
  const Mat<float> keys = testing::gather_rows(head.keys, rows), values = testing::gather_rows(head.values, rows);
  const Mat<float> mixed = mixed_output(head.problem(), keys.view(), bias, values.view(), pos);
  for (int64_t q = 0; q < 40; ++q) {
    int64_t n_seen = 0;
    while (n_seen < 5 && pos[static_cast<size_t>(n_seen)] <= head.query_pos[static_cast<size_t>(q)]) ++n_seen;
    const auto expected = testing::merge(
        testing::attend(head.queries.row(q), keys.view(), bias, values.view(), head.scale, 0, n_seen),
        testing::attend_live(head, q));
    // lse and out are f32: 1e-6, divided by the rest's share where that is small.
    for (int64_t c = 0; c < 16; ++c) EXPECT_NEAR(mixed(q, c), expected.out[static_cast<size_t>(c)], 1e-4);
  }
}

TEST(Fit, EveryKindOfFitChangesWhatItShould) {
  const Repeated r = repeated_head(31);
  const auto scores = scores_of(r.head);
  const auto fit = [&](Fit kind) {
    return fit_head(r.head.problem(), r.first_rows, scores, kind, {}, kernel_set());
  };
  const CompactHead none = fit(Fit::none), values = fit(Fit::values), both = fit(Fit::both);
  // Biases alone multiply the value of one copy: of use only where the copies agree.
  const Repeated agreeing = repeated_head(31, true);
  const CompactHead biases =
      fit_head(agreeing.head.problem(), agreeing.first_rows, scores, Fit::biases, {}, kernel_set());
  const auto has_bias = [](const CompactHead& c) {
    return std::any_of(c.bias.begin(), c.bias.end(), [](float b) { return b != 0; });
  };
  EXPECT_FALSE(has_bias(none));
  EXPECT_EQ(none.values.rows, 0);
  EXPECT_TRUE(has_bias(biases));
  EXPECT_EQ(biases.values.rows, 0);
  EXPECT_FALSE(has_bias(values));
  EXPECT_EQ(values.values.rows, 12);
  EXPECT_TRUE(has_bias(both));
  EXPECT_EQ(both.values.rows, 12);
  EXPECT_LT(biases.report.log_mass_fitted, 0.1 * biases.report.log_mass_plain);
  EXPECT_EQ(values.report.log_mass_fitted, values.report.log_mass_plain);
  // Rows that were dropped took their mass along: the sign of the mean says so, and biases give it back.
  EXPECT_LT(biases.report.mean_log_mass_plain, 0);
  EXPECT_GE(biases.report.mean_log_mass_plain, -biases.report.log_mass_plain) << "a mean is no more than the rms";
  EXPECT_LT(std::fabs(biases.report.mean_log_mass_fitted), 0.1 * std::fabs(biases.report.mean_log_mass_plain));
  EXPECT_LT(biases.report.heldout_fitted, 0.01 * biases.report.heldout_plain);
  EXPECT_LT(values.report.heldout_fitted, none.report.heldout_plain);
  EXPECT_LT(both.report.heldout_fitted, 0.1 * values.report.heldout_fitted);
}

TEST(Fit, BoundsOfBiasesAreHonoured) {
  const Repeated r = repeated_head(41);
  const auto scores = scores_of(r.head);
  SolveOptions options;
  options.max_bias = 1.0f;  // counts go to 14: e^2.6
  options.min_bias = -0.5f;
  const CompactHead compact = fit_head(r.head.problem(), r.first_rows, scores, Fit::both, options, kernel_set());
  ASSERT_TRUE(compact.report.is_fit_accepted);
  for (const float bias : compact.bias) {
    EXPECT_LE(bias, 1.0f);
    EXPECT_GE(bias, -0.5f);
  }
  EXPECT_GT(compact.report.n_bias_at_bound, 0);
  EXPECT_EQ(compact.report.n_bias_at_bound, std::count_if(compact.bias.begin(), compact.bias.end(),
                                                          [](float b) { return b > 0.9998f || b < -0.4998f; }));
}

TEST(Fit, ASecondCompactionBuildsOnTheBiasesOfTheFirst) {
  Head head = clustered_head(7, 256, 1500);
  Rng rng(2);
  for (int64_t row = 0; row < 256; ++row) head.bias.push_back(static_cast<float>(rng.next_normal()));
  testing::finish(head);
  const CompactHead none = fit_best(head, 60, Fit::none), both = fit_best(head, 60, Fit::both);
  ASSERT_TRUE(both.report.is_fit_accepted);
  for (size_t j = 0; j < none.bias.size(); ++j) {
    EXPECT_EQ(none.bias[j], head.bias[static_cast<size_t>(none.source_rows[j])]);
    EXPECT_LE(std::fabs(both.bias[j] - none.bias[j]), 3.0f + 1e-5f);
  }
  EXPECT_LT(mean_of(oracle_errors(head, both)), mean_of(oracle_errors(head, none)));
}

TEST(Fit, FewQueriesAreNeverWorseThanPlainRowsOnFreshOnes) {
  for (const int64_t n : {64, 128, 256, 512}) {
    for (const uint64_t seed : {51u, 52u, 53u}) {
      const Head head = clustered_head(seed, 1024, n);
      const Head fresh = with_queries(head, clustered_head(seed, 1024, 600 + n));
      const CompactHead plain = fit_best(head, 200, Fit::none), both = fit_best(head, 200, Fit::both);
      ASSERT_TRUE(is_finite(both));
      // Never worse than 2 %: what a handful of held-out queries can mistake. An unshrunk fit is 3 times worse
      // here.
      EXPECT_LE(mean_of(oracle_errors(fresh, both)), 1.02 * mean_of(oracle_errors(fresh, plain)))
          << n << " queries, seed " << seed;
    }
  }
}

TEST(Fit, RowsBeyondTheFitLimitStayAsTheyAre) {
  const Head head = clustered_head(8, 512, 2000);
  SolveOptions options;
  options.max_fit_rows = 40;
  const auto scores = scores_of(head);
  const auto rows = top_rows(scores, 150), fitted = top_rows(scores, 40);
  const CompactHead compact = fit_head(head.problem(), rows, scores, Fit::both, options, kernel_set());
  ASSERT_TRUE(compact.report.is_fit_accepted);
  const Mat<float> values = testing::values_of(head, compact);
  for (size_t j = 0; j < rows.size(); ++j) {
    if (std::binary_search(fitted.begin(), fitted.end(), rows[j])) continue;
    EXPECT_EQ(compact.bias[j], 0);
    for (int64_t c = 0; c < 64; ++c) ASSERT_EQ(values(static_cast<int64_t>(j), c), head.values(rows[j], c));
  }
  const auto errors = oracle_errors(heldout_part(head), compact);
  EXPECT_NEAR(compact.report.heldout_fitted, mean_of(errors), 1e-4 * mean_of(errors));
}

TEST(Fit, AQueryWhoseMassIsAllDroppedGivesNoNaN) {
  Head head = clustered_head(9, 64, 200, 32, false);
  // Row 0 is what query 3 and the held-out query 0 look at, by 400 nats; it is not kept. Nothing else is there to
  // attend.
  for (int64_t c = 0; c < 32; ++c)
    for (const int64_t q : {0, 3}) {
      head.keys(0, c) = 9.0f;
      head.queries(q, c) = 8.0f;
    }
  std::vector<int32_t> rows;
  for (int32_t row = 10; row < 30; ++row) rows.push_back(row);
  const auto scores = scores_of(head);
  for (const Fit fit : {Fit::none, Fit::both}) {
    const CompactHead compact = fit_head(head.problem(), rows, scores, fit, {}, kernel_set());
    EXPECT_TRUE(is_finite(compact));
    EXPECT_GT(compact.report.heldout_plain_worst, 0.5);  // and its loss is seen
  }
}

TEST(Fit, SegmentsMergedByLogSumExpAreOneBlock) {
  const Head head = clustered_head(10, 100, 20);
  for (int64_t q = 0; q < 20; ++q) {
    const auto whole = testing::attend(head.queries.row(q), head.keys.view(), {}, head.values.view(), head.scale);
    const auto merged = testing::merge(testing::attend(head.queries.row(q), head.keys.view().slice(0, 33), {},
                                                       head.values.view().slice(0, 33), head.scale),
                                       testing::attend(head.queries.row(q), head.keys.view().slice(33, 67), {},
                                                       head.values.view().slice(33, 67), head.scale));
    EXPECT_NEAR(merged.lse, whole.lse, 1e-12);
    for (size_t c = 0; c < 64; ++c) EXPECT_NEAR(merged.out[c], whole.out[c], 1e-12);
  }
}

TEST(Fit, DegenerateInputsGiveFiniteRowsThatAreNoWorse) {
  struct Case {
    const char* name;
    int64_t n_rows, n_queries, n_kept;
    void (*change)(Head&);
  };
  const auto nothing = [](Head&) {};
  const Case cases[] = {
      {"one row", 1, 50, 1, nothing},
      {"one row, none kept", 1, 50, 0, nothing},
      {"none kept", 40, 50, 0, nothing},
      {"no rows", 0, 50, 0, nothing},
      {"one kept", 40, 100, 1, nothing},
      {"one query", 40, 1, 10, nothing},
      {"five queries", 40, 5, 10, nothing},
      {"zero values", 40, 100, 10, [](Head& h) { h.values = Mat<float>(40, 32); }},
      {"the same key everywhere", 40, 100, 10,
       [](Head& h) {
         for (int64_t r = 1; r < 40; ++r) std::copy_n(h.keys.row(0), 32, h.keys.row(r));
       }},
      {"zero queries", 40, 100, 10, [](Head& h) { h.queries = Mat<float>(100, 32); }},
      {"huge keys", 40, 100, 10,
       [](Head& h) {
         for (float& x : h.keys.data) x *= 1e30f;
       }},
      {"huge values", 40, 100, 10,
       [](Head& h) {
         for (float& x : h.values.data) x *= 1e18f;
       }},
      {"tiny values", 40, 100, 10,
       [](Head& h) {
         for (float& x : h.values.data) x *= 1e-25f;
       }},
      {"a NaN in a key", 40, 100, 10, [](Head& h) { h.keys(3, 1) = std::nanf(""); }},
      {"an infinity in a value", 40, 100, 10, [](Head& h) { h.values(5, 1) = INFINITY; }},
      {"all keys NaN", 40, 100, 10,
       [](Head& h) {
         for (float& x : h.keys.data) x = std::nanf("");
       }},
      {"all queries NaN", 40, 100, 10,
       [](Head& h) {
         for (float& x : h.queries.data) x = std::nanf("");
       }},
      {"a row hidden by its bias", 40, 100, 10,
       [](Head& h) {
         h.bias.assign(40, 0.0f);
         h.bias[4] = -INFINITY;
       }},
      {"queries that see no row", 40, 100, 10,
       [](Head& h) {
         for (int32_t& pos : h.query_pos) pos = 0;
       }},
      {"the rest's output missing", 40, 100, 10, [](Head& h) { h.out = Mat<float>(); }},
      {"log-sum-exps too small", 40, 100, 10,
       [](Head& h) {
         for (float& x : h.lse) x -= 30;
       }},
      {"log-sum-exps far too large", 40, 100, 10,
       [](Head& h) {
         for (float& x : h.lse) x += 300;
       }},
  };
  for (const Case& c : cases)
    for (const bool has_rest : {false, true}) {
      Head head = clustered_head(61, std::max<int64_t>(c.n_rows, 1), c.n_queries, 32, has_rest);
      if (c.n_rows == 0) {
        head.keys = head.values = Mat<float>(0, 32);
        head.pos.clear();
      }
      c.change(head);
      for (const Fit fit : {Fit::none, Fit::biases, Fit::values, Fit::both}) {
        const CompactHead compact = fit_best(head, c.n_kept, fit);
        EXPECT_TRUE(is_finite(compact)) << c.name;
        EXPECT_LE(compact.report.heldout_fitted, compact.report.heldout_plain) << c.name;
        EXPECT_LE(static_cast<int64_t>(compact.source_rows.size()), c.n_kept) << c.name;
        EXPECT_EQ(compact.bias.size(), compact.source_rows.size()) << c.name;
        const bool has_bad_input = std::string_view(c.name).find("NaN") != std::string_view::npos ||
                                   std::string_view(c.name).find("infinity") != std::string_view::npos;
        if (has_bad_input) {
          EXPECT_TRUE(compact.report.had_nonfinite_input) << c.name;
        }
      }
    }
}

TEST(Fit, RandomlySpoiltHeadsGiveFiniteRowsThatAreNoWorse) {
  const float bad[] = {0.0f, 1e-38f, 1e10f, 1e30f, -1e30f, INFINITY, -INFINITY, std::nanf("")};
  for (uint64_t seed = 0; seed < 150; ++seed) {
    SCOPED_TRACE(seed);
    Rng rng(seed);
    const int64_t n_rows = 1 + static_cast<int64_t>(rng.next_below(70)),
                  n_queries = 1 + static_cast<int64_t>(rng.next_below(90));
    Head head = clustered_head(seed, n_rows, n_queries, 16, rng.next_unit() < 0.7);
    if (rng.next_unit() < 0.5) head.bias.assign(static_cast<size_t>(n_rows), 0.5f);
    for (std::vector<float>* field :
         {&head.keys.data, &head.values.data, &head.queries.data, &head.out.data, &head.lse, &head.bias})
      for (uint64_t n_bad = rng.next_below(4); n_bad > 0 && !field->empty(); --n_bad)
        (*field)[rng.next_below(field->size())] = bad[rng.next_below(std::size(bad))];
    const Fit fits[] = {Fit::none, Fit::biases, Fit::values, Fit::both};
    const int64_t n_kept = static_cast<int64_t>(rng.next_below(static_cast<uint64_t>(n_rows) + 1));
    const CompactHead compact = fit_best(head, n_kept, fits[seed % 4]);
    EXPECT_TRUE(is_finite(compact));
    EXPECT_LE(compact.report.heldout_fitted, compact.report.heldout_plain);
    EXPECT_LE(static_cast<int64_t>(compact.source_rows.size()), n_kept);
  }
}

TEST(Split, OneInFiveIsHeldOutWhateverTheGroup) {
  std::vector<int64_t> queries(1000);
  std::iota(queries.begin(), queries.end(), int64_t{0});
  const QuerySplit split = split_queries(queries, 5);
  EXPECT_EQ(split.n_fit, 800);
  for (const int64_t group : {1, 2, 4, 5, 7, 8}) {
    std::vector<int> heldout_of_head(static_cast<size_t>(group), 0);
    for (size_t i = 800; i < 1000; ++i) ++heldout_of_head[static_cast<size_t>(split.queries[i] % group)];
    for (const int n : heldout_of_head) EXPECT_NEAR(n, 200 / group, 4);
  }
  std::sort(queries.begin(), queries.end());
  auto sorted = split.queries;
  std::sort(sorted.begin(), sorted.end());
  EXPECT_EQ(sorted, queries);
}

}  // namespace
}  // namespace sh::compaction
