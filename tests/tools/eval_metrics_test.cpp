// SPDX-License-Identifier: MIT
// The numbers of compact-eval: measures and intervals, and what it reads.
#include "tools/eval_metrics.h"

#include <cmath>
#include <limits>

#include "tools/eval_data.h"
#include "tools/eval_methods.h"
#include "tools/program.h"

namespace sh::tools {
namespace {

constexpr double kInf = std::numeric_limits<double>::infinity();
constexpr double kNaN = std::numeric_limits<double>::quiet_NaN();
constexpr double kRounding = 1e-6;  // logits are floats: log p has 2^-24 of relative error

/// Logits of a distribution. A shift changes no probability.
std::vector<float> logits_of(const std::vector<double>& probabilities, double shift = 0) {
  std::vector<float> logits;
  for (const double p : probabilities) logits.push_back(static_cast<float>(std::log(p) + shift));
  return logits;
}

TokenComparison compared(const std::vector<double>& full, const std::vector<double>& compact, int32_t fed) {
  return compare_logits(logits_of(full), logits_of(compact), fed);
}

TEST(CompareLogits, EqualRowsDoNotDiffer) {
  const std::vector<float> row = {3.5f, -2.0f, 0.25f, 3.0f};
  const TokenComparison c = compare_logits(row, row, 2);
  EXPECT_EQ(c.kl, 0);
  EXPECT_TRUE(c.is_same_top1);
  EXPECT_EQ(c.nll_full, c.nll_compact);
  EXPECT_TRUE(std::isnan(c.nll_none)) << "not measured here";
  EXPECT_NEAR(c.nll_full, negative_log_likelihood(row, 2), 1e-12);
}

TEST(CompareLogits, GivesTheDivergenceOfTwoTokenDistributions) {
  const TokenComparison c = compared({0.5, 0.5}, {0.25, 0.75}, 1);
  EXPECT_NEAR(c.kl, 0.5 * std::log(0.5 / 0.25) + 0.5 * std::log(0.5 / 0.75), kRounding);
  EXPECT_NEAR(c.nll_full, std::log(2.0), kRounding);
  EXPECT_NEAR(c.nll_compact, -std::log(0.75), kRounding);
  // The divergence is from the full cache's side: turned around it is another number.
  EXPECT_NEAR(compared({0.25, 0.75}, {0.5, 0.5}, 0).kl, 0.25 * std::log(0.5) + 0.75 * std::log(1.5), kRounding);
}

TEST(CompareLogits, IsBlindToAShiftOfTheLogits) {
  const TokenComparison c = compare_logits(logits_of({0.9, 0.1}, 60), logits_of({0.8, 0.2}, -60), 0);
  EXPECT_NEAR(c.kl, 0.9 * std::log(0.9 / 0.8) + 0.1 * std::log(0.1 / 0.2), 1e-5)
      << "floats near 60 are 4e-6 apart";
}

TEST(CompareLogits, FlagsAFlipAndWhetherItWasConfident) {
  const TokenComparison sure = compared({0.61, 0.39}, {0.4, 0.6}, 0);
  EXPECT_TRUE(sure.is_confident);
  EXPECT_FALSE(sure.is_same_top1);
  const TokenComparison unsure = compared({0.59, 0.41}, {0.9, 0.1}, 0);
  EXPECT_FALSE(unsure.is_confident);
  EXPECT_TRUE(unsure.is_same_top1);
  EXPECT_FALSE(compared({0.1, 0.45, 0.45}, {0.1, 0.6, 0.3}, 0).is_confident) << "the second of equals counts";
  EXPECT_TRUE(compared({0.1, 0.2, 0.7}, {0.1, 0.2, 0.7}, 0).is_confident) << "the top may come last";
}

TEST(CompareLogits, TakesImpossibleTokensAndNeverTurnsNonsenseIntoZero) {
  EXPECT_NEAR(compared({1, 0}, {0.5, 0.5}, 0).kl, std::log(2.0), kRounding) << "0 ln 0 is 0";
  EXPECT_NEAR(compared({1, 0}, {1, 0}, 0).kl, 0, kRounding);
  EXPECT_EQ(compared({0.5, 0.5}, {1, 0}, 0).kl, kInf);
  const std::vector<float> broken = {std::numeric_limits<float>::quiet_NaN(), 1};
  EXPECT_TRUE(std::isnan(compare_logits(logits_of({0.5, 0.5}), broken, 0).kl))
      << "a broken cache is not a perfect one";
}

TEST(LogitOverlap, CountsSharedLikeliestTokensAndCentresTheCosine) {
  std::vector<float> full(20), compact;
  for (size_t i = 0; i < full.size(); ++i) full[i] = static_cast<float>(20 - i);  // the likeliest first
  compact = full;
  const LogitOverlap same = overlap_of(full, full);
  EXPECT_EQ(same.top5, 1);
  EXPECT_EQ(same.top10, 1);
  EXPECT_NEAR(same.cosine, 1, 1e-12);
  std::swap(compact[0], compact[7]);   // leaves the five, stays in the ten
  std::swap(compact[4], compact[19]);  // leaves both
  const LogitOverlap some = overlap_of(full, compact);
  EXPECT_DOUBLE_EQ(some.top5, 3.0 / 5);
  EXPECT_DOUBLE_EQ(some.top10, 9.0 / 10);
  // An offset of all logits changes nothing, and the reverse order is the opposite, however large the offset.
  std::vector<float> reversed(full.rbegin(), full.rend());
  for (float& x : reversed) x += 1000;
  EXPECT_NEAR(overlap_of(full, reversed).cosine, -1, 1e-9);
  EXPECT_EQ(overlap_of(full, reversed).top10, 0);
  const std::vector<float> three = {1, 2, 3}, other = {3, 2, 1};
  EXPECT_EQ(overlap_of(three, other).top5, 1) << "all of a small vocabulary";
  std::vector<float> broken(20, std::numeric_limits<float>::quiet_NaN());
  EXPECT_EQ(overlap_of(full, broken).top10, 0);
  EXPECT_TRUE(std::isnan(overlap_of(full, broken).cosine));
}

TEST(Rank, IsOneForTheLikeliestAndLastForNaN) {
  const std::vector<float> logits = {0, 5, 3, 3, std::numeric_limits<float>::quiet_NaN()};
  EXPECT_EQ(rank_of(std::span(logits).first(4), 1), 1);
  EXPECT_EQ(rank_of(std::span(logits).first(4), 2), 2);
  EXPECT_EQ(rank_of(std::span(logits).first(4), 3), 2);
  EXPECT_EQ(rank_of(std::span(logits).first(4), 0), 4);
  EXPECT_EQ(rank_of(logits, 4), 6);
}

TEST(Quantile, InterpolatesBetweenNeighbours) {
  EXPECT_EQ(quantile({3, 1, 2}, 0.5), 2);
  EXPECT_DOUBLE_EQ(quantile({10, 0}, 0.25), 2.5);
  EXPECT_EQ(quantile({7, 5, 9}, 0), 5);
  EXPECT_EQ(quantile({7, 5, 9}, 1), 9);
  EXPECT_EQ(quantile({4}, 0.99), 4);
  EXPECT_TRUE(std::isnan(quantile({}, 0.5)));
  EXPECT_TRUE(std::isnan(mean({})));
}

/// A token whose probability the context raises by `gain` nats, of which `kept` are left.
TokenComparison helped(double gain, double kept) {
  return {.nll_full = 1, .nll_compact = 1 + gain - kept, .nll_none = 1 + gain};
}

TEST(ContextRecovery, IsTheShareOfTheHelpThatIsLeft) {
  EXPECT_DOUBLE_EQ(context_recovery(std::vector{helped(2, 2), helped(4, 4)}, false), 1);
  EXPECT_DOUBLE_EQ(context_recovery(std::vector{helped(2, 0), helped(4, 0)}, false), 0);
  EXPECT_DOUBLE_EQ(context_recovery(std::vector{helped(1, 1), helped(3, 1)}, false), 0.5);
  EXPECT_DOUBLE_EQ(context_recovery(std::vector{helped(2, -2)}, false), -1) << "worse than no context";
}

TEST(ContextRecovery, OfTheTopDecileLooksOnlyAtWhatTheContextHelpsMost) {
  std::vector<TokenComparison> tokens;
  for (int gain = 1; gain <= 9; ++gain) tokens.push_back(helped(gain, gain));
  tokens.push_back(helped(10, 0));
  EXPECT_DOUBLE_EQ(context_recovery(tokens, true), 0);
  EXPECT_DOUBLE_EQ(context_recovery(tokens, false), 45.0 / 55);
}

TEST(ContextRecovery, IsUnmeasuredWithoutHelp) {
  TokenComparison unmeasured = helped(1, 1);
  unmeasured.nll_none = kNaN;
  EXPECT_TRUE(std::isnan(context_recovery(std::vector{unmeasured}, false)));
  EXPECT_TRUE(std::isnan(context_recovery(std::vector{helped(-1, 1)}, false)));
  EXPECT_TRUE(std::isnan(context_recovery({}, true)));
  EXPECT_DOUBLE_EQ(context_recovery(std::vector{unmeasured, helped(4, 1)}, false), 0.25);
}

std::vector<Cluster> uneven_clusters(int n_copies) {
  std::vector<Cluster> clusters;
  for (int copy = 0; copy < n_copies; ++copy)
    for (const Cluster& c : {Cluster{1, 4}, Cluster{4, 4}, Cluster{2, 6}, Cluster{8, 10}}) clusters.push_back(c);
  return clusters;
}

TEST(ClusterBootstrap, ContainsTheMeanAndNarrowsWithMoreDocuments) {
  const double whole = 15.0 / 24;
  double width[2];
  for (const int many : {0, 1}) {
    const auto [low, high] = cluster_bootstrap(uneven_clusters(many == 1 ? 10 : 1), 7);
    EXPECT_LT(low, whole);
    EXPECT_GT(high, whole);
    EXPECT_GE(low, 0.25);
    EXPECT_LE(high, 1);
    width[many] = high - low;
  }
  // Ten times the documents: a factor of √10 in theory; half leaves room for the coarse 4-document interval.
  EXPECT_LT(width[1], width[0] / 2);
}

TEST(ClusterBootstrap, ResamplesDocumentsAndNotQuestions) {
  // 20 questions, but in two documents of one mind each: the interval must span everything from 0 to 1.
  const auto [low, high] = cluster_bootstrap(std::vector<Cluster>{{0, 10}, {10, 10}}, 7);
  EXPECT_EQ(low, 0);
  EXPECT_EQ(high, 1);
}

TEST(ClusterBootstrap, IsAPointWhenDocumentsAgreeAndNothingWithoutData) {
  const auto agreed = cluster_bootstrap(std::vector<Cluster>{{3, 4}, {6, 8}, {3, 4}}, 1);
  EXPECT_DOUBLE_EQ(agreed.first, 0.75);
  EXPECT_DOUBLE_EQ(agreed.second, 0.75);
  EXPECT_TRUE(std::isnan(cluster_bootstrap({}, 1).first));
  EXPECT_TRUE(std::isnan(cluster_bootstrap(std::vector<Cluster>{{0, 0}}, 1).second));
}

TEST(ClusterBootstrap, DependsOnItsSeedOnly) {
  std::vector<Cluster> clusters;  // uneven sizes: many different resampled means
  for (int i = 1; i <= 12; ++i) clusters.push_back({std::sqrt(i), static_cast<double>(i)});
  EXPECT_EQ(cluster_bootstrap(clusters, 5), cluster_bootstrap(clusters, 5));
  EXPECT_NE(cluster_bootstrap(clusters, 5), cluster_bootstrap(clusters, 6));
}

TEST(McNemar, IsTheExactTwoSidedProbability) {
  EXPECT_EQ(mcnemar_p(0, 0), 1);
  EXPECT_EQ(mcnemar_p(3, 3), 1);
  EXPECT_NEAR(mcnemar_p(0, 5), 2.0 / 32, 1e-12);
  EXPECT_NEAR(mcnemar_p(1, 9), 2 * (1 + 10) / 1024.0, 1e-12);
  EXPECT_EQ(mcnemar_p(9, 1), mcnemar_p(1, 9));
}

TEST(DistanceRange, CoversEveryDistanceOnce) {
  const std::pair<int64_t, size_t> cases[] = {{1, 0},   {16, 0},  {17, 1},   {64, 1},   {65, 2},
                                              {256, 2}, {257, 3}, {1024, 3}, {1025, 4}, {1'000'000, 4}};
  for (const auto& [distance, range] : cases) EXPECT_EQ(distance_range(distance), range) << distance;
}

// ---- what it reads ----

/// A file with this text that is removed at the end.
struct TemporaryFile {
  explicit TemporaryFile(const std::string& text) : path(temporary("recall.jsonl")) {
    std::ofstream(path, std::ios::binary) << text;
  }
  ~TemporaryFile() { unlink(path.c_str()); }
  std::string path;
};

const std::string kGoodLine =
    R"({"id": "a", "context": "the code is 42", "questions": [{"q": "code?", "answer": "42"}]})";

TEST(ReadRecall, ReadsDocumentsAndFindsWhereAnswersStand) {
  const std::string third_line = R"({"context": "nothing", "questions": [{"q": "x?", "answer": " owl\n"}]})";
  const TemporaryFile file(kGoodLine + "\n\n" + third_line + "\nnot read");
  const auto documents = read_recall(file.path, 2);
  ASSERT_TRUE(documents.ok()) << documents.error().message;
  ASSERT_EQ(documents->size(), 2u);
  const RecallDocument& first = documents->at(0);
  EXPECT_EQ(first.id, "a");
  EXPECT_EQ(first.context, "the code is 42");
  ASSERT_EQ(first.questions.size(), 1u);
  EXPECT_EQ(first.questions[0].question, "code?");
  EXPECT_DOUBLE_EQ(first.questions[0].depth, 12.0 / 14);
  EXPECT_EQ(documents->at(1).id, file.path + ":3") << "a document without a name is named after its line";
  EXPECT_EQ(documents->at(1).questions[0].depth, -1);
  EXPECT_EQ(documents->at(1).questions[0].answer, "owl") << "answers are compared without white space around them";
}

TEST(ReadRecall, TakesKindsDepthsOtherAnswersAndAnInstruction) {
  const TemporaryFile file(
      R"({"context": "c plum", "instruction": {"word": "zorvex"}, "questions": [{"q": "x?", "answer": "plum",)"
      R"( "kind": "reverse", "depth": 0.25, "accept": ["a plum"]}, {"q": "y?", "answer": "plum", "depth": null}]})");
  const auto documents = read_recall(file.path, 2);
  ASSERT_TRUE(documents.ok()) << documents.error().message;
  EXPECT_EQ(documents->at(0).instruction_word, "zorvex");
  const RecallQuestion& told = documents->at(0).questions[0];
  EXPECT_EQ(told.kind, "reverse");
  EXPECT_EQ(told.depth, 0.25);
  EXPECT_EQ(told.accept, (std::vector<std::string>{"plum", "a plum"}));
  const RecallQuestion& plain = documents->at(0).questions[1];
  EXPECT_EQ(plain.kind, "fact");
  EXPECT_DOUBLE_EQ(plain.depth, 2.0 / 6);
  EXPECT_EQ(plain.accept, (std::vector<std::string>{"plum"}));
}

TEST(ReadRecall, NamesFileAndLineOfWhatIsWrong) {
  const std::pair<const char*, const char*> cases[] = {
      {"{\"context\": ", "line"},
      {"[1, 2]", "array"},
      {"7", "number"},
      {R"({"questions": [{"q": "x", "answer": "y"}]})", "\"context\", got nothing"},
      {R"({"context": 5, "questions": [{"q": "x", "answer": "y"}]})", "\"context\", got number"},
      {R"({"context": "c"})", "\"questions\""},
      {R"({"context": "c", "questions": []})", "\"questions\""},
      {R"({"context": "c", "questions": {"q": "x"}})", "\"questions\""},
      {R"({"context": "c", "questions": ["x"]})", "\"q\""},
      {R"({"context": "c", "questions": [{"answer": "y"}]})", "\"q\", got nothing"},
      {R"({"context": "c", "questions": [{"q": "x"}]})", "\"answer\", got nothing"},
      {R"({"context": "c", "questions": [{"q": "x", "answer": 42}]})", "\"answer\", got number"},
      {R"({"context": "c", "questions": [{"q": "x", "answer": ""}]})", "\"answer\""},
      {R"({"context": "c", "questions": [{"q": "x", "answer": " \n"}]})", "\"answer\""},
      {R"({"context": "c", "questions": [{"q": "x", "answer": "y", "depth": 2}]})", "\"depth\""},
      {R"({"context": "c", "questions": [{"q": "x", "answer": "y", "kind": 2}]})", "\"kind\""},
      {R"({"context": "c", "questions": [{"q": "x", "answer": "y", "accept": "z"}]})", "\"accept\""},
      {R"({"context": "c", "instruction": {}, "questions": [{"q": "x", "answer": "y"}]})", "\"word\""},
  };
  for (const auto& [line, part] : cases) {
    const TemporaryFile file(kGoodLine + "\n" + line + "\n");
    const auto documents = read_recall(file.path, 10);
    ASSERT_FALSE(documents.ok()) << line;
    EXPECT_EQ(documents.error().kind, ErrorKind::invalid_argument) << line;
    EXPECT_TRUE(contains(documents.error().message, file.path + ":2")) << documents.error().message;
    EXPECT_TRUE(contains(documents.error().message, part)) << documents.error().message;
  }
}

TEST(ReadRecall, RefusesAFileWithoutDocumentsAndOneThatIsNotThere) {
  const TemporaryFile file("\n  \n");
  const auto empty = read_recall(file.path, 10);
  ASSERT_FALSE(empty.ok());
  EXPECT_TRUE(contains(empty.error().message, file.path)) << empty.error().message;
  const auto missing = read_recall("/no/such/recall.jsonl", 10);
  ASSERT_FALSE(missing.ok());
  EXPECT_EQ(missing.error().kind, ErrorKind::not_found);
  EXPECT_TRUE(contains(missing.error().message, "/no/such/recall.jsonl")) << missing.error().message;
}

TEST(RecallFiles, AreLabelledByTheirStemAndOrderedByLength) {
  EXPECT_EQ(label_of("a/recall/512.jsonl"), "512");
  const auto files = files_in(std::string(SH_SOURCE_DIR) + "/models/recall", ".jsonl");
  ASSERT_GE(files.size(), 2u);
  EXPECT_EQ(label_of(files[0]), "512");
  EXPECT_EQ(label_of(files[1]), "1024");
  EXPECT_TRUE(files_in("/no/such/folder", ".jsonl").empty());
}

TEST(MethodSpec, TakesANameAndOptions) {
  const auto plain = parse_method_spec("truncate");
  ASSERT_TRUE(plain.ok());
  EXPECT_EQ(plain->request.method, "truncate");
  EXPECT_FALSE(plain->request.queries || plain->request.score || plain->request.weighting || plain->request.fit ||
               plain->request.budget);
  EXPECT_TRUE(plain->options.empty());

  const std::string text =
      "self_study:queries=prefill:score=rms:weighting=none:fit=values:budget=uniform:conversations=96";
  const auto spec = parse_method_spec(text);
  ASSERT_TRUE(spec.ok()) << spec.error().message;
  EXPECT_EQ(spec->label, text);
  EXPECT_EQ(spec->request.method, "self_study");
  EXPECT_EQ(spec->request.queries, compaction::QuerySource::prefill);
  EXPECT_EQ(spec->request.score, compaction::RowScore::rms);
  EXPECT_EQ(spec->request.weighting, compaction::Weighting::none);
  EXPECT_EQ(spec->request.fit, compaction::Fit::values);
  EXPECT_EQ(spec->request.budget, compaction::BudgetPolicy::uniform);
  EXPECT_EQ(spec->request.self_study.n_conversations, 96);
  EXPECT_EQ(spec->options.size(), 6u);
  EXPECT_EQ(spec->options.at("fit"), "values");
}

TEST(MethodSpec, TakesQuantisedCachesAndBaselines) {
  using Kind = MethodSpec::Kind;
  const auto q8 = parse_method_spec("kv:q8_0");
  ASSERT_TRUE(q8.ok()) << q8.error().message;
  EXPECT_EQ(q8->kind, Kind::quantised);
  EXPECT_EQ(q8->kv_type, DType::q8_0);
  EXPECT_FALSE(q8->has_ratios());
  const auto both = parse_method_spec("kv:q4_0+self_study:conversations=48:queries=self_study+repeat_prefill");
  ASSERT_TRUE(both.ok()) << both.error().message;
  EXPECT_EQ(both->kind, Kind::compaction);
  EXPECT_EQ(both->kv_type, DType::q4_0);
  EXPECT_EQ(both->request.method, "self_study");
  EXPECT_EQ(both->request.self_study.n_conversations, 48);
  EXPECT_EQ(both->request.queries, compaction::QuerySource::self_study | compaction::QuerySource::repeat_prefill);
  EXPECT_TRUE(both->has_ratios());
  EXPECT_EQ(parse_method_spec("full:rerun")->kind, Kind::rerun);
  EXPECT_EQ(parse_method_spec("reprefill")->n_keep, 4);
  EXPECT_EQ(parse_method_spec("reprefill:keep=0")->n_keep, 0);
  EXPECT_EQ(parse_method_spec("summary")->kind, Kind::summary);
  EXPECT_EQ(parse_method_spec("retrieval")->kind, Kind::retrieval);
  EXPECT_TRUE(parse_method_spec("retrieval")->has_ratios());
  EXPECT_EQ(parse_method_spec("retrieval:words=20")->n_words, 20);
}

TEST(MethodSpec, NamesTheChoicesOfWhatItDoesNotKnow) {
  const std::pair<const char*, std::vector<const char*>> cases[] = {
      {"magic", {"'magic'", "truncate", "self_study", "retrieval", "kv:TYPE"}},
      {"summary:words=3", {"'words'", "it has none"}},
      {"retrieval:words=0", {"words", "at least 1", "'0'"}},
      {"kv:q8_0+summary", {"'summary'"}},
      {"", {"''", "truncate"}},
      {"shrink", {"'shrink'", "unknown", "truncate"}},
      {"kv:q5_K", {"'q5_K'", "q4_0, q4_1, q5_0, q5_1, q8_0"}},
      {"kv:", {"''", "q5_1, q8_0"}},
      {"kv:q8_0+magic", {"'magic'", "truncate"}},
      {"kv:q8_0+", {"''"}},
      {"kv:q8_0:fit=none", {"cannot hold"}},
      {"kv:q8_0+reprefill", {"'reprefill'"}},
      {"reprefill:keep=-1", {"keep", "'-1'"}},
      {"reprefill:fit=none", {"'fit'", "known: keep"}},
      {"select:colour=red", {"'colour'", "queries, score, weighting, selection, fit, budget, schedule"}},
      {"select:queries=often", {"queries", "'often'", "recent, prefill, repeat_prefill, self_study"}},
      {"select:score=sum", {"score", "'sum'", "recency, max, max_or_unasked, rms, mean, random"}},
      {"select:weighting=1", {"weighting", "'1'", "none, attention_share"}},
      {"select:fit=all", {"fit", "'all'", "none, biases, values, both"}},
      {"select:budget=", {"budget", "''", "uniform, global, sensitivity, profile"}},
      {"select:fit", {"'fit'", "option=value"}},
      {"select:", {"option=value"}},
      {"select:fit=none:", {"option=value"}},
      {"self_study:conversations=0", {"conversations", "'0'"}},
      {"self_study:conversations=12x", {"conversations", "'12x'"}},
      {"self_study:conversations=99999999999", {"conversations", "'99999999999'"}},
  };
  for (const auto& [text, parts] : cases) {
    const auto spec = parse_method_spec(text);
    ASSERT_FALSE(spec.ok()) << text;
    for (const char* part : parts)
      EXPECT_TRUE(contains(spec.error().message, part)) << text << ": " << spec.error().message;
  }
  EXPECT_EQ(parse_method_spec("magic").error().kind, ErrorKind::not_found);
}

}  // namespace
}  // namespace sh::tools
