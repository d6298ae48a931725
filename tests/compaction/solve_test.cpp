// SPDX-License-Identifier: MIT
#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <cmath>
#include <memory>
#include <set>

#include "compaction/compactor.h"
#include "synthetic.h"

namespace sh::compaction {
namespace {

using testing::clustered_head;
using testing::Head;
using testing::kernel_set;
using testing::method_with;

std::vector<Head> some_heads(int64_t n_queries = 400) {
  std::vector<Head> heads;
  const int64_t lengths[] = {200, 64, 130, 1};
  for (size_t i = 0; i < 4; ++i) {
    heads.push_back(clustered_head(100 + i, lengths[i], n_queries, 32));
    for (float& shift : heads.back().live_shift)
      shift += 2.0f * static_cast<float>(i);  // later heads look at the region less
    testing::finish(heads.back());
  }
  return heads;
}

std::vector<HeadProblem> problems_of(const std::vector<Head>& heads) {
  std::vector<HeadProblem> problems;
  for (const Head& head : heads) {
    problems.push_back(head.problem());
    problems.back().head = static_cast<int32_t>(problems.size()) - 1;
    problems.back().n_fixed_rows = 8;
  }
  return problems;
}

Result<std::vector<CompactHead>> solve_with(const CompactionMethod& method, const std::vector<Head>& heads,
                                            const BudgetLimits& limits, int n_threads = 1,
                                            const SolveOptions& options = {}) {
  ThreadPool pool(n_threads);
  const auto problems = problems_of(heads);
  return testing::solve(method, ProblemList(problems), limits, options, {.pool = &pool, .kernels = &kernel_set()});
}

const CompactionMethod& solver() {
  return **find_method("solver");
}

TEST(Solve, ResultDoesNotDependOnTheNumberOfThreads) {
  const auto heads = some_heads();
  const std::vector<CompactHead> one = solve_with(solver(), heads, {.max_region_rows = 90}, 1).value();
  int n_accepted = 0;
  for (const int n_threads : {2, 3}) {
    const std::vector<CompactHead> many = solve_with(solver(), heads, {.max_region_rows = 90}, n_threads).value();
    ASSERT_EQ(one.size(), many.size());
    for (size_t h = 0; h < one.size(); ++h) {
      EXPECT_EQ(one[h].source_rows, many[h].source_rows);
      EXPECT_EQ(one[h].bias, many[h].bias);  // bit for bit
      EXPECT_EQ(one[h].values.data, many[h].values.data);
      EXPECT_EQ(one[h].report.heldout_fitted, many[h].report.heldout_fitted);
      n_accepted += one[h].report.is_fit_accepted ? 1 : 0;
    }
  }
  EXPECT_GT(n_accepted, 0);
}

TEST(Solve, EveryHeadHasItsOwnRowsAndTheTotalIsTheBudget) {
  const auto heads = some_heads();
  const std::vector<CompactHead> solution = solve_with(solver(), heads, {.max_region_rows = 90}).value();
  int64_t n_rows = 0;
  for (size_t h = 0; h < heads.size(); ++h) {
    const CompactHead& compact = solution[h];
    n_rows += static_cast<int64_t>(compact.source_rows.size());
    EXPECT_TRUE(std::is_sorted(compact.source_rows.begin(), compact.source_rows.end()));
    EXPECT_EQ(std::set<int32_t>(compact.source_rows.begin(), compact.source_rows.end()).size(),
              compact.source_rows.size());
    if (!compact.source_rows.empty()) {
      EXPECT_LT(compact.source_rows.back(), heads[h].keys.rows);
    }
    EXPECT_EQ(compact.bias.size(), compact.source_rows.size());
    EXPECT_TRUE(compact.values.rows == 0 ||
                compact.values.rows == static_cast<int64_t>(compact.source_rows.size()));
  }
  EXPECT_EQ(n_rows, 90);
}

TEST(Solve, HeadsMayKeepDisjointRows) {
  // Two heads over the same text: the first is asked about its start, the second about its end.
  std::vector<Head> heads;
  for (int which = 0; which < 2; ++which) {
    Head head = clustered_head(7, 100, 300, 32, false);
    for (int64_t row = 0; row < 100; ++row) {  // keys of one length: each is the best match of itself
      const float length = std::sqrt(kernel_set().dot(head.keys.row(row), head.keys.row(row), 32));
      for (int64_t c = 0; c < 32; ++c) head.keys(row, c) *= 8.0f / length;
    }
    for (int64_t q = 0; q < 300; ++q)
      for (int64_t c = 0; c < 32; ++c) head.queries(q, c) = 8.0f * head.keys((which == 0 ? 0 : 80) + q % 20, c);
    heads.push_back(std::move(head));
  }
  const std::vector<CompactHead> solution =
      solve_with(method_with(RowScore::max, Weighting::none, Fit::none, BudgetPolicy::uniform), heads,
                 {.max_region_rows = 40})
          .value();
  for (int32_t row = 0; row < 20; ++row) {
    EXPECT_EQ(solution[0].source_rows[static_cast<size_t>(row)], row);
    EXPECT_EQ(solution[1].source_rows[static_cast<size_t>(row)], 80 + row);
  }
}

TEST(Solve, TheImportantRowMayLieAnywhere) {
  for (const int32_t wanted : {0, 37, 99}) {
    Head head = clustered_head(8, 100, 50, 32);
    for (int64_t q = 0; q < 50; ++q)
      for (int64_t c = 0; c < 32; ++c) head.queries(q, c) = 2.0f * head.keys(wanted, c);
    testing::finish(head);
    const std::vector<Head> heads = {head};
    const std::vector<CompactHead> solution =
        solve_with(**find_method("select"), heads, {.max_region_rows = 1}).value();
    EXPECT_EQ(solution[0].source_rows, std::vector<int32_t>{wanted});
  }
}

TEST(Solve, ABudgetForEverythingReturnsEverythingExactly) {
  const auto heads = some_heads();
  for (const CompactionMethod* method : methods()) {
    const std::vector<CompactHead> solution = solve_with(*method, heads, {.max_region_rows = 100000}).value();
    for (size_t h = 0; h < heads.size(); ++h) {
      EXPECT_EQ(static_cast<int64_t>(solution[h].source_rows.size()), heads[h].keys.rows);
      EXPECT_EQ(solution[h].values.rows, 0);
      for (const float bias : solution[h].bias) EXPECT_EQ(bias, 0);
    }
  }
}

TEST(Solve, EveryAxisChangesTheOutputInTheExpectedDirection) {
  const auto heads = some_heads(1000);
  const BudgetLimits limits{.max_region_rows = 60};
  const CompactionMethod base =
      method_with(RowScore::rms, Weighting::attention_share, Fit::none, BudgetPolicy::global);
  const auto rows = [&](CompactionMethod method) {
    std::vector<std::vector<int32_t>> result;
    const std::vector<CompactHead> solution = solve_with(method, heads, limits).value();
    for (const CompactHead& head : solution) result.push_back(head.source_rows);
    return result;
  };
  const auto chosen = rows(base);
  for (const RowScore score : {RowScore::recency, RowScore::max, RowScore::mean}) {
    CompactionMethod method = base;
    method.score = score;
    EXPECT_NE(rows(method), chosen) << name_of(score);
  }
  CompactionMethod unweighted = base;
  unweighted.weighting = Weighting::none;
  const auto without = rows(unweighted);
  EXPECT_GT(chosen[0].size(),
            without[0].size());  // the first head looks at the region most, so the share moves rows to it
  EXPECT_LT(chosen[2].size(), without[2].size());
  CompactionMethod uniform = base;
  uniform.budget = BudgetPolicy::uniform;
  const auto even = rows(uniform);
  EXPECT_EQ(even[0].size(), 20u);
  EXPECT_EQ(even[3].size(), 1u);
  EXPECT_GT(chosen[0].size(), even[0].size());
}

TEST(Solve, TheFitLowersTheErrorOfTheSameRows) {
  const auto heads = some_heads(2000);
  CompactionMethod method =
      method_with(RowScore::rms, Weighting::attention_share, Fit::none, BudgetPolicy::global);
  const std::vector<CompactHead> plain = solve_with(method, heads, {.max_region_rows = 80}).value();
  method.fit = Fit::both;
  const std::vector<CompactHead> fitted = solve_with(method, heads, {.max_region_rows = 80}).value();
  for (size_t h = 0; h < heads.size(); ++h) {
    EXPECT_EQ(plain[h].source_rows, fitted[h].source_rows);
    EXPECT_FALSE(plain[h].report.is_fit_accepted);
    EXPECT_LE(fitted[h].report.heldout_fitted, fitted[h].report.heldout_plain);
  }
  EXPECT_TRUE(fitted[0].report.is_fit_accepted);
  EXPECT_LT(testing::mean_of(testing::oracle_errors(heads[0], fitted[0])),
            testing::mean_of(testing::oracle_errors(heads[0], plain[0])));
}

TEST(Solve, CancelIsHonouredInEveryPhase) {
  const auto heads = some_heads();
  const auto problems = problems_of(heads);
  for (const double when : {0.0, 0.2, 0.5}) {
    ThreadPool pool(2);
    std::atomic<bool> cancel{when == 0.0};
    double last = 0;
    const auto result = testing::solve(
        solver(), ProblemList(problems), {.max_region_rows = 50}, {},
        {.pool = &pool, .kernels = &kernel_set(), .cancel = &cancel, .on_progress = [&](double fraction) {
           last = fraction;
           if (fraction >= when) cancel = true;
         }});
    ASSERT_FALSE(result.ok());
    EXPECT_EQ(result.error().kind, ErrorKind::cancelled);
    EXPECT_LT(last, 1.0);
  }
}

TEST(Solve, ProgressGrowsToOne) {
  const auto heads = some_heads();
  const auto problems = problems_of(heads);
  ThreadPool pool(2);
  double last = 0;
  const auto result =
      testing::solve(solver(), ProblemList(problems), {.max_region_rows = 50}, {},
                     {.pool = &pool, .kernels = &kernel_set(), .on_progress = [&](double fraction) {
                        EXPECT_GT(fraction, last);
                        last = fraction;
                      }});
  ASSERT_TRUE(result.ok());
  EXPECT_DOUBLE_EQ(last, 1.0);
}

TEST(Solve, BadProblemsAndOptionsAreErrorsThatSayWhere) {
  auto heads = some_heads();
  const auto kind_of = [&](const CompactionMethod& method, auto&& change, const char* expected,
                           const SolveOptions& options = {}) {
    auto problems = problems_of(heads);
    change(problems[1]);
    ThreadPool pool(1);
    const auto result = testing::solve(method, ProblemList(problems), {.max_region_rows = 50}, options,
                                       {.pool = &pool, .kernels = &kernel_set()});
    ASSERT_FALSE(result.ok()) << expected;
    EXPECT_EQ(result.error().kind, ErrorKind::invalid_argument);
    EXPECT_NE(result.error().message.find(expected), std::string::npos) << result.error().message;
  };
  const auto same = [](HeadProblem&) {};
  kind_of(
      solver(), [](HeadProblem& p) { p.queries = {}, p.query_pos = {}, p.lse = {}, p.out = {}; },
      "KV head 1 has none");
  kind_of(
      solver(), [](HeadProblem& p) { p.values = p.values.slice(0, 3); }, "64 keys but 3 values");
  kind_of(
      solver(), [](HeadProblem& p) { p.lse = p.lse.first(2); }, "400 queries but 2 log-sum-exps");
  kind_of(
      solver(), [](HeadProblem& p) { p.lse = {}; }, "without log-sum-exps");
  kind_of(
      solver(), [](HeadProblem& p) { p.pos = p.pos.first(1); }, "64 keys but 1 positions");
  kind_of(
      solver(), [](HeadProblem& p) { p.queries.cols = 16; }, "width 16");
  kind_of(solver(), same, "holdout_every", {.holdout_every = 0});
  kind_of(solver(), same, "max_queries", {.max_queries_per_head = 0});
  kind_of(solver(), same, "min_bias", {.min_bias = 1.0f});
  kind_of(solver(), same, "accept_worst_factor", {.accept_worst_factor = std::nanf("")});
  EXPECT_TRUE(solve_with(**find_method("streaming"), heads, {.max_region_rows = 50}).ok());
}

TEST(Solve, RatiosFromOneToAThousandOnATinyModel) {
  std::vector<Head> heads;
  for (uint64_t i = 0; i < 2; ++i) heads.push_back(clustered_head(200 + i, 24, 60, 16));
  for (const int ratio : {1, 2, 3, 5, 7, 10, 16, 24, 48, 49, 100, 333, 1000}) {
    const std::vector<CompactHead> solution = solve_with(solver(), heads, {.max_region_rows = 48 / ratio}).value();
    size_t n_rows = 0;
    for (size_t h = 0; h < 2; ++h) {
      n_rows += solution[h].source_rows.size();
      for (const double error : testing::oracle_errors(heads[h], solution[h])) EXPECT_TRUE(std::isfinite(error));
    }
    EXPECT_EQ(n_rows, static_cast<size_t>(48 / ratio));
  }
}

TEST(Solve, NoHeadsIsAnEmptySolution) {
  EXPECT_TRUE(solve_with(solver(), {}, {.max_region_rows = 5}).value().empty());
}

TEST(Methods, AreFoundByName) {
  for (const char* name :
       {"select", "solver", "omp", "self_study", "unfitted", "chunked", "chunked_self_study", "nonuniform", "on_policy",
        "sequential_on_policy", "context_prefill", "truncate", "streaming", "snapkv", "h2o", "kvzip", "random"}) {
    const auto method = find_method(name);
    ASSERT_TRUE(method.ok()) << name;
    EXPECT_STREQ((*method)->name, name);
    EXPECT_GT(std::string_view((*method)->summary).size(), 20u);
    EXPECT_GT(std::string_view((*method)->source).size(), 5u);
  }
  EXPECT_EQ(methods().size(), 17u);
  EXPECT_EQ(*find_method("sequential"), *find_method("sequential_on_policy"));
  for (const char* name : {"Select", "", "sequential_on_policy "}) {
    EXPECT_EQ(find_method(name).error().kind, ErrorKind::not_found) << name;
    EXPECT_NE(find_method(name).error().message.find("select, self_study"), std::string::npos);
  }
}

TEST(Methods, QuerySourcesAddUp) {
  const QuerySources both = parse_query_sources("self_study+repeat_prefill").value();
  EXPECT_TRUE(both.has(QuerySource::self_study) && both.has(QuerySource::repeat_prefill));
  EXPECT_FALSE(both.has(QuerySource::prefill));
  EXPECT_EQ(parse_query_sources(name_of(both)).value(), both);
  EXPECT_TRUE(parse_query_sources("none").value().is_none());
  for (const char* text : {"", "self_study+", "+prefill", "self_study,prefill", "study"})
    EXPECT_EQ(parse_query_sources(text).error().kind, ErrorKind::invalid_argument) << text;
}

TEST(Methods, BaselinesKeepTheEnd) {
  const auto heads = some_heads();
  EXPECT_EQ((*find_method("truncate"))->n_sinks, 0);
  EXPECT_EQ((*find_method("streaming"))->n_sinks, 4);
  const std::vector<CompactHead> solution =
      solve_with(**find_method("truncate"), heads, {.max_region_rows = 13}).value();
  EXPECT_EQ(solution[0].source_rows, (std::vector<int32_t>{196, 197, 198, 199}));
  EXPECT_EQ(solution[3].source_rows, std::vector<int32_t>{0});
}

}  // namespace
}  // namespace sh::compaction
