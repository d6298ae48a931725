// SPDX-License-Identifier: MIT
// compact-eval as a user runs it: the shipped model on the shipped documents, at sizes that take seconds.
#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <filesystem>
#include <map>
#include <set>
#include <sstream>

#include "base/json.h"
#include "tools/eval_data.h"
#include "tools/program.h"

namespace sh::tools {
namespace {

const std::string kModels = std::string(SH_SOURCE_DIR) + "/models";
const std::string kRecall = kModels + "/recall/512.jsonl";
const std::string kProse = kModels + "/prose/room_with_view.txt";
const std::string kStudy = "self_study:conversations=48";
// The full row compares decoding with reading the same tokens in one batch: sums in another order, nothing else.
constexpr double kSummationOrder = 1e-6;

/// What one run wrote.
struct WrittenRun {
  Outcome outcome;
  Json result;
  std::vector<Json> items;

  /// The row of a context and method; null when there is none.
  Json row(const std::string& context, const std::string& method) const {
    for (const Json& row : result["rows"])
      if (row["context"] == context && row["method"] == method) return row;
    return nullptr;
  }
  std::vector<Json> items_of(const std::string& context, const std::string& method) const {
    std::vector<Json> found;
    for (const Json& item : items)
      if (item["context"] == context && item["method"] == method) found.push_back(item);
    return found;
  }
};

WrittenRun run_eval(std::vector<std::string> arguments) {
  const std::string path = temporary("eval.json");
  arguments.insert(arguments.begin(), {"compact-eval", "-m", kScribe, "--json", path});
  WrittenRun run{.outcome = run_program(arguments)};
  EXPECT_EQ(run.outcome.status, 0) << run.outcome.err;
  const auto result = parse_json(slurp(path));
  EXPECT_TRUE(result.ok()) << slurp(path);
  if (result.ok()) run.result = *result;
  std::istringstream lines(slurp(path + ".items.jsonl"));
  for (std::string line; std::getline(lines, line);) {
    const auto item = parse_json(line);
    EXPECT_TRUE(item.ok()) << line;
    if (item.ok()) run.items.push_back(*item);
  }
  unlink(path.c_str());
  unlink((path + ".items.jsonl").c_str());
  return run;
}

int64_t n_questions(int n_documents) {
  std::istringstream lines(slurp(kRecall));
  int64_t n = 0;
  std::string line;
  for (int i = 0; i < n_documents && std::getline(lines, line); ++i) {
    const auto document = parse_json(line);
    EXPECT_TRUE(document.ok());
    if (document.ok()) n += static_cast<int64_t>((*document)["questions"].size());
  }
  return n;
}

void expect_compacted(const Json& row, double ratio) {
  ASSERT_TRUE(row.is_object()) << "the row is missing";
  EXPECT_EQ(row["n_refused"], 0);
  EXPECT_EQ(row["ratio"], ratio);
  EXPECT_GE(row["real_ratio"].get<double>(), ratio) << row["method"];
  const double bytes_before = row["bytes_before"].get<double>(), bytes_after = row["bytes_after"].get<double>();
  EXPECT_NEAR(row["real_ratio"].get<double>(), bytes_before / bytes_after, 1e-9);
  for (const char* key : {"decode_tps_before", "decode_tps_after", "rss_before", "rss_after"})
    EXPECT_GT(row[key].get<double>(), 0) << key;
  EXPECT_GT(row["seconds"]["total"].get<double>(), 0);
  EXPECT_LT(bytes_after, bytes_before);
}

void expect_reference_rows(const WrittenRun& run, const std::string& context) {
  const Json full = run.row(context, "full"), none = run.row(context, "none");
  ASSERT_TRUE(full.is_object() && none.is_object());
  EXPECT_LE(full["kl_p99"].get<double>(), kSummationOrder);
  EXPECT_EQ(full["top1"], 1);
  EXPECT_EQ(full["real_ratio"], 1);
  EXPECT_NEAR(full["recovery"].get<double>(), 1, kSummationOrder);
  EXPECT_NEAR(none["recovery"].get<double>(), 0, kSummationOrder);
  EXPECT_GT(none["kl_mean"].get<double>(), 0.01);
  EXPECT_TRUE(none["ratio"].is_null());
  for (const Json& row : {full, none}) {
    EXPECT_TRUE(row["rss_before"].is_null());
    EXPECT_TRUE(row["seconds"]["total"].is_null());
    EXPECT_GT(row["seconds"]["prefill"].get<double>(), 0);
  }
}

double number(const Json& object, const char* key) {
  return object.at(key).is_null() ? 0 : object.at(key).get<double>();
}

/// Figures of a row against those that its items come to, as docs/compact-eval.md says.
void expect_recomputable(const WrittenRun& run, const std::string& context, const std::string& method) {
  const Json row = run.row(context, method);
  const std::vector<Json> items = run.items_of(context, method), full = run.items_of(context, "full"),
                          none = run.items_of(context, "none");
  const auto expect = [&](const char* key, double numerator, double denominator) {
    if (denominator > 0)
      EXPECT_NEAR(number(row, key), numerator / denominator, 1e-9) << method << " " << key;
    else
      EXPECT_TRUE(row[key].is_null()) << method << " " << key;
  };
  std::map<std::string, double> sums;
  double n_questions = 0, n_tokens = 0, n_with_full = 0, n_absent = 0, kl_max = 0, kept = 0, whole = 0;
  std::vector<double> ranks;
  for (size_t i = 0; i < items.size(); ++i) {
    const Json& item = items[i];
    for (const char* key : {"kl", "top1", "top5", "top10", "logit_cosine", "delta_nll"})
      sums[key] += number(item, key) * number(item, "n_tokens");
    n_tokens += number(item, "n_tokens");
    for (const char* key : {"n_flips", "n_confident", "gain", "gain_kept"}) sums[key] += number(item, key);
    kl_max = std::max(kl_max, number(item, "kl_max"));
    if (item["right"].is_null()) continue;
    const bool is_right = item["right"].get<bool>(), is_right_with_full = item["right_with_full"].get<bool>();
    n_questions += 1;
    sums["right"] += is_right;
    n_with_full += is_right_with_full;
    sums["of_full"] += is_right && is_right_with_full;
    sums["same"] += item["same_as_full"].get<bool>();
    sums["nll"] += number(item, "nll");
    ranks.push_back(number(item, "rank"));
    n_absent += item["kind"] == "absent";
    sums["invented"] += item["kind"] == "absent" && !is_right;
    kept += is_right - none[i]["right"].get<bool>();
    whole += full[i]["right"].get<bool>() - none[i]["right"].get<bool>();
  }
  ASSERT_GT(n_tokens, 0);
  for (const char* key : {"top1", "top5", "top10", "logit_cosine", "delta_nll"}) expect(key, sums[key], n_tokens);
  expect("kl_mean", sums["kl"], n_tokens);
  EXPECT_EQ(number(row, "kl_max"), kl_max);
  expect("confident_flips", sums["n_flips"], sums["n_confident"]);
  expect("recovery", sums["gain_kept"], sums["gain"]);
  expect("recall", sums["right"], n_questions);
  EXPECT_EQ(row["recall_n"], n_questions);
  expect("recall_of_full", sums["of_full"], n_with_full);
  expect("same_as_full", sums["same"], n_questions);
  expect("hallucination", sums["invented"], n_absent);
  expect("answer_nll", sums["nll"], n_questions);
  expect("recall_normalised", kept, whole);
  if (ranks.empty()) return;
  std::sort(ranks.begin(), ranks.end());
  EXPECT_EQ(number(row, "answer_rank"), (ranks[(ranks.size() - 1) / 2] + ranks[ranks.size() / 2]) / 2);
}

TEST(CompactEval, MeasuresRecallOfTheFullNoAndCompactedCaches) {
  const std::vector<std::string> flags = {"--recall", kRecall,     "--ratios",
                                          "4",        "--methods", "truncate,select," + kStudy};
  std::vector<std::string> two = flags, one = flags;
  two.insert(two.end(), {"--docs", "2", "-t", "2"});
  one.insert(one.end(), {"--docs", "1", "-t", "1"});
  const WrittenRun run = run_eval(two);
  ASSERT_TRUE(run.result.is_object());
  EXPECT_EQ(run.result["schema"], 1);
  EXPECT_EQ(run.result["model"]["file"], "scribe.gguf");
  ASSERT_EQ(run.result["rows"].size(), 7u) << "the scale of verdicts stands in the table though nobody named it";
  expect_reference_rows(run, "512");
  const int64_t n = n_questions(2);
  EXPECT_EQ(run.row("512", "select")["recall_excess"]["reference"], "truncate");
  EXPECT_EQ(run.row("512", "kv:q8_0")["verdict"], "transparent") << "by definition";
  EXPECT_FALSE(run.row("512", "select")["verdict"].is_null());
  EXPECT_NE(run.row("512", "truncate")["verdict"], "transparent")
      << "a quarter of the text is not as good as q8_0";
  ASSERT_GT(run.result["heads"].size(), 0u);
  for (const Json& head : run.result["heads"]) EXPECT_GT(head["rows"].get<double>(), 0);
  for (const char* method : {"full", "none", "truncate", "select", kStudy.c_str(), "kv:q8_0", "kv:q4_0"}) {
    const Json row = run.row("512", method);
    ASSERT_TRUE(row.is_object()) << method;
    EXPECT_EQ(row["n_docs"], 2) << method;
    EXPECT_EQ(row["recall_n"], n) << method;
    EXPECT_LE(row["recall_ci"][0].get<double>(), row["recall"].get<double>()) << method;
    EXPECT_GE(row["recall_ci"][1].get<double>(), row["recall"].get<double>()) << method;
    EXPECT_EQ(static_cast<int64_t>(run.items_of("512", method).size()), n) << method;
    EXPECT_TRUE(contains(run.outcome.out, "| 512     | " + std::string(method))) << run.outcome.out;
  }
  EXPECT_EQ(static_cast<int64_t>(run.items.size()), 7 * n);

  const auto recall = [&](const char* method) { return run.row("512", method)["recall"].get<double>(); };
  for (const char* method : {"truncate", "select", kStudy.c_str()}) expect_compacted(run.row("512", method), 4);
  EXPECT_GT(run.row("512", "truncate")["kl_mean"].get<double>(), 1000 * kSummationOrder)
      << "a cache that lost three quarters of its text is not the full one";
  EXPECT_EQ(run.row("512", "full")["recall_of_full"], 1);
  EXPECT_GE(recall("full"), 0.9) << "the documents fit the model";
  EXPECT_LT(recall("none"), 0.5) << "the answers cannot be guessed";
  EXPECT_GE(recall(kStudy.c_str()), recall("truncate"));
  EXPECT_GE(recall(kStudy.c_str()), 0.9 * recall("full"));
  EXPECT_EQ(run.row("512", kStudy)["options"], Json({{"conversations", "48"}}));
  EXPECT_TRUE(run.row("512", "truncate")["fallback_heads"].is_null()) << "truncate measures no error";

  for (const char* method : {"full", "none", "truncate", "select", kStudy.c_str(), "kv:q8_0"})
    expect_recomputable(run, "512", method);
  EXPECT_GT(run.row("512", kStudy)["log_mass"].get<double>(), 0);
  EXPECT_LE(std::fabs(run.row("512", kStudy)["log_mass_mean"].get<double>()),
            run.row("512", kStudy)["log_mass"].get<double>());
  EXPECT_GE(run.row("512", kStudy)["peak_extra_bytes"].get<double>(), 0);
  EXPECT_LT(run.row("512", kStudy)["worse_heads"].get<double>(), 0.1);
  EXPECT_EQ(run.row("512", "full")["answer_rank"], 1);
  EXPECT_GT(run.row("512", "none")["answer_rank"].get<double>(), 1);
  EXPECT_GT(run.row("512", "none")["answer_nll"].get<double>(),
            run.row("512", "full")["answer_nll"].get<double>());
  EXPECT_LT(run.row("512", "none")["top10"].get<double>(), run.row("512", kStudy)["top10"].get<double>());

  // Neither the number of threads nor the documents that come after change anything.
  const WrittenRun again = run_eval(one);
  ASSERT_EQ(static_cast<int64_t>(again.items.size()), 7 * n_questions(1));
  for (const Json& item : again.items) {
    const auto same = std::find_if(run.items.begin(), run.items.end(), [&](const Json& other) {
      return other["method"] == item["method"] && other["doc"] == item["doc"] && other["item"] == item["item"];
    });
    ASSERT_NE(same, run.items.end());
    EXPECT_EQ(*same, item);
  }
}

TEST(CompactEval, MeasuresProseAndSaysWhatItCouldNotCompact) {
  // Ratio and method given twice count once; a recall file that --contexts does not name is left out.
  const WrittenRun run = run_eval({"--prose", kProse, "--recall", kRecall, "--contexts", "64,256", "--docs", "2",
                                   "--ratios", "4,4", "--methods", "select,select", "-t", "2"});
  ASSERT_TRUE(run.result.is_object());
  ASSERT_EQ(run.result["rows"].size(), 10u) << run.outcome.out;
  EXPECT_EQ(run.items.size(), 2u * 5 + 2 * 4) << "two passages a row, none in the refused one";
  expect_reference_rows(run, "prose-64");
  expect_reference_rows(run, "prose-256");

  const Json select = run.row("prose-256", "select");
  expect_compacted(select, 4);
  expect_recomputable(run, "prose-256", "select");
  EXPECT_EQ(select["n_docs"], 2);
  // The beginning of text and 255 tokens: the last one of the context is fed after the compaction.
  EXPECT_EQ(select["n_tokens"], 256);
  EXPECT_TRUE(select["recall"].is_null());
  EXPECT_LT(select["kl_mean"].get<double>(), run.row("prose-256", "none")["kl_mean"].get<double>())
      << "a quarter of a context is better than none";

  // The blocks that must stay are more than a quarter of so short a context.
  const Json refused = run.row("prose-64", "select");
  EXPECT_EQ(refused["n_docs"], 0);
  EXPECT_EQ(refused["n_refused"], 2);
  EXPECT_TRUE(refused["kl_mean"].is_null());
  EXPECT_TRUE(contains(run.outcome.err, "prose-64 select 4x refused")) << run.outcome.err;

  for (const Json& item : run.items) {
    EXPECT_EQ(item["kind"], "prose");
    EXPECT_TRUE(item["right"].is_null());
    EXPECT_GT(item["nll"].get<double>(), 0);
  }
}

TEST(CompactEval, ComparesWithQuantisedShiftedAndRereadCaches) {
  const std::string both = "kv:q4_0+self_study:conversations=48", study8 = "kv:q8_0+" + kStudy;
  const WrittenRun run =
      run_eval({"--recall", kRecall, "--docs", "2", "--ratios", "6", "--methods",
                kStudy + ",reprefill,full:rerun,kv:q8_0,kv:q4_0," + both + "," + study8, "-t", "2"});
  ASSERT_TRUE(run.result.is_object());
  const auto kl = [&](const std::string& method) { return run.row("512", method)["kl_mean"].get<double>(); };

  // Another size of pieces changes the order of sums at most.
  EXPECT_LE(kl("full:rerun"), kSummationOrder);
  EXPECT_EQ(run.row("512", "full:rerun")["real_ratio"], 1);
  EXPECT_TRUE(run.row("512", "full:rerun")["verdict"].is_null());

  // 32 values of 2 bytes against 34 and 18 bytes.
  EXPECT_NEAR(run.row("512", "kv:q8_0")["real_ratio"].get<double>(), 64.0 / 34, 0.01);
  EXPECT_NEAR(run.row("512", "kv:q4_0")["real_ratio"].get<double>(), 64.0 / 18, 0.01);
  EXPECT_EQ(run.row("512", "kv:q4_0")["ratio"], 3.56);
  EXPECT_GT(kl("kv:q8_0"), 0) << "it is another cache than the full one";
  EXPECT_LT(kl("kv:q8_0"), kl("kv:q4_0"));
  EXPECT_EQ(run.row("512", "kv:q8_0")["verdict"], "transparent") << "by definition";

  // Selection and quantisation together reach the ratio in real bytes of the f16 cache; the fit reads what the
  // quantised cache holds, so that little is added to the loss of the encoding.
  for (const std::string& method : {both, study8}) {
    const Json row = run.row("512", method);
    ASSERT_TRUE(row.is_object()) << method;
    EXPECT_EQ(row["n_refused"], 0) << method;
    EXPECT_EQ(row["n_docs"], 2) << method;
    EXPECT_GE(row["real_ratio"].get<double>(), 6) << method;
    EXPECT_LT(row["real_ratio"].get<double>(), 8) << method;
    EXPECT_GE(row["recall_of_full"].get<double>(), 0.8) << method;
  }
  EXPECT_LT(kl(both), 0.1 * kl("none"));
  EXPECT_LT(kl(study8), 0.1 * kl("none"));

  // The text that fits, read afresh, has no facts of the part that was cut off.
  const Json shifted = run.row("512", "reprefill");
  EXPECT_GE(shifted["real_ratio"].get<double>(), 6);
  EXPECT_LT(shifted["recall"].get<double>(), run.row("512", kStudy)["recall"].get<double>());
  EXPECT_GT(shifted["seconds"]["total"].get<double>(), 0);
  EXPECT_EQ(shifted["recall_excess"]["reference"], kStudy);
  EXPECT_LT(shifted["recall_excess"]["difference"].get<double>(), 0);
}

TEST(CompactEval, ComparesWithTextOfTheSameBytes) {
  const WrittenRun run =
      run_eval({"--recall", kRecall, "--prose", kProse, "--contexts", "512,64", "--docs", "2", "--ratios", "4,64",
                "--methods", "retrieval,reprefill,summary,retrieval:words=100000", "-t", "2"});
  const Json retrieval = run.row("512", "retrieval"), summary = run.row("512", "summary");
  for (const Json& row : {retrieval, summary}) {
    ASSERT_TRUE(row.is_object());
    EXPECT_EQ(row["ratio"], 4);
    EXPECT_GE(row["real_ratio"].get<double>(), 4);
    EXPECT_EQ(row["n_docs"], 2);
    EXPECT_EQ(row["recall_n"], n_questions(2));
    EXPECT_GT(row["seconds"]["total"].get<double>(), 0);
    EXPECT_GT(row["decode_tps_after"].get<double>(), 0);
    EXPECT_FALSE(row["verdict"].is_null());
  }
  expect_recomputable(run, "512", "retrieval");
  // A fact's sentence names what it is about, so that looking it up finds it; the newest text has a quarter of them.
  EXPECT_GE(retrieval["recall"].get<double>(), 0.9);
  EXPECT_LT(run.row("512", "reprefill")["recall"].get<double>(), 0.6);
  EXPECT_EQ(run.row("512", "reprefill")["recall_excess"]["reference"], "retrieval");
  // One passage that is all of the document does not fit: its beginning is taken, the same for every question.
  const Json beginning = run.row("512", "retrieval:words=100000");
  EXPECT_LT(beginning["real_ratio"].get<double>(), 5) << "and fills the bytes";
  EXPECT_LT(beginning["recall"].get<double>(), 0.6);

  // Nothing fits a 64th of 512 tokens; of passages neither is measured.
  int n_refused = 0;
  for (const Json& row : run.result["rows"]) {
    EXPECT_FALSE(row["context"] == "prose-64" && (row["method"] == "summary" || row["method"] == "retrieval"));
    if (row["ratio"] != 64 || row["context"] != "512") continue;
    EXPECT_EQ(row["n_refused"], 2) << row["method"];
    ++n_refused;
  }
  EXPECT_EQ(n_refused, 4);
  EXPECT_TRUE(contains(run.outcome.err, "the template alone takes")) << run.outcome.err;
}

TEST(CompactEval, RefusesAnEncodingThatDoesNotSuitTheModel) {
  // Its heads of 16 values are half a block of q8_0.
  const Outcome outcome =
      run_program({"compact-eval", "-m", kGolden + "llama.gguf", "--prose", kProse, "--contexts", "64", "--docs",
                   "1", "--ratios", "2", "--methods", "kv:q8_0,kv:q8_0+truncate,truncate", "-c", "512"});
  EXPECT_EQ(outcome.status, 0) << outcome.err;
  for (const char* method : {"kv:q8_0", "kv:q8_0+truncate"})
    EXPECT_TRUE(contains(outcome.err, std::string("prose-64 ") + method)) << outcome.err;
  EXPECT_TRUE(contains(outcome.err, "refused: room_with_view-0: ")) << outcome.err;
  EXPECT_TRUE(contains(outcome.out, "| truncate")) << "the others are measured";
  EXPECT_TRUE(contains(outcome.err, "prose-64: no verdicts: they compare with q8_0 and q4_0 caches"))
      << outcome.err;
}

TEST(CompactEval, ReadsMultipleChoice) {
  const std::string quality = temporary("mill.jsonl"), health = temporary("patients.json");
  std::ofstream(quality)
      << R"({"article_id": "7", "article": "The mill stood on the hill. Cy kept the mill.", )"
      << R"("questions": [{"question": "Who kept the mill?", "options": ["Ann", "Bo", "Cy", "Di"], )"
      << R"("gold_label": 3}]})"
      << "\n";
  std::ofstream(health)
      << R"({"p1": {"name": "N", "birthday": "1.1.50", "diagnosis": "Gout", "texts": {"t": "He takes )"
      << R"(Beta."}, "questions": [{"question": "Which drug?", "answer_a": "Alpha", )"
      << R"("answer_b": "Beta", "answer_c": "Gamma", "answer_d": "Delta", "answer_e": "None", )"
      << R"("correct": "Beta"}]}})";
  const WrittenRun run = run_eval(
      {"--quality", quality, "--longhealth", health, "--qa-tokens", "12", "--methods", "full:rerun", "-t", "2"});
  for (const std::string& context : {label_of(quality), std::string("longhealth-1")}) {
    const Json row = run.row(context, "full");
    ASSERT_TRUE(row.is_object()) << context;
    EXPECT_EQ(row["recall_n"], 1);
    EXPECT_FALSE(row["unparsed"].is_null());
    EXPECT_FALSE(row["recall_by_likelihood"].is_null());
    const auto items = run.items_of(context, "full");
    ASSERT_EQ(items.size(), 1u);
    EXPECT_EQ(items[0]["kind"], "choice");
    EXPECT_TRUE(items[0]["likeliest"].is_boolean());
    EXPECT_GT(items[0]["nll"].get<double>(), 0);
    EXPECT_EQ(run.row(context, "full:rerun")["top1"], 1) << "the compared answer is the full cache's own";
  }
  // Options come in an order of their own for every seed; 1 is the default.
  std::set<std::string> orders;
  for (const char* seed : {"1", "2", "3", "4"}) {
    const WrittenRun other =
        run_eval({"--quality", quality, "--qa-tokens", "4", "--methods", "full:rerun", "--seed", seed, "-t", "2"});
    ASSERT_FALSE(other.items.empty());
    orders.insert(other.items[0]["question"].get<std::string>());
    if (std::string(seed) == "1") {
      EXPECT_EQ(other.items[0]["question"], run.items[0]["question"]);
    }
  }
  EXPECT_GT(orders.size(), 1u);
  unlink(quality.c_str());
  unlink(health.c_str());
}

TEST(CompactEval, TellsDocumentsOfOneIdApart) {
  const std::string recall = temporary("twins.jsonl"), quality = temporary("articles.jsonl");
  const std::string line = R"({"id": "a", "context": "The @ is red.", "questions": [{"q": "Colour of the @?", )"
                           R"("answer": "red"}]})";
  const std::string article = R"({"article_id": "7", "article": "Cy kept the @.", "questions": [{"question": )"
                              R"("Who kept the @?", "options": ["Ann", "Cy"], "gold_label": 2}]})";
  const auto about = [](std::string text, const std::string& thing) {
    for (size_t at; (at = text.find('@')) != std::string::npos;) text.replace(at, 1, thing);
    return text + "\n";
  };
  std::ofstream(recall) << about(line, "door") << about(line, "wall") << about(line, "roof");
  std::ofstream(quality) << about(article, "mill") << about(article, "mill") << about(article, "farm");
  const WrittenRun run = run_eval(
      {"--recall", recall, "--quality", quality, "--qa-tokens", "4", "--methods", "full:rerun", "-t", "2"});
  const auto documents = [&](const std::string& file) {
    std::vector<std::string> ids;
    for (const Json& item : run.items_of(label_of(file), "full")) ids.push_back(item["doc"].get<std::string>());
    return ids;
  };
  EXPECT_EQ(documents(recall), (std::vector<std::string>{"a", "a (2)", "a (3)"}));
  EXPECT_EQ(documents(quality), (std::vector<std::string>{"7", "7", "7 (2)"})) << "one text is one article";
  EXPECT_TRUE(contains(run.outcome.err, "'a' too; that of " + recall + ":2 is called 'a (2)'")) << run.outcome.err;
  EXPECT_TRUE(contains(run.outcome.err, "'7' too; that of " + quality + ":3 is called '7 (2)'"))
      << run.outcome.err;
  unlink(recall.c_str());
  unlink(quality.c_str());
}

TEST(CompactEval, LeavesWholeLinesWhenItIsStopped) {
  const std::string path = temporary("stopped.json"), earlier = path + ".items.jsonl", lines = earlier + ".part";
  std::ofstream(earlier) << "of an earlier run\n";
  const RunningProgram program({"compact-eval", "-m", kScribe, "--recall", kRecall, "--docs", "40", "--ratios",
                                "2,4,8", "--methods", "select,truncate", "--json", path, "-t", "1"});
  for (int i = 0; i < 6000 && slurp(lines).empty(); ++i) usleep(5000);
  program.send(SIGKILL);
  EXPECT_EQ(program.finish().status, 128 + SIGKILL);
  const std::string written = slurp(lines);
  ASSERT_FALSE(written.empty());
  EXPECT_EQ(written.back(), '\n');
  std::istringstream stream(written);
  for (std::string line; std::getline(stream, line);) EXPECT_TRUE(parse_json(line).ok()) << line;
  EXPECT_EQ(slurp(path), "") << "the result is written at the end";
  EXPECT_EQ(slurp(earlier), "of an earlier run\n");
  unlink(lines.c_str());
  unlink(earlier.c_str());
}

const std::vector<std::string> kShortRun = {"compact-eval", "-m",       kScribe, "--recall", kRecall,
                                            "--docs",       "1",        "-t",    "2",        "--methods",
                                            "select",       "--ratios", "4"};

std::vector<std::string> short_run(const std::vector<std::string>& more) {
  std::vector<std::string> arguments = kShortRun;
  arguments.insert(arguments.end(), more.begin(), more.end());
  return arguments;
}

TEST(CompactEval, KnowsBeforeItMeasuresWhatItCannotWrite) {
  const std::string folder = testing::TempDir(), json = temporary("same.json");
  const std::pair<std::vector<std::string>, const char*> cases[] = {
      {{"--json", folder}, "--json: cannot write"},
      {{"--html", folder}, "--html: cannot write"},
      {{"--html", "/no/such/page.html"}, "there is no folder '/no/such'"},
      {{"--json", "/no/such/out.json"}, "there is no folder '/no/such'"},
      {{"--json", json, "--html", json}, "--json and --html are the same file"},
      {{"--json", json, "--html", folder + "/./" + json.substr(folder.size())}, "are the same file"},
      {{"--json", json, "--html", json + ".items.jsonl"}, "--json's items and --html are the same file"},
      {{"--json", kRecall}, "--recall and --json are the same file"},
      {{"--compact-profile", json, "--json", json}, "--compact-profile and --json are the same file"},
  };
  for (const auto& [flags, part] : cases) {
    const Outcome outcome = run_program(short_run(flags));
    EXPECT_EQ(outcome.status, 1) << part;
    EXPECT_TRUE(contains(outcome.err, part)) << part << ": " << outcome.err;
    EXPECT_FALSE(contains(outcome.err, "of 1 documents")) << "nothing was measured: " << outcome.err;
    EXPECT_EQ(outcome.out, "") << part;
  }
}

TEST(CompactEval, NamesAMissingModel) {
  for (const auto& [arguments, part] : std::vector<std::pair<std::vector<std::string>, const char*>>{
           {{"compact-eval"}, "no model given: name a GGUF file with -m FILE"},
           {{"compact-eval", "-m", "/no/such/model.gguf"}, "/no/such/model.gguf"},
           {{"compact-eval", "-m", "/no/such/model.gguf", "-c", "512"}, "cannot open '/no/such/model.gguf'"}}) {
    const Outcome outcome = run_program(arguments);
    EXPECT_EQ(outcome.status, 1);
    EXPECT_TRUE(contains(outcome.err, part)) << outcome.err;
    EXPECT_FALSE(contains(outcome.err, "nothing to measure")) << outcome.err;
  }
}

TEST(CompactEval, RefusesToLeaveNothing) {
  const WrittenRun run =
      run_eval({"--recall", kRecall, "--docs", "1", "--ratios", "1000", "--methods", "truncate"});
  const Json row = run.row("512", "truncate");
  EXPECT_EQ(row["n_refused"], 1);
  EXPECT_TRUE(row["bytes_after"].is_null()) << "not measured, and no cache of nothing";
  EXPECT_TRUE(contains(run.outcome.err, "no block of the context would be left")) << run.outcome.err;
}

TEST(CompactEval, WritesThroughLinksAndIntoDevices) {
  namespace fs = std::filesystem;
  const std::string file = temporary("linked.json"), link = temporary("link.json");
  fs::create_symlink(file, link);
  EXPECT_EQ(run_program(short_run({"--json", link, "--html", "/dev/null"})).status, 0);
  EXPECT_TRUE(fs::is_symlink(link));
  EXPECT_TRUE(fs::is_character_file("/dev/null"));
  EXPECT_TRUE(parse_json(slurp(file)).ok());
  EXPECT_FALSE(fs::exists(link + ".items.jsonl.part"));

  // A full device is an error, and what was there stays.
  const Outcome full = run_program(short_run({"--json", "/dev/full"}));
  EXPECT_EQ(full.status, 1);
  EXPECT_TRUE(contains(full.err, "No space left")) << full.err;
  EXPECT_TRUE(contains(full.err, "items are not written")) << full.err;
  EXPECT_TRUE(fs::is_character_file("/dev/full"));
  EXPECT_FALSE(fs::exists("/dev/full.items.jsonl"));

  // Also where it is the standard output; the files are written all the same.
  unlink(file.c_str());
  std::vector<std::string> arguments = short_run({"--json", link});
  std::string command = SH_PROGRAM;
  for (const std::string& argument : arguments) command += " '" + argument + "'";
  const std::string err = temporary("full_err");
  EXPECT_EQ(WEXITSTATUS(std::system((command + " > /dev/full 2> '" + err + "'").c_str())), 1);
  EXPECT_TRUE(contains(slurp(err), "error: cannot write to the standard output: No space left")) << slurp(err);
  EXPECT_TRUE(parse_json(slurp(file)).ok());
  for (const std::string& path : {file, link, link + ".items.jsonl", err}) unlink(path.c_str());
}

TEST(CompactEval, NamesWhatIsWrongAndFails) {
  const std::string malformed = temporary("bad.jsonl");
  std::ofstream(malformed) << "{\"context\": 1}\n";
  const std::pair<std::vector<std::string>, const char*> cases[] = {
      {{"--recall", "/no/such/512.jsonl"}, "/no/such/512.jsonl"},
      {{"--prose", "/no/such/book.txt"}, "/no/such/book.txt"},
      {{"--recall", malformed}, "bad.jsonl:1"},
      // The name of the recall file is taken beside the length of the prose.
      {{"--recall", malformed, "--prose", kProse, "--contexts", label_of(malformed) + ",64"}, "bad.jsonl:1"},
      {{"--recall", kRecall, "--ratios", "0.5"}, "0.5"},
      {{"--recall", kRecall, "--ratios", "2,many"}, "many"},
      {{"--recall", kRecall, "--docs", "0"}, "--docs"},
      {{"--recall", kRecall, "--ratios", ""}, "--ratios: expected one number at least"},
      {{"--recall", kRecall, "--methods", ","}, "--methods: expected one name at least"},
      {{"--recall", ""}, "--recall: expected one name at least"},
      {{"--recall", kRecall, "-s", "-1"}, "-s: expected a whole number from 0"},
      {{"--recall", kRecall, "-p", "text"}, "'-p' is not an argument of 'shorthand compact-eval'"},
      {{"--recall", kRecall, "-np", "2"}, "'-np' is not an argument"},
      {{"--quality", malformed}, "bad.jsonl:1"},
      {{"--longhealth", "/no/such/health.json"}, "/no/such/health.json"},
      {{"--recall", kRecall, "--methods", "kv:q5_K"}, "cannot hold a KV cache"},
      {{"--recall", kRecall, "--methods", "magic"}, "unknown compaction method 'magic'"},
      {{"--recall", kRecall, "--methods", "select:fit=all"}, "none, biases, values, both"},
      {{"--recall", kRecall, "--methods", "shrink"}, "unknown compaction method 'shrink'"},
      {{"--recall", kRecall, "--contexts", "513"}, "no --prose that a length could be cut from); got '513'"},
      {{"--recall", kRecall, "--contexts", "512,1024"}, "got '1024'"},
      {{"--recall", kRecall, "--contexts", "longhealth-5"}, "got 'longhealth-5'"},
      {{"--prose", kProse, "--contexts", "short"}, "'short'"},
      {{"--prose", kProse, "--contexts", "31"}, "at least 32"},
      {{"--prose", kProse, "--contexts", "99999999999999999999"}, "--contexts"},
      {{"--prose", kProse, "--contexts", "1000000000"}, "nothing measured"},
      {{"--recall", kRecall, "-c", "128"}, "nothing measured"},
      {{"--recall", kRecall, "--recall", kRecall}, "more than one file named '512'"},
  };
  for (const auto& [flags, part] : cases) {
    std::vector<std::string> arguments = {"compact-eval", "-m", kScribe, "--docs", "1"};
    arguments.insert(arguments.end(), flags.begin(), flags.end());
    const Outcome outcome = run_program(arguments);
    EXPECT_EQ(outcome.status, 1) << part << ": " << outcome.err;
    EXPECT_TRUE(contains(outcome.err, part)) << part << ": " << outcome.err;
    EXPECT_EQ(outcome.out, "") << part;
  }
  unlink(malformed.c_str());
}

}  // namespace
}  // namespace sh::tools
