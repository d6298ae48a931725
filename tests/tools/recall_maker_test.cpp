// SPDX-License-Identifier: MIT
// make-recall: what its documents promise, and what it says to input that cannot give them.
#include "tools/recall_maker.h"

#include <algorithm>
#include <filesystem>
#include <map>
#include <set>
#include <sstream>

#include "base/utf8.h"
#include "tools/eval_data.h"
#include "tools/program.h"

namespace sh::tools {
namespace {

const std::string kProse = std::string(SH_SOURCE_DIR) + "/models/prose/";
const std::vector<std::string> kBooks = {"--text", kProse + "sherlock_holmes.txt", "--text",
                                         kProse + "room_with_view.txt"};

struct Made {
  Outcome outcome;
  std::string bytes;
  std::vector<Json> documents;
};

std::vector<Json> lines_of(const std::string& bytes) {
  std::vector<Json> out;
  std::istringstream lines(bytes);
  for (std::string line; std::getline(lines, line);) {
    const auto parsed = parse_json(line);
    EXPECT_TRUE(parsed.ok()) << line;
    if (parsed.ok()) out.push_back(*parsed);
  }
  return out;
}

Made make(std::vector<std::string> arguments) {
  const std::string path = temporary("recall.jsonl");
  arguments.insert(arguments.begin(), {"make-recall", "-m", kScribe, "-o", path});
  arguments.insert(arguments.end(), kBooks.begin(), kBooks.end());
  Made made{.outcome = run_program(arguments), .bytes = slurp(path)};
  EXPECT_EQ(made.outcome.status, 0) << made.outcome.err;
  made.documents = lines_of(made.bytes);
  unlink(path.c_str());
  return made;
}

/// 45 facts a document: each kind five times.
const Made& many() {
  static const Made made = make({"--tokens", "6000", "--docs", "4", "--facts", "45", "-s", "7"});
  return made;
}

std::string text(const Json& object, const char* key) {
  return object.at(key).get<std::string>();
}

std::vector<Json> questions_of(const std::string& kind) {
  std::vector<Json> out;
  for (const Json& document : many().documents)
    for (Json question : document["questions"])
      if (question["kind"] == kind) {
        question["context"] = document["context"];
        out.push_back(std::move(question));
      }
  return out;
}

size_t n_times(const std::string& haystack, const std::string& needle) {
  size_t n = 0;
  for (size_t at = haystack.find(needle); at != std::string::npos; at = haystack.find(needle, at + 1)) ++n;
  return n;
}

/// The sentence around an offset; invented values hold no ". ".
std::string sentence_at(const std::string& context, size_t offset) {
  size_t begin = context.find_last_of(".\n", offset);
  while (begin != std::string::npos && context[begin] == '.' && context[begin + 1] != ' ')
    begin = context.find_last_of(".\n", begin - 1);
  begin = begin == std::string::npos ? 0 : begin + 1;
  return context.substr(begin, context.find(". ", offset) - begin);
}

/// Finds a name of the question (capitals, not its first word) that stands in the sentence.
bool names_in(const std::string& question, const std::string& sentence, std::string& name) {
  for (size_t i = 0; i < question.size(); ++i) {
    if (question[i] < 'A' || question[i] > 'Z') continue;
    size_t end = i;
    while (end < question.size() &&
           (std::isalnum(static_cast<unsigned char>(question[end])) || question[end] == '-' ||
            (question[end] == ' ' && std::isupper(static_cast<unsigned char>(question[end + 1])))))
      ++end;
    name = question.substr(i, end - i);
    if (i > 0 && name.size() >= 6 && sentence.find(name) != std::string::npos) return true;
  }
  return false;
}

TEST(MakeRecall, SameSeedSameBytesAnotherSeedOtherFacts) {
  const std::vector<std::string> arguments = {"--tokens", "1500", "--docs", "2", "--facts", "12", "-s", "3"};
  const std::string first = make(arguments).bytes;
  EXPECT_FALSE(first.empty());
  EXPECT_EQ(make(arguments).bytes, first);
  std::vector<std::string> other = arguments;
  other.back() = "4";
  const auto a = lines_of(first), b = make(other).documents;
  for (size_t i = 0; i < a.size(); ++i)
    for (const Json& question : a[i]["questions"])
      for (const Json& another : b[i]["questions"])
        EXPECT_TRUE(question["q"] != another["q"] || question["kind"] == "verbatim");
}

TEST(MakeRecall, LengthsAreWithinFivePercentByTheModelsTokenizer) {
  for (const char* n : {"900", "3000", "8000"}) {
    const Made made = make({"--tokens", n, "--docs", "3", "--facts", "9"});
    ASSERT_EQ(made.documents.size(), 3u);
    for (const Json& document : made.documents) {
      EXPECT_GE(document["n_tokens"].get<double>(), 0.95 * std::stod(n));
      EXPECT_LE(document["n_tokens"].get<double>(), std::stod(n))
          << "a document must fit the context it was asked for";
      const std::string out =
          output_of({"tokenize", "-m", kScribe, "--stdin", "--show-count", "--no-bos", "--no-parse-special"},
                    text(document, "context"));
      EXPECT_TRUE(contains(out, "tokens: " + std::to_string(document["n_tokens"].get<int>()) + "\n"));
    }
  }
}

TEST(MakeRecall, KindsTakeTurnsAndQuestionsDiffer) {
  ASSERT_EQ(many().documents.size(), 4u);
  for (const Json& document : many().documents) {
    std::map<std::string, int> n_by_kind;
    std::set<std::string> asked;
    for (const Json& question : document["questions"]) {
      ++n_by_kind[text(question, "kind")];
      EXPECT_TRUE(asked.insert(text(question, "q")).second) << question["q"];
    }
    for (const std::string& kind : recall_kinds()) EXPECT_EQ(n_by_kind[kind], 5) << kind;
  }
}

TEST(MakeRecall, AnswersStandInTheContextWordForWord) {
  for (const char* kind : {"direct", "paraphrased", "reverse", "two_hop", "update", "verbatim"})
    for (const Json& question : questions_of(kind)) {
      const std::string context = text(question, "context"), answer = text(question, "answer");
      // An invented value stands in its own statements only: one, or the two that a name joins.
      EXPECT_GE(n_times(context, answer), 1u) << kind << ": " << answer;
      EXPECT_LE(n_times(context, answer), 2u) << kind << ": " << answer;
      const auto at = static_cast<size_t>(question["depth"].get<double>() * static_cast<double>(context.size()));
      const size_t slack = context.size() / 5000 + 2;  // depths have four digits
      const size_t found = context.find(answer, at < slack ? 0 : at - slack);
      ASSERT_NE(found, std::string::npos) << kind << ": " << answer;
      EXPECT_LE(found, at + slack + 160) << kind << ": the sentence at its depth holds the answer";
    }
  for (const Json& question : questions_of("list_all")) {
    EXPECT_GE(question["parts"].size(), 3u);
    for (const Json& part : question["parts"])
      EXPECT_EQ(n_times(text(question, "context"), part.get<std::string>()), 1u) << part;
  }
}

TEST(MakeRecall, CountsAreThoseOfTheDocument) {
  for (const Json& question : questions_of("count")) {
    const std::string q = text(question, "q");
    const size_t at = q.find("guild of ");
    ASSERT_NE(at, std::string::npos);
    EXPECT_EQ(std::to_string(n_times(text(question, "context"), q.substr(at, q.find('?') - at) + ".")),
              text(question, "answer"))
        << q;
  }
}

TEST(MakeRecall, UpdatesComeAfterWhatTheyOverride) {
  for (const Json& question : questions_of("update")) {
    const std::string context = text(question, "context");
    const size_t now = context.find(text(question, "answer"));
    std::string name;
    ASSERT_TRUE(names_in(text(question, "q"), sentence_at(context, now), name)) << question["q"];
    const size_t first = context.find(name);
    EXPECT_LT(first, now - name.size());
    EXPECT_EQ(sentence_at(context, first).find(text(question, "answer")), std::string::npos)
        << "the first statement gives the old value";
    EXPECT_NE(context.find(name, first + 1), std::string::npos);
    EXPECT_EQ(n_times(context, name), 2u);
  }
}

TEST(MakeRecall, TwoHopsCanBeFollowedAndNeedBothStatements) {
  for (const Json& question : questions_of("two_hop")) {
    const std::string context = text(question, "context"), q = text(question, "q");
    const std::string last = sentence_at(context, context.find(text(question, "answer")));
    std::string first_name, middle_name;
    EXPECT_FALSE(names_in(q, last, first_name)) << q << " is answered by one statement: " << last;
    ASSERT_TRUE(names_in(q, context, first_name)) << q;
    const std::string first = sentence_at(context, context.find(first_name));
    EXPECT_TRUE(names_in(last.front() == ' ' ? last : " " + last, first, middle_name))
        << "'" << first << "' leads to '" << last << "'";
  }
}

TEST(MakeRecall, AbsentThingsAreNowhereButTheirNamesAre) {
  for (const Json& question : questions_of("absent")) {
    std::string name;
    EXPECT_TRUE(names_in(text(question, "q"), text(question, "context"), name)) << question["q"];
    EXPECT_EQ(text(question, "answer"), "not stated");
    EXPECT_GE(question["accept"].size(), 3u);
    EXPECT_FALSE(question.contains("depth"));
    for (const char* never : {"registration number", " owns ", "not stated"})
      EXPECT_FALSE(contains(text(question, "context"), never));
  }
}

TEST(MakeRecall, FactsStandFromTheStartToTheEnd) {
  for (const Json& document : many().documents) {
    std::set<int> tenths;
    double least = 1, most = 0;
    for (const Json& question : document["questions"]) {
      if (!question.contains("depth")) continue;
      const double depth = question["depth"].get<double>();
      tenths.insert(static_cast<int>(depth * 10));
      least = std::min(least, depth);
      most = std::max(most, depth);
    }
    EXPECT_GE(tenths.size(), 9u) << "of ten";
    EXPECT_LT(least, 0.1);
    EXPECT_GT(most, 0.9);
  }
}

TEST(MakeRecall, QuotationsFollowTheirCueDirectly) {
  for (const Json& question : questions_of("verbatim")) {
    const std::string context = text(question, "context"), q = text(question, "q");
    const size_t begin = q.find(": \"") + 3, end = q.rfind("\" Quote");
    EXPECT_TRUE(contains(context, q.substr(begin, end - begin) + " " + text(question, "answer"))) << q;
  }
}

TEST(MakeRecall, InstructionOpensTheDocumentAndCanBeLeftOut) {
  for (const Json& document : many().documents) {
    const Json& instruction = document["instruction"];
    EXPECT_EQ(n_times(text(document, "context"), text(instruction, "text")), 1u);
    EXPECT_TRUE(contains(text(instruction, "text"), "end every reply with the word " + text(instruction, "word")));
    EXPECT_LT(instruction["depth"].get<double>(), 0.05);
  }
  const Made without = make({"--tokens", "900", "--docs", "1", "--facts", "5", "--no-instruction"});
  EXPECT_FALSE(without.documents[0].contains("instruction"));
  EXPECT_FALSE(contains(without.bytes, "Standing instruction"));
}

TEST(MakeRecall, IsReadByCompactEval) {
  const std::string path = temporary("read.jsonl");
  std::ofstream(path, std::ios::binary) << many().bytes;
  const auto read = read_recall(path, 100);
  unlink(path.c_str());
  ASSERT_TRUE(read.ok()) << read.error().message;
  ASSERT_EQ(read->size(), 4u);
  for (size_t i = 0; i < read->size(); ++i) {
    EXPECT_EQ((*read)[i].context, text(many().documents[i], "context"));
    ASSERT_EQ((*read)[i].questions.size(), 45u);
    for (size_t k = 0; k < 45; ++k)
      EXPECT_EQ((*read)[i].questions[k].answer, text(many().documents[i]["questions"][k], "answer"));
  }
}

TEST(MakeRecall, SeveralLengthsMakeOneFileEach) {
  const std::string path = temporary("lengths.jsonl"), stem = path.substr(0, path.size() - 6);
  const Outcome outcome = run_program(
      {"make-recall", "--text", kBooks[1], "--tokens", "1600,800", "--docs", "2", "--facts", "6", "-o", path});
  EXPECT_EQ(outcome.status, 0) << outcome.err;
  EXPECT_TRUE(contains(outcome.err, "no model given")) << "an estimate says so: " << outcome.err;
  EXPECT_FALSE(std::filesystem::exists(path));
  const auto small = lines_of(slurp(stem + "-800.jsonl")), large = lines_of(slurp(stem + "-1600.jsonl"));
  ASSERT_TRUE(small.size() == 2 && large.size() == 2);
  EXPECT_FALSE(small[0].contains("n_tokens")) << "an estimate is no measurement";
  EXPECT_GT(text(large[0], "context").size(), 1.8 * static_cast<double>(text(small[0], "context").size()));
  unlink((stem + "-800.jsonl").c_str());
  unlink((stem + "-1600.jsonl").c_str());
}

TEST(MakeRecall, PatternsOfTheModelsOwnAreAnsweredByIt) {
  const Made made = make({"--tokens", "900", "--docs", "4", "--facts", "12", "--patterns",
                          std::string(SH_SOURCE_DIR) + "/models/scribe-patterns.json"});
  const std::string path = temporary("own.jsonl"), result_path = temporary("own.json");
  std::ofstream(path, std::ios::binary) << made.bytes;
  const Outcome outcome = run_program({"compact-eval", "-m", kScribe, "--recall", path, "-c", "2048", "--methods",
                                       "truncate", "--ratios", "8", "--json", result_path});
  ASSERT_EQ(outcome.status, 0) << outcome.err;
  const auto result = parse_json(slurp(result_path));
  ASSERT_TRUE(result.ok());
  const Json& full = (*result)["rows"][0];
  EXPECT_EQ(full["method"], "full");
  EXPECT_EQ(full["recall_n"], 48);
  EXPECT_GE(full["recall"].get<double>(), 0.9)
      << "the model's own phrasing; it answers 95 % of its own test files";
  for (const std::string& used : {path, result_path, result_path + ".items.jsonl"}) unlink(used.c_str());
}

TEST(MakeRecall, SaysWhatIsWrongAndWritesNothing) {
  const std::string out = temporary("bad.jsonl"), small = temporary("small.txt"), binary = temporary("binary.txt");
  const std::string empty = temporary("empty.txt"), quoteless = temporary("quoteless.txt");
  std::ofstream(small) << "One sentence. Another one. And a third.\n";
  std::ofstream{empty};
  {
    std::ofstream file(quoteless);
    for (int i = 0; i < 400; ++i) file << "Short one. ";
  }
  std::ofstream(binary, std::ios::binary) << "text \xFF\xFE more";
  struct Case {
    std::vector<std::string> arguments;
    const char* message;
  };
  const std::vector<Case> cases = {
      {{"-o", out}, "--text FILE"},
      {{"--text", kBooks[1]}, "-o FILE"},
      {{"--text", "/does/not/exist.txt", "-o", out}, "/does/not/exist.txt"},
      {{"--text", kBooks[1], "--text", binary, "-o", out}, "not UTF-8 text: byte 5 of 12 is 0xFF"},
      {{"--text", small, "-o", out}, "give more text"},
      {{"--text", kBooks[1], "-o", out, "--tokens", "500", "--facts", "60"}, "fewer --facts"},
      {{"--text", kBooks[1], "-o", out, "--tokens", "20"}, "64"},
      {{"--text", kBooks[1], "-o", out, "--facts", "0"}, "--facts"},
      {{"--text", kBooks[1], "-o", out, "--kinds", "direct,telepathy"}, "telepathy"},
      {{"--text", kBooks[1], "-o", out, "--patterns", "/does/not/exist.json"}, "/does/not/exist.json"},
      {{"--text", kBooks[1], "-o", "/does/not/exist/x.jsonl"}, "no folder '/does/not/exist'"},
      {{"--text", kBooks[1], "-o", testing::TempDir()}, "Is a directory"},
      {{"--text", kBooks[1], "--text", empty, "-o", out}, "the file is empty"},
      {{"--text", testing::TempDir(), "-o", out}, "not a regular file"},
      {{"--text", kBooks[1], "--text", small, "-o", small}, "--text and -o are the same file"},
      {{"--text", quoteless, "-o", out, "--kinds", "verbatim", "--tokens", "200", "--facts", "2"},
       "gets no question"},
      // The second length cannot be made: the first is not written either.
      {{"--text", kBooks[1], "-o", out, "--tokens", "2000,4000000"}, "4000000"},
  };
  for (const Case& c : cases) {
    std::vector<std::string> arguments = {"make-recall"};
    arguments.insert(arguments.end(), c.arguments.begin(), c.arguments.end());
    const Outcome outcome = run_program(arguments);
    EXPECT_EQ(outcome.status, 1) << c.message;
    EXPECT_TRUE(contains(outcome.err, c.message)) << "expected '" << c.message << "' in: " << outcome.err;
    EXPECT_FALSE(std::filesystem::exists(out));
    EXPECT_FALSE(std::filesystem::exists(out.substr(0, out.size() - 6) + "-2000.jsonl"));
  }
  EXPECT_EQ(slurp(small), "One sentence. Another one. And a third.\n") << "what is read is not written over";
  for (const std::string& used : {small, binary, empty, quoteless}) unlink(used.c_str());
}

/// Documents of 9 facts from a text that a test makes up, with and without a model.
void expect_made(const std::string& content) {
  const std::string text_path = temporary("any.txt"), out = temporary("any.jsonl");
  std::ofstream(text_path, std::ios::binary) << content;
  for (const bool with_model : {false, true}) {
    std::vector<std::string> arguments = {"make-recall", "--text", text_path, "-o", out, "--tokens", "1500",
                                          "--docs", "2", "--facts", "9"};
    if (with_model) arguments.insert(arguments.end(), {"-m", kScribe});
    const Outcome outcome = run_program(arguments);
    ASSERT_EQ(outcome.status, 0) << outcome.err;
    const auto documents = lines_of(slurp(out));
    ASSERT_EQ(documents.size(), 2u);
    for (const Json& document : documents) {
      const std::string context = text(document, "context");
      EXPECT_TRUE(is_valid_utf8(context)) << "characters stay whole";
      for (const Json& question : document["questions"])
        EXPECT_TRUE(!question.contains("depth") || contains(context, text(question, "answer"))) << question["q"];
    }
    unlink(out.c_str());
  }
  unlink(text_path.c_str());
}

TEST(MakeRecall, BundledFileOfAllKindsIsWhatItsCommandMakes) {
  const std::string bundled = std::string(SH_SOURCE_DIR) + "/models/kinds/kinds-1024.jsonl";
  const std::string folder = temporary("kinds"), out = folder + "/kinds-1024.jsonl";
  std::filesystem::create_directory(folder);
  // The command stands in bench/README.md.
  output_of({"make-recall", "-m", kScribe, "--text", kProse + "room_with_view.txt", "--text",
             kProse + "sherlock_holmes.txt", "--text", kProse + "tale_of_two_cities.txt", "--patterns",
             std::string(SH_SOURCE_DIR) + "/models/kinds/patterns.json", "--tokens", "1024", "--docs", "16",
             "--facts", "18", "-o", out});
  EXPECT_FALSE(slurp(bundled).empty());
  EXPECT_TRUE(slurp(out) == slurp(bundled));
  std::filesystem::remove_all(folder);
}

TEST(MakeRecall, TakesChineseThaiAndTextWithoutSpacesOrSentences) {
  std::string chinese, thai, letters, carriage;
  for (int i = 0; i < 800; ++i) {
    chinese += "第" + std::to_string(i) + "章里，他走进了那间老屋子，看见窗外下着雨。她说：“你怎么还不回来？”没有人回答。\n";
    thai += "สวัสดีชาวโลกวันนี้อากาศดีมากเราไปเดินเล่นที่สวนสาธารณะกันเถอะ";
    letters += "abcdefghijklmnopqrstuvwxyz0123456789+/";
    carriage += "The " + std::to_string(i) + "th visitor came late.\r\nNobody\rhad seen him. ";
  }
  for (const std::string& content : {chinese, thai, letters, carriage}) expect_made(content);
}

TEST(MakeRecall, SaysHowManyQuestionsAreMissing) {
  const std::string text_path = temporary("short.txt"), out = temporary("short.jsonl");
  {
    std::ofstream file(text_path);
    for (int i = 0; i < 400; ++i) file << "Short one " << i << ". ";
  }
  const Outcome outcome = run_program({"make-recall", "--text", text_path, "-o", out, "--kinds", "direct,verbatim",
                                       "--tokens", "400", "--docs", "1", "--facts", "6"});
  EXPECT_EQ(outcome.status, 0) << outcome.err;
  EXPECT_TRUE(contains(outcome.err, "warning: " + out + ": 3 questions instead of 6: for 3 of kind verbatim"))
      << outcome.err;
  EXPECT_EQ(lines_of(slurp(out))[0]["questions"].size(), 3u);
  for (const std::string& used : {text_path, out}) unlink(used.c_str());
}

TEST(MakeRecall, WritesThroughLinksAndToPipes) {
  const std::string target = temporary("target.jsonl"), link = temporary("link.jsonl");
  std::ofstream(target) << "old";
  std::filesystem::create_symlink(target, link);
  const std::vector<std::string> common = {"make-recall", "--text", kBooks[1], "--tokens", "800", "--docs", "1",
                                           "--facts", "5", "-o"};
  std::vector<std::string> arguments = common;
  arguments.push_back(link);
  output_of(arguments);
  EXPECT_TRUE(std::filesystem::is_symlink(link));
  EXPECT_EQ(lines_of(slurp(target)).size(), 1u);
  arguments.back() = "/dev/null";
  output_of(arguments);
  EXPECT_TRUE(std::filesystem::is_character_file("/dev/null"));
  for (const std::string& used : {target, link}) unlink(used.c_str());
}

TEST(RecallPatterns, RefusesWhatCouldMakeNoSoundQuestion) {
  const auto pattern = [](const std::string& inside) { return R"({"patterns": [{)" + inside + "}]}"; };
  const std::string direct = R"("kind": "direct", )";
  const std::vector<std::pair<std::string, const char*>> cases = {
      {"[]", "expected an object"},
      {R"({"patterns": []})", "expected a list of patterns"},
      {R"({"pattern": []})", "unknown key \"pattern\""},
      {pattern(R"("kind": "riddle", "question": "?", "answer": "x")"), "unknown kind \"riddle\""},
      {pattern(direct +
               R"("statements": ["{person} has {gold}."], "question": "What has {person}?", "answer": "{gold}")"),
       "unknown slot {gold}"},
      {pattern(direct +
               R"("statements": ["{person} has {code."], "question": "What has {person}?", "answer": "{code}")"),
       "stray brace"},
      {pattern(direct +
               R"("statements": ["{person} has {code}."], "question": "What has {person}?", "answer": "{code2}")"),
       "no statement holds the answer"},
      {pattern(direct +
               R"("statements": ["{person} has {code}."], "question": "What has {person2}?", "answer": "{code}")"),
       "which no statement holds"},
      {pattern(
           direct +
           R"("statements": ["{person} has {code}."], "question": "Has {person} {code}?", "answer": "{code}")"),
       "gives {code} of its answer away"},
      {pattern(direct +
               R"("statements": ["The code is {code}."], "question": "What is the code?", "answer": "{code}")"),
       "two facts would answer it"},
      {pattern(direct + R"("question": "What has {person}?", "answer": "{code}")"), "1 statement at least"},
      {pattern(
           R"("kind": "update", "statements": ["{person} has {code2}.", "{person} has {code}."], "question": "What has {person}?", "answer": "{code2}")"),
       "last statement of update"},
      {pattern(
           R"("kind": "count", "statements": ["{item} is in {group}."], "question": "How many in {group}?", "answer": "{count}")"),
       "\"repeat\""},
      {R"({"lists": {"Name": ["a"]}, "patterns": []})", "small letters"},
      {R"({"lists": {"colour": [1]}, "patterns": []})", "expected strings"},
      {R"({"repeatable": ["code"], "patterns": []})", "not in \"lists\""},
      {R"({"lists": {"hue": ["red"]}, "repeatable": ["hue"], "patterns": [{"kind": "reverse", "statements": ["{person} wears {hue}."], "question": "Who wears {hue}?", "answer": "{person}"}]})",
       "do not repeat"},
  };
  for (const auto& [json, message] : cases) {
    const auto parsed = parse_recall_patterns(json, "P.json");
    ASSERT_FALSE(parsed.ok()) << json;
    EXPECT_TRUE(contains(parsed.error().message, message) && contains(parsed.error().message, "P.json"))
        << "expected '" << message << "' in: " << parsed.error().message;
  }
}

TEST(RecallPatterns, AListThatRunsOutIsAnError) {
  const auto patterns = parse_recall_patterns(
      R"({"lists": {"ship": ["Albatross", "Curlew"]}, "patterns": [{"kind": "direct", "statements": ["The {ship} has {code}."], "question": "What has the {ship}?", "answer": "{code}"}]})",
      "P.json");
  ASSERT_TRUE(patterns.ok()) << patterns.error().message;
  RecallSpec spec{.label = "x",
                  .texts = {slurp(kBooks[1])},
                  .n_tokens = 800,
                  .n_documents = 1,
                  .n_facts = 2,
                  .count_tokens = estimated_tokens};
  EXPECT_TRUE(make_recall(spec, *patterns).ok());
  spec.n_facts = 3;
  const auto made = make_recall(spec, *patterns);
  ASSERT_FALSE(made.ok());
  EXPECT_TRUE(contains(made.error().message, "list \"ship\"")) << made.error().message;
}

TEST(SplitText, CutsScriptsWithoutSpacesAtTheirFullStops) {
  std::vector<std::string> texts, separators;
  for (const TextUnit& unit : split_text("他来了。“谁？”她问。\n第二段!没有人 The end. Next.\r\rवह आया। वह गया॥\n")) {
    texts.push_back(unit.text);
    separators.push_back(unit.separator);
  }
  EXPECT_EQ(texts, (std::vector<std::string>{"他来了。", "“谁？”", "她问。", "第二段!", "没有人 The end.", "Next.",
                                             "वह आया।", "वह गया॥"}));
  EXPECT_EQ(separators, (std::vector<std::string>{"", "", "\n", "", " ", "\n\n", " ", "\n\n"}));
  std::string endless;
  for (int i = 0; i < 1000; ++i) endless += "กี่";  // a letter with two marks
  const std::vector<TextUnit> units = split_text(endless);
  EXPECT_GT(units.size(), 9u);
  std::string joined;
  for (const TextUnit& unit : units) {
    EXPECT_TRUE(unit.text.starts_with("ก")) << "marks stay with their letter";
    joined += unit.text + (&unit == &units.back() ? "" : unit.separator);
  }
  EXPECT_EQ(joined, endless);
}

TEST(CountPieces, AreWordsOrCharactersOfScriptsWithoutSpaces) {
  EXPECT_EQ(count_pieces("two  words"), 2);
  EXPECT_EQ(count_pieces("两个 words。"), 4);
  EXPECT_EQ(count_pieces(std::string(48, 'x')), 2);
  EXPECT_EQ(first_pieces("两个 words。", 3), "两个 words");
  EXPECT_EQ(estimated_tokens("one two three"), 4);
  EXPECT_EQ(estimated_tokens("两个字"), 3);
}

TEST(SplitText, KeepsTitlesTogetherJoinsWrappedProseAndKeepsLinesOfCode) {
  std::vector<std::string> texts, separators;
  for (const TextUnit& unit :
       split_text("Mr. J. Holt\nwent out. \"Why?\" he asked. He\r\nsaw 3.5 men.\n\nint f() {\n  return 1;\n}\n")) {
    texts.push_back(unit.text);
    separators.push_back(unit.separator);
  }
  EXPECT_EQ(texts, (std::vector<std::string>{"Mr. J. Holt went out.", "\"Why?\" he asked.", "He saw 3.5 men.",
                                             "int f() {", "  return 1;", "}"}));
  EXPECT_EQ(separators, (std::vector<std::string>{" ", " ", "\n\n", "\n", "\n", "\n\n"}));
  EXPECT_TRUE(split_text(" \n\n\t\n").empty());
  std::string endless;
  for (int i = 0; i < 10000; ++i) endless += "word ";
  EXPECT_GT(split_text(endless).size(), 50u) << "text without full stops can be cut too";
}

}  // namespace
}  // namespace sh::tools
