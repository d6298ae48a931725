// SPDX-License-Identifier: MIT
// What counts as a right answer, and the files of multiple choice.
#include "tools/eval_answers.h"

#include <set>

#include "tools/eval_qa.h"
#include "tools/program.h"

namespace sh::tools {
namespace {

constexpr int kNone = -1;

TEST(ParseChoice, TakesALetterAndNothingElse) {
  const struct {
    const char* text;
    int choice;
  } cases[] = {
      {"B", 1},
      {"b", 1},
      {" (C) ", 2},
      {"**D**", 3},
      {"C.", 2},
      {"Answer: B", 1},
      {"answer:C", 2},
      {"The answer is D.", 3},
      {"the final answer is: **A**", 0},
      {"The correct option is (c)", 2},
      {"It speaks of a dog.\nSo it must be the dog.\n\nB\n\n", 1},
      {"A\nOn second thought\nC", 2},
      // No letter stands alone in the last line.
      {"", kNone},
      {"\n \n", kNone},
      {"the answer is because of the dog", kNone},
      {"Answer: a detailed reading says so", kNone},
      {"B is right", kNone},
      {"B. The dog", kNone},
      {"A or B", kNone},
      {"A, B", kNone},
      {"Because", kNone},
      {"answer", kNone},
      {"B\nI am sure.", kNone},
      // Only as many options as there are.
      {"E", kNone},
      {"1", kNone},
      {"?", kNone},
      // Thoughts.
      {"<think>Could be A.\nA\n</think>\n\nB", 1},
      {"<think>\nB", kNone},
      {"<think>a</think>B<think>\nC", kNone},
      {"</think> D", 3},
      {"[THINK]x[/THINK]C", 2},
  };
  for (const auto& [text, choice] : cases) EXPECT_EQ(parse_choice(text, 4).value_or(kNone), choice) << text;
  EXPECT_EQ(parse_choice("E", 5), 4);
  // The template has opened the thought: it must be closed first.
  EXPECT_EQ(parse_choice("B", 4, true).value_or(kNone), kNone);
  EXPECT_EQ(parse_choice("maybe A\n</think>\nB", 4, true), 1);
}

TEST(Thinking, IsFoundAtTheEndOfAPrompt) {
  EXPECT_EQ(closing_tag("<|assistant|>\n<think>\n"), "</think>");
  EXPECT_EQ(closing_tag("<think>\n\n</think>\n\n"), "");
  EXPECT_FALSE(opens_thinking("<|assistant|>\n"));
  EXPECT_EQ(without_thinking("a </think> b", true), "b");
  EXPECT_EQ(without_thinking("plain", false), "plain");
}

TEST(SameAnswer, ForgivesCaseSpaceAndMarksButNoLetter) {
  EXPECT_TRUE(is_same_answer("plum", " \"Plum.\" "));
  EXPECT_TRUE(is_same_answer("17 shillings", "17\n shillings"));
  EXPECT_TRUE(is_same_answer("WC-143", "wc-143"));
  EXPECT_FALSE(is_same_answer("WC-143", "WC143")) << "marks inside count";
  EXPECT_FALSE(is_same_answer("Victor Hale", "Victor Hall"));
  EXPECT_FALSE(is_same_answer("plum", "plum tree"));
  EXPECT_FALSE(is_same_answer("plum", ""));
  EXPECT_FALSE(is_same_answer("?", "!")) << "an answer of marks only is compared as it is";
}

TEST(Instruction, TheWordAtTheEndIsSeenAndDoesNotSpoilTheAnswer) {
  EXPECT_EQ(without_last_word("plum zorvex.", "zorvex"), "plum");
  EXPECT_EQ(without_last_word("Zorvex", "zorvex"), "");
  EXPECT_FALSE(without_last_word("plumzorvex", "zorvex"));
  EXPECT_FALSE(without_last_word("zorvex plum", "zorvex"));
  const Expectation expected{.accept = {"plum", "a plum"}, .instruction_word = "zorvex"};
  const Grade obeying = grade(expected, "A plum. Zorvex!"), silent = grade(expected, "plum"),
              wrong = grade(expected, "pear zorvex");
  EXPECT_TRUE(obeying.is_right);
  EXPECT_EQ(obeying.obeys, true);
  EXPECT_TRUE(silent.is_right);
  EXPECT_EQ(silent.obeys, false);
  EXPECT_FALSE(wrong.is_right);
  EXPECT_EQ(wrong.obeys, true);
  EXPECT_FALSE(grade({.accept = {"plum"}}, "plum").obeys.has_value()) << "there is no instruction to obey";
}

TEST(GradeOfAChoice, SaysWhenNothingCouldBeRead) {
  const Expectation expected{.accept = {"B"}, .n_options = 4};
  EXPECT_TRUE(grade(expected, "Thus:\nb").is_right);
  const Grade unread = grade(expected, "It is the second one.");
  EXPECT_FALSE(unread.is_parsed);
  EXPECT_FALSE(unread.is_right);
  EXPECT_EQ(unread.answer, "");
  EXPECT_FALSE(grade(expected, "C").is_right);
}

// ---- files ----

struct TemporaryFile {
  explicit TemporaryFile(const std::string& text) : path(temporary("qa.json")) { std::ofstream(path) << text; }
  ~TemporaryFile() { unlink(path.c_str()); }
  std::string path;
};

std::string quality_line(const std::string& id, const std::string& article, const std::string& questions) {
  return R"({"article_id": ")" + id + R"(", "set_unique_id": "s", "title": "T", "article": ")" + article +
         R"(", "questions": [)" + questions + "]}\n";
}
const std::string kQuestionOne =
    R"({"question": "Who keeps the mill?", "question_unique_id": "7_1", "options": ["Ann", "Bo", "Cy", "Di"], "gold_label": 3, "difficult": 0})";
const std::string kQuestionTwo =
    R"({"question": "What is on the roof?", "question_unique_id": "7_2", "options": ["hay", "tin", "moss", "ice"], "gold_label": 1, "difficult": 1})";

/// The text of the option that the answer's letter names.
std::string answered_option(const RecallQuestion& question) {
  const size_t at = question.question.find("\n" + question.answer + ". ");
  if (at == std::string::npos) return "";
  return question.question.substr(at + 4, question.question.find('\n', at + 1) - at - 4);
}

TEST(Quality, LinesOfOneArticleAreOneDocument) {
  const TemporaryFile file(quality_line("7", "The mill.", kQuestionOne) +
                           quality_line("8", "Other.", kQuestionOne) +
                           quality_line("7", "The mill.", kQuestionTwo));
  const auto documents = read_quality(file.path, 1, 1);
  ASSERT_TRUE(documents.ok()) << documents.error().message;
  ASSERT_EQ(documents->size(), 1u) << "as many articles as were asked for";
  const RecallDocument& mill = documents->at(0);
  EXPECT_EQ(mill.id, "7");
  EXPECT_EQ(mill.context, "The mill.");
  ASSERT_EQ(mill.questions.size(), 2u);
  EXPECT_EQ(mill.questions[0].n_options, 4);
  EXPECT_EQ(mill.questions[0].kind, "choice");
  EXPECT_EQ(answered_option(mill.questions[0]), "Cy") << mill.questions[0].question;
  EXPECT_EQ(answered_option(mill.questions[1]), "hay") << mill.questions[1].question;
}

TEST(Quality, OptionsAreShuffledBySeedAndQuestionOnly) {
  const TemporaryFile file(quality_line("7", "The mill.", kQuestionOne + "," + kQuestionTwo));
  std::set<std::string> letters;
  for (uint64_t seed = 1; seed <= 24; ++seed) {
    const auto documents = read_quality(file.path, 9, seed), again = read_quality(file.path, 9, seed);
    ASSERT_TRUE(documents.ok() && again.ok());
    EXPECT_EQ(documents->at(0).questions[1].question, again->at(0).questions[1].question);
    EXPECT_EQ(answered_option(documents->at(0).questions[1]), "hay") << seed;
    letters.insert(documents->at(0).questions[1].answer);
  }
  EXPECT_EQ(letters, (std::set<std::string>{"A", "B", "C", "D"})) << "the right one may stand anywhere";
}

TEST(Quality, NamesFileAndLineOfWhatIsWrong) {
  const std::pair<std::string, const char*> cases[] = {
      {"[]\n", "article"},
      {"{\"article\": \n", ":1"},
      {R"({"article_id": "1", "article": "x"})", "\"questions\""},
      {quality_line("1", "x", R"({"question": "q", "options": ["a"], "gold_label": 1})"), "2 to 26 options"},
      {quality_line("1", "x", R"({"question": "q", "options": ["a", 2], "gold_label": 1})"), "strings"},
      {quality_line("1", "x", R"({"question": "q", "options": ["a", "b"], "gold_label": 3})"),
       "from 1 to 2, got 3"},
      {quality_line("1", "x", R"({"question": "q", "options": ["a", "b"], "gold_label": "a"})"), "from 1 to 2"},
      {quality_line("1", "x", "7"), "\"question\""},
      {quality_line("1", "x", R"({"question": "q", "options": ["a", "b"]})"),
       "no article with a labelled question"},
  };
  for (const auto& [text, part] : cases) {
    const TemporaryFile file(text);
    const auto documents = read_quality(file.path, 9, 1);
    ASSERT_FALSE(documents.ok()) << text;
    EXPECT_TRUE(contains(documents.error().message, file.path)) << documents.error().message;
    EXPECT_TRUE(contains(documents.error().message, part)) << documents.error().message;
  }
}

std::string patient(const std::string& id, const std::string& correct) {
  return "\"" + id + R"(": {"name": "Name of )" + id + R"(", "birthday": "1.2.60", "diagnosis": "Gout",
    "texts": {"text_0": "First note of )" +
         id + R"(.", "text_1": "Second."},
    "questions": [{"No": 0, "question": "Which drug?", "answer_a": "Alpha", "answer_b": "Beta", "answer_c": "Gamma",
                   "answer_d": "Delta", "answer_e": "None", "correct": ")" +
         correct + R"("}]})";
}

TEST(LongHealth, JoinsPatientsAndSaysWhichOneIsMeant) {
  const TemporaryFile file("{" + patient("p1", "Gamma") + "," + patient("p2", "none of these") + "," +
                           patient("p3", "Alpha") + "}");
  const auto alone = read_longhealth(file.path, 1, 9, 1);
  ASSERT_TRUE(alone.ok()) << alone.error().message;
  ASSERT_EQ(alone->size(), 2u) << "the question of p2 has no right option: counted and dropped";
  EXPECT_EQ(alone->at(0).context, "<text_0>\nFirst note of p1.\n</text_0>\n\n<text_1>\nSecond.\n</text_1>");
  EXPECT_EQ(answered_option(alone->at(0).questions[0]), "Gamma");
  EXPECT_FALSE(contains(alone->at(0).questions[0].question, "Name of"));

  const auto together = read_longhealth(file.path, 2, 9, 1);
  ASSERT_TRUE(together.ok());
  ASSERT_EQ(together->size(), 2u);
  EXPECT_EQ(together->at(0).id, "p1+p2");
  EXPECT_TRUE(contains(together->at(0).context, "First note of p1.") &&
              contains(together->at(0).context, "First note of p2."));
  EXPECT_TRUE(
      contains(together->at(0).questions[0].question, "Patient p1: Name of p1, born 1.2.60, diagnosis Gout."));
  EXPECT_EQ(read_longhealth(file.path, 2, 1, 1)->size(), 1u);
}

TEST(LongHealth, NamesThePatientOfWhatIsWrong) {
  const std::pair<std::string, const char*> cases[] = {
      {"[]", "one object"},
      {"{", "line"},
      {"{}", "no patient"},
      {R"({"p1": 3})", "p1"},
      {R"({"p1": {"name": "n", "birthday": "b", "diagnosis": "d", "questions": []}})", "\"texts\""},
      {R"({"p1": {"name": "n", "birthday": "b", "diagnosis": "d", "texts": {"t": 1}, "questions": []}})",
       "texts.t"},
      {R"({"p1": {"name": "n", "birthday": "b", "diagnosis": "d", "texts": {}, "questions": [{"question": "q", "correct": "c"}]}})",
       "\"answer_a\""},
  };
  for (const auto& [text, part] : cases) {
    const TemporaryFile file(text);
    const auto documents = read_longhealth(file.path, 1, 9, 1);
    ASSERT_FALSE(documents.ok()) << text;
    EXPECT_TRUE(contains(documents.error().message, part)) << documents.error().message;
  }
}

}  // namespace
}  // namespace sh::tools
