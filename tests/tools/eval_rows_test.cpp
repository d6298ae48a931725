// SPDX-License-Identifier: MIT
// What compact-eval writes: rows, comparisons of rows, breakdowns, the table, and the page that promises their
// keys.
#include <algorithm>
#include <limits>
#include <regex>
#include <set>
#include <sstream>

#include "compaction/method.h"
#include "tools/compact_eval.h"
#include "tools/program.h"
#include "tools/table.h"

namespace sh::tools {
namespace {

constexpr double kInf = std::numeric_limits<double>::infinity();

// ---- what it prints ----

TEST(Table, PadsByWhatIsSeenAndNotByBytes) {
  Table table({"name", "a", "count"}, 1);
  table.add({"caf\u00e9", "\u00d7", "7"});
  table.add({"a longer one", "1234", "1234567"});
  EXPECT_EQ(table.markdown(),
            "| name         |    a |   count |\n"
            "|--------------|-----:|--------:|\n"
            "| caf\u00e9         |    \u00d7 |       7 |\n"
            "| a longer one | 1234 | 1234567 |\n");
}

/// A cell with one question and one document.
EvalCell measured_cell(const std::string& method) {
  EvalItem item{.context = "512", .document = "d", .kind = "fact", .method = method};
  item.depth = 0.5;
  item.ratio = 4;
  item.expected = item.answer = "42";
  item.has_answer = item.is_right = item.is_right_with_full = item.is_same_as_full = true;
  item.tokens = {{.kl = 0.25, .nll_full = 1, .nll_compact = 1.5, .nll_none = 3, .is_same_top1 = true}};
  item.tokens[0].is_confident = true;
  item.overlaps = {{.top5 = 0.8, .top10 = 0.9, .cosine = 0.99}};
  item.nll = 2;
  item.rank = 3;
  EvalCell cell{.context = "512", .method = method, .ratio = 4};
  cell.items.push_back(item);
  EvalCost cost;
  cost.n_tokens = 400;
  cost.bytes_before = 8000;
  cost.bytes_after = 1600;
  cost.seconds_total = 2;
  cell.costs.push_back(cost);
  return cell;
}

TEST(EvalRow, HoldsWhatWasMeasured) {
  const Json row = row_json(measured_cell("select"), 1);
  EXPECT_EQ(row["context"], "512");
  EXPECT_EQ(row["n_docs"], 1);
  EXPECT_EQ(row["n_refused"], 0);
  EXPECT_EQ(row["ratio"], 4);
  EXPECT_EQ(row["real_ratio"], 5);
  EXPECT_EQ(row["recall"], 1);
  EXPECT_EQ(dump_json(row["recall_n"]), "1");
  EXPECT_EQ(row["recall_of_full"], 1);
  EXPECT_TRUE(row["asked_in_study"].is_null()) << "there was no study";
  EXPECT_EQ(row["lost"], Json::array());
  EXPECT_EQ(row["kl_mean"], 0.25);
  EXPECT_EQ(row["kl_ci"], Json::array({0.25, 0.25}));
  EXPECT_EQ(row["kl_max"], 0.25);
  EXPECT_EQ(row["top1"], 1);
  EXPECT_EQ(row["top5"], 0.8);
  EXPECT_EQ(row["top10"], 0.9);
  EXPECT_EQ(row["logit_cosine"], 0.99);
  EXPECT_EQ(row["answer_nll"], 2);
  EXPECT_EQ(row["answer_rank"], 3);
  EXPECT_TRUE(row["hallucination"].is_null()) << "nothing was asked that has no answer";
  EXPECT_EQ(row["confident_flips"], 0);
  EXPECT_EQ(row["delta_nll"], 0.5);
  EXPECT_EQ(row["recovery"], 0.75);
  EXPECT_EQ(row["seconds"]["total"], 2);
  EXPECT_TRUE(row["rss_before"].is_null()) << "memory was not measured";
  EXPECT_TRUE(row["decode_tps_before"].is_null());
}

TEST(EvalRow, SaysWhenACompactionHasPaidOff) {
  EvalCell cell = measured_cell("select");
  cell.costs.push_back(cell.costs[0]);
  cell.costs[0].decode_tps_before = 100;  // 2 seconds for 0.01 - 0.008 seconds a token
  cell.costs[0].decode_tps_after = 125;
  cell.costs[1].seconds_total = 4;
  const Json row = row_json(cell, 1);
  EXPECT_NEAR(row["break_even_tokens"].get<double>(), 1000, 1e-9);
  EXPECT_EQ(row["seconds"]["total"], 3);
  EXPECT_EQ(row["seconds"]["total_p50"], 3);
  EXPECT_DOUBLE_EQ(row["seconds"]["total_p95"].get<double>(), 3.9);
  cell.costs[0].decode_tps_after = 99;
  EXPECT_TRUE(row_json(cell, 1)["break_even_tokens"].is_null()) << "a slower cache never pays";
}

TEST(EvalRow, CountsAnswersToWhatHasNone) {
  EvalCell cell{.context = "512", .method = "select"};
  for (const bool is_right : {true, true, false, true}) {
    EvalItem item = measured_cell("select").items[0];
    item.kind = "absent";
    item.is_right = is_right;
    cell.items.push_back(item);
  }
  cell.items[0].kind = "direct";
  EXPECT_DOUBLE_EQ(row_json(cell, 1)["hallucination"].get<double>(), 1.0 / 3);
}

TEST(EvalRow, IsNullAndNeverZeroWhereNothingWasMeasured) {
  // Every document was refused: all but labels and counts is unknown.
  EvalCell refused{.context = "512", .method = "select", .ratio = 64};
  refused.refusals.push_back("d: too small");
  const Json row = row_json(refused, 1);
  const std::set<std::string> known = {"context", "method",    "options",  "ratio",
                                       "n_docs",  "n_refused", "recall_n", "seconds"};
  for (const auto& [key, value] : row.items())
    EXPECT_EQ(value.is_null(), !known.contains(key)) << key << " is " << dump_json(value);
  for (const auto& [key, value] : row["seconds"].items()) EXPECT_TRUE(value.is_null()) << "seconds." << key;
  EXPECT_EQ(row["n_refused"], 1);

  // The reference rows are not compactions, and no context has no ratio.
  const Json full = row_json(measured_cell("full"), 1), none = row_json(measured_cell("none"), 1);
  for (const char* key : {"asked_in_study", "heldout_plain", "heldout_fitted", "fallback_heads"})
    EXPECT_TRUE(full[key].is_null()) << key;
  EXPECT_TRUE(none["ratio"].is_null());

  // Prose has no answers.
  EvalCell prose = measured_cell("select");
  prose.items[0].has_answer = false;
  const Json passage = row_json(prose, 1);
  for (const char* key :
       {"recall", "recall_ci", "recall_of_full", "same_as_full", "asked_in_study", "recall_not_asked_in_study"})
    EXPECT_TRUE(passage[key].is_null()) << key;
  EXPECT_EQ(passage["kl_mean"], 0.25);
  EXPECT_TRUE(item_json(prose.items[0])["answer"].is_null());
}

// ---- several cells of one context ----

/// A cell with one answered question in each of some documents, all with the same KL.
EvalCell answered_cell(const std::string& method, double ratio, const std::vector<bool>& right, double kl) {
  EvalCell cell{.context = "512", .method = method, .ratio = ratio};
  for (size_t i = 0; i < right.size(); ++i) {
    EvalItem item{.context = "512", .document = "d" + std::to_string(i), .kind = "fact", .method = method};
    item.ratio = ratio;
    item.depth = 0.05 + 0.1 * static_cast<double>(i % 10);
    item.has_answer = item.is_right_with_full = true;
    item.is_right = right[i];
    item.first_distance = 16;
    item.tokens = {{.kl = kl, .nll_full = 1, .nll_compact = 1 + kl, .nll_none = 3, .is_same_top1 = true},
                   {.kl = kl, .nll_full = 1, .nll_compact = 1 + kl, .nll_none = 3, .is_same_top1 = true}};
    for (TokenComparison& t : item.tokens) t.is_confident = true;
    cell.items.push_back(item);
    cell.costs.push_back({});
  }
  return cell;
}

std::vector<bool> right_of(size_t n, size_t n_right) {
  std::vector<bool> out(n, false);
  std::fill_n(out.begin(), n_right, true);
  return out;
}

/// Rows of a run by "method ratio".
std::map<std::string, Json> compared(const EvalRun& run, const std::string& reference) {
  std::vector<Json> rows;
  for (const EvalCell& cell : run.cells) rows.push_back(row_json(cell, 1));
  compare_rows(run, reference, 1, rows);
  std::map<std::string, Json> out;
  for (const Json& row : rows) out[row["method"].get<std::string>()] = row;
  return out;
}

std::vector<std::string> missing_verdicts(const EvalRun& run) {
  std::vector<Json> rows;
  for (const EvalCell& cell : run.cells) rows.push_back(row_json(cell, 1));
  return compare_rows(run, "", 1, rows);
}

EvalRun anchored(std::vector<EvalCell> cells, bool with_kv_rows = true) {
  EvalRun run{.cells = std::move(cells)};
  run.cells.push_back(answered_cell("full", 1, right_of(20, 20), 0));
  run.cells.push_back(answered_cell("none", 0, right_of(20, 0), 2));
  if (!with_kv_rows) return run;
  run.cells.push_back(answered_cell("kv:q8_0", 1.88, right_of(20, 20), 1e-4));
  run.cells.push_back(answered_cell("kv:q4_0", 3.56, right_of(20, 20), 1e-2));
  return run;
}

TEST(CompareRows, NormalisesBetweenNoContextAndFull) {
  EvalRun run = anchored({answered_cell("select", 8, right_of(20, 12), 0.1)});
  run.cells[2] = answered_cell("none", 0, right_of(20, 4), 2);
  const Json row = compared(run, "select").at("select");
  EXPECT_DOUBLE_EQ(row["recall_normalised"].get<double>(), (12.0 - 4) / (20 - 4));
  EXPECT_LT(row["recall_normalised_ci"][0].get<double>(), 0.5);
  EXPECT_GT(row["recall_normalised_ci"][1].get<double>(), 0.5);
}

TEST(CompareRows, CountsPairedDifferencesAgainstTheReferenceAtTheSameRatio) {
  std::vector<bool> other = right_of(20, 14);
  other[0] = false;
  other[19] = true;  // 13 of the reference's 18 and one that it lacks
  const EvalRun run =
      anchored({answered_cell("self_study", 8, right_of(20, 18), 1e-5), answered_cell("select", 8, other, 3e-3),
                answered_cell("solver", 16, other, 3e-3)});
  const auto rows = compared(run, "self_study");
  const Json& excess = rows.at("select")["recall_excess"];
  EXPECT_EQ(excess["reference"], "self_study");
  EXPECT_EQ(excess["only_this"], 1);
  EXPECT_EQ(excess["only_reference"], 5);
  EXPECT_DOUBLE_EQ(excess["difference"].get<double>(), -4.0 / 20);
  EXPECT_NEAR(excess["p"].get<double>(), mcnemar_p(1, 5), 1e-12);
  EXPECT_LT(excess["ci"][0].get<double>(), -0.2);
  EXPECT_GT(excess["ci"][1].get<double>(), -0.2);
  EXPECT_NEAR(rows.at("select")["kl_excess"]["difference"].get<double>(), 3e-3 - 1e-5, 1e-12);
  EXPECT_TRUE(rows.at("self_study")["recall_excess"].is_null()) << "it is the reference";
  EXPECT_TRUE(rows.at("solver")["recall_excess"].is_null()) << "the reference has no 16x";
  EXPECT_TRUE(rows.at("full")["recall_excess"].is_null());
}

TEST(Verdict, FollowsTheRunsOwnQuantisedRows) {
  const struct {
    size_t n_right;
    double kl;
    const char* verdict;
  } cases[] = {{20, 1e-4, "transparent"}, {20, 2e-4, "good"}, {20, 1e-2, "good"},  {18, 5e-3, "gist"},
               {20, 2e-2, "gist"},        {14, 0.5, "gist"},  {13, 0.5, "reject"}, {20, kInf, "reject"}};
  for (const auto& [n_right, kl, verdict] : cases) {
    const EvalRun run = anchored({answered_cell("select", 8, right_of(20, n_right), kl)});
    EXPECT_EQ(compared(run, "select").at("select")["verdict"], verdict) << n_right << " right, KL " << kl;
  }
}

TEST(Verdict, RejectsConfidentFlipsAndALostInstruction) {
  EvalRun flips = anchored({answered_cell("select", 8, right_of(20, 20), 1e-5)});
  for (size_t i = 0; i < 3; ++i) flips.cells[0].items[i].tokens[0].is_same_top1 = false;  // 3 of 40
  EXPECT_EQ(compared(flips, "").at("select")["verdict"], "reject");
  flips.cells[0].items[0].tokens[0].is_same_top1 = true;  // 2 of 40: not above 5 %
  EXPECT_EQ(compared(flips, "").at("select")["verdict"], "transparent");

  EvalRun instruction = anchored({answered_cell("select", 8, right_of(20, 20), 1e-5)});
  for (size_t i = 0; i < 20; ++i) {
    instruction.cells[0].items[i].obeys_with_full = i < 10;
    instruction.cells[0].items[i].obeys = i >= 6;  // 4 of the 10 that obeyed still do
  }
  EXPECT_EQ(compared(instruction, "").at("select")["verdict"], "reject");
  EXPECT_DOUBLE_EQ(compared(instruction, "").at("select")["instruction_obeyed"].get<double>(), 14.0 / 20);
  instruction.cells[0].items[0].obeys = true;
  EXPECT_EQ(compared(instruction, "").at("select")["verdict"], "transparent");
}

TEST(Verdict, IsMissingWithAReasonWhereThereIsNoScale) {
  EvalRun run = anchored({answered_cell("select", 8, right_of(20, 20), 3e-4)}, false);
  run.no_scale = "heads are narrow";
  EXPECT_TRUE(compared(run, "").at("select")["verdict"].is_null());
  EXPECT_EQ(missing_verdicts(run), std::vector<std::string>{"512: no verdicts: heads are narrow"});
  EXPECT_EQ(missing_verdicts(anchored({answered_cell("select", 8, right_of(20, 20), 3e-4)})),
            std::vector<std::string>{});
}

TEST(Verdict, ComparesWithTheScaleOnTheDocumentsThatTheRowMeasured) {
  // The row measured the first ten documents, where the q8_0 cache is a hundred times closer than elsewhere.
  EvalRun run = anchored({answered_cell("select", 8, right_of(10, 10), 1e-5)});
  for (size_t i = 0; i < 10; ++i)
    for (TokenComparison& t : run.cells[3].items[i].tokens) t.kl = 1e-6;
  EXPECT_EQ(compared(run, "").at("select")["verdict"], "good");
  EXPECT_EQ(compared(run, "").at("kv:q8_0")["verdict"], "transparent") << "no worse than itself";
}

TEST(Verdict, IsMissingWithAReasonWhereNothingCouldBeLost) {
  const auto run_of = [](size_t n_full, size_t n_none) {
    EvalRun run = anchored({answered_cell("select", 8, right_of(20, n_full), 1e-5)});
    run.cells[1] = answered_cell("full", 1, right_of(20, n_full), 0);
    run.cells[2] = answered_cell("none", 0, right_of(20, n_none), 2);
    return run;
  };
  const auto expect_reason = [](const EvalRun& run, const char* part) {
    EXPECT_TRUE(compared(run, "").at("select")["verdict"].is_null()) << part;
    const std::vector<std::string> reasons = missing_verdicts(run);
    ASSERT_EQ(reasons.size(), 1u) << part;
    EXPECT_TRUE(contains(reasons[0], part)) << reasons[0];
  };
  expect_reason(run_of(0, 0), "the full cache answers none of the 20 questions");
  expect_reason(run_of(12, 12), "no more answers are right with the context");
  EvalRun unparsed = run_of(0, 0);
  for (EvalItem& item : unparsed.cells[1].items) item.is_parsed = false;
  expect_reason(unparsed, "--qa-tokens");
  EXPECT_EQ(missing_verdicts(run_of(12, 11)), std::vector<std::string>{});

  // Prose whose continuation is as likely without the context.
  EvalRun prose = run_of(0, 0);
  for (EvalCell& cell : prose.cells)
    for (EvalItem& item : cell.items) {
      item.has_answer = false;
      for (TokenComparison& t : item.tokens) t.nll_none = 1;
    }
  expect_reason(prose, "likelier");
}

TEST(Choices, AreCountedApartWhenUnparsed) {
  EvalCell cell = answered_cell("select", 8, right_of(4, 2), 1e-3);
  for (EvalItem& item : cell.items) item.is_choice = true;
  cell.items[3].is_parsed = false;
  for (size_t i = 0; i < 4; ++i) cell.items[i].is_likeliest = i != 0;
  const Json row = row_json(cell, 1);
  EXPECT_EQ(row["recall"], 0.5);
  EXPECT_EQ(row["unparsed"], 0.25);
  EXPECT_DOUBLE_EQ(row["recall_of_parsed"].get<double>(), 2.0 / 3);
  EXPECT_EQ(row["recall_by_likelihood"], 0.75);
  EXPECT_EQ(row["lost"], Json::array({"d2#0", "d3#0"}));
}

TEST(Breakdowns, CountByKindDepthDistanceAndHead) {
  EvalCell cell = answered_cell("select", 8, right_of(4, 3), 0.5);
  cell.items[0].kind = "two_hop";
  cell.items[1].obeys = false;
  cell.heads[{2, 1}] = {
      .n_documents = 2, .rows = 60, .n_measured = 2, .error = 0.5, .worst = 0.75, .plain = 1, .log_mass = 0.25};
  cell.heads[{3, 0}] = {.n_documents = 2, .rows = 10};
  const Json all = breakdowns_json({cell});
  const auto find = [&](const char* list, const char* key, const Json& value) {
    for (const Json& entry : all[list])
      if (entry[key] == value) return entry;
    return Json();
  };
  EXPECT_EQ(find("kinds", "kind", "two_hop")["n"], 1);
  EXPECT_DOUBLE_EQ(find("kinds", "kind", "fact")["recall"].get<double>(), 2.0 / 3);
  EXPECT_EQ(find("kinds", "kind", "instruction")["recall"], 0);
  EXPECT_EQ(find("depths", "depth", 0.35)["recall"], 0);
  EXPECT_EQ(find("depths", "depth", 0.05)["recall"], 1);
  EXPECT_EQ(find("drift", "from", 1)["n"], 4) << "the first token of each stands 16 from the end";
  EXPECT_EQ(find("drift", "from", 17)["kl_mean"], 0.5) << "the second one 17";
  EXPECT_EQ(find("heads", "layer", 2), Json({{"context", "512"},
                                             {"method", "select"},
                                             {"ratio", 8.0},
                                             {"layer", 2},
                                             {"head", 1},
                                             {"rows", 30.0},
                                             {"error", 0.25},
                                             {"worst", 0.75},
                                             {"error_plain", 0.5},
                                             {"log_mass", 0.125}}));
  EXPECT_TRUE(find("heads", "layer", 3)["error"].is_null());
}

// ---- for people ----

TEST(EvalTable, LeavesUnmeasuredFiguresEmpty) {
  EvalCell refused{.context = "512", .method = "select", .ratio = 64};
  const std::string table = eval_table({row_json(measured_cell("select"), 1), row_json(refused, 1)});
  EXPECT_TRUE(contains(table, "100.0 |")) << table;
  EXPECT_TRUE(contains(table, "5.00x")) << table;
  const std::string last = table.substr(table.rfind("| 512"));
  EXPECT_TRUE(contains(last, "64x")) << table;
  EXPECT_FALSE(contains(last, "nan")) << table;
  EXPECT_FALSE(contains(last, "0.0")) << table;
}

TEST(EvalTable, SaysWhatItsColumnsMean) {
  const std::string table = eval_table({row_json(measured_cell("select"), 1)});
  const std::string legend = table.substr(table.find("\n\n"));
  std::istringstream titles(table.substr(0, table.find('\n')));
  int n_explained = 0;
  for (std::string title; std::getline(titles, title, '|');) {
    const size_t first = title.find_first_not_of(' '), last = title.find_last_not_of(' ');
    if (first == std::string::npos) continue;
    title = title.substr(first, last + 1 - first);
    if (title == "context" || title == "method" || title == "ratio" || title == "verdict") continue;
    EXPECT_TRUE(contains(legend, "\n" + title + ": ") || contains(legend, "; " + title + ": ")) << title << legend;
    ++n_explained;
  }
  EXPECT_EQ(n_explained, 12);
  EXPECT_FALSE(contains(legend, "unread")) << "of columns that are there";
}

TEST(EvalTable, ShowsIntervalsAndWhatCouldNotBeReadOfChoices) {
  EvalRun run = anchored({answered_cell("select", 8, right_of(20, 10), 2e-3)});
  const auto table_of = [&] {
    std::vector<Json> rows;
    for (const EvalCell& cell : run.cells) rows.push_back(row_json(cell, 1));
    return eval_table(rows);
  };
  const std::string plain = table_of();
  EXPECT_TRUE(contains(plain, "|  50.0 |   30-70 |")) << plain;
  EXPECT_TRUE(contains(plain, " KL p99 |")) << plain;
  EXPECT_TRUE(contains(plain, " 2.0e-03 | 2.0e-03 |")) << plain;
  EXPECT_FALSE(contains(plain, "unread")) << plain;
  for (EvalItem& item : run.cells[0].items) item.is_choice = true;
  run.cells[0].items[19].is_parsed = false;
  EXPECT_TRUE(contains(table_of(), " unread |")) << table_of();
  EXPECT_TRUE(contains(table_of(), "|    5.0 |")) << table_of();
}

TEST(EvalTable, StaysWithin160Columns) {
  EvalRun run = anchored({answered_cell("kv:q4_0+self_study", 16, right_of(20, 19), 2.5)});
  run.cells[0].costs[0].bytes_before = 1600;
  run.cells[0].costs[0].bytes_after = 100;
  run.cells[0].costs[0].seconds_total = 12.5;
  run.cells[0].costs[0].decode_tps_before = 100;
  run.cells[0].costs[0].decode_tps_after = 1500;
  std::vector<Json> rows;
  for (const EvalCell& cell : run.cells) rows.push_back(row_json(cell, 1));
  compare_rows(run, "", 1, rows);
  std::istringstream lines(eval_table(rows));
  for (std::string line; std::getline(lines, line);) EXPECT_LE(line.size(), 160u) << line;
}

TEST(LostAnswers, AreToldInWords) {
  EvalCell cell = answered_cell("select", 8, right_of(3, 2), 0.1);
  cell.items[2].question = "Which tree?\nA. oak";
  cell.items[2].expected = "plum";
  cell.items[2].answer = "pear";
  const std::string lost = lost_answers({cell});
  EXPECT_TRUE(contains(lost, "d2#0 Which tree? expected \"plum\", got \"pear\"")) << lost;
  EXPECT_FALSE(contains(lost, "d1#0")) << lost;
  EXPECT_TRUE(contains(lost, "lost by 512 select at 8x:\n")) << lost;
  EXPECT_TRUE(contains(lost_answers({answered_cell("none", 0, right_of(3, 2), 1)}), "lost by 512 none:\n"));
}

std::set<std::string> names_in_backticks(const std::string& text) {
  std::set<std::string> names;
  static const std::regex pattern("`([a-z_0-9]+)`");
  for (std::sregex_iterator at(text.begin(), text.end(), pattern), end; at != end; ++at) names.insert((*at)[1]);
  return names;
}

std::set<std::string> keys_of(const Json& object) {
  std::set<std::string> keys;
  for (const auto& [key, value] : object.items()) keys.insert(key);
  return keys;
}

TEST(EvalPage, NamesAllMethodsOptionsAndTheirChoices) {
  const std::string page = slurp(std::string(SH_SOURCE_DIR) + "/docs/compact-eval.md");
  const size_t begin = page.find("## Methods");
  const std::string section = page.substr(begin, page.find("## Verdicts") - begin);
  for (const compaction::CompactionMethod* method : compaction::methods())
    EXPECT_TRUE(contains(section, "`" + std::string(method->name) + "`")) << method->name;
  // Messages list what is known: options, and the choices of those that are words.
  engine::CompactionRequest request;
  static const std::regex list("(?:known:|one of) ([a-z_, ]+)"), word("[a-z_]+");
  const auto words_of = [](const Result<void>& refused) {
    std::vector<std::string> words;
    std::smatch found;
    const std::string message = refused.error().message;
    if (!std::regex_search(message, found, list)) return words;
    const std::string text = found[1];
    for (std::sregex_iterator at(text.begin(), text.end(), word), end; at != end; ++at) words.push_back(at->str());
    return words;
  };
  const std::vector<std::string> options = words_of(engine::set_option(request, "?", ""));
  ASSERT_GT(options.size(), 10u);
  for (const std::string& option : options) {
    EXPECT_TRUE(contains(section, "`" + option + "`")) << option;
    for (const std::string& choice : words_of(engine::set_option(request, option, "?")))
      EXPECT_TRUE(contains(section, "`" + choice + "`")) << option << "=" << choice;
  }
}

TEST(EvalPage, NamesExactlyTheKeysThatAreWritten) {
  const std::string page = slurp(std::string(SH_SOURCE_DIR) + "/docs/compact-eval.md");
  std::set<std::string> row_keys, seconds_keys;
  std::istringstream lines(page.substr(page.find("## Result")));
  for (std::string line; std::getline(lines, line);) {
    if (!line.starts_with("| `")) continue;
    const size_t end_of_key = line.find('|', 1);
    const auto keys = names_in_backticks(line.substr(0, end_of_key));
    if (keys.contains("seconds")) seconds_keys = names_in_backticks(line.substr(end_of_key));
    row_keys.insert(keys.begin(), keys.end());
  }
  const EvalCell cell = measured_cell("select");
  const Json row = row_json(cell, 1);
  EXPECT_EQ(row_keys, keys_of(row));
  EXPECT_EQ(seconds_keys, keys_of(row["seconds"]));
  const size_t items = page.find("Keys of an item:"), end = page.find("## How rows follow", items);
  ASSERT_NE(end, std::string::npos);
  std::set<std::string> item_keys = names_in_backticks(page.substr(items, end - items));
  item_keys.erase("answer_rank");  // that `rank` refers to
  EXPECT_EQ(item_keys, keys_of(item_json(cell.items[0])));
}

}  // namespace
}  // namespace sh::tools
