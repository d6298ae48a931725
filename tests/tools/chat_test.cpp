// SPDX-License-Identifier: MIT
// Conversations from a pipe. Every answer is one that the model gives reliably with its full cache
// (models/scribe.md).
#include "base/json.h"
#include "tools/program.h"

namespace sh::tools {
namespace {

const std::string kDocument =
    "Let us go. The ticket number of Daniel Webb is 216014. It was a fine day, and they walked to the river. The "
    "badge number of Rachel Young is "
    "70623. The sky was blue and the birds were in the air.";

/// The first document of the recall set of 512 tokens, and its questions.
struct Recall {
  std::string context;
  std::vector<std::pair<std::string, std::string>> questions;  // with answers
};
Recall first_recall_document() {
  const std::string lines = slurp(std::string(SH_SOURCE_DIR) + "/models/recall/512.jsonl");
  const auto document = parse_json(lines.substr(0, lines.find('\n')));
  EXPECT_TRUE(document.ok());
  Recall recall{(*document)["context"].get<std::string>(), {}};
  for (const Json& q : (*document)["questions"])
    recall.questions.emplace_back(q["q"].get<std::string>(), q["answer"].get<std::string>());
  return recall;
}

/// What stands between a question's echo and the next one.
std::string answer_after(const std::string& transcript, const std::string& question) {
  const size_t at = transcript.rfind("> " + question + "\n");
  if (at == std::string::npos) return "(not asked)";
  const size_t begin = at + question.size() + 3;
  return transcript.substr(begin, transcript.find('\n', begin) - begin);
}

TEST(Chat, AnswersSeveralTurnsOfOneConversation) {
  const Outcome outcome =
      run_program({"chat", "-m", kScribe, "--temp", "0", "-sys", kDocument},
                  "Tell me the badge number of Rachel Young.\nTell me the ticket number of Daniel Webb.\n");
  EXPECT_EQ(outcome.status, 0) << outcome.err;
  EXPECT_EQ(answer_after(outcome.out, "Tell me the badge number of Rachel Young."), " 70623");
  EXPECT_EQ(answer_after(outcome.out, "Tell me the ticket number of Daniel Webb."), " 216014");
  for (const char* part : {" tokens in ", " rows, ", "budget 8192 rows", "compactions 0"})
    EXPECT_TRUE(contains(outcome.err, part)) << outcome.err;
}

TEST(Chat, SlashCommands) {
  const std::string question = "Tell me the badge number of Rachel Young.";
  const std::string file = temporary("attached.txt");
  std::ofstream(file) << "A text.\n";
  const Outcome outcome =
      run_program({"chat", "-m", kScribe, "--temp", "0", "-sys", kDocument},
                  question + "\n/regen\n/compact 2 select\n" + question + "\n/status\n/clear\n/status\n/read " +
                      file + "\n/nonsense\n/exit\n" + question + " again\n");
  EXPECT_EQ(outcome.status, 0) << outcome.err;
  EXPECT_EQ(answer_after(outcome.out, "/regen"), " 70623");
  EXPECT_EQ(answer_after(outcome.out, question), " 70623") << "after the compaction";
  EXPECT_TRUE(contains(outcome.err, "compacted by 'select'")) << outcome.err;
  EXPECT_TRUE(contains(outcome.err, "compactions 1")) << outcome.err;
  EXPECT_TRUE(contains(outcome.err, "[cleared]\n[0 tokens in 0 rows")) << outcome.err;
  EXPECT_TRUE(contains(outcome.err, "8 bytes of " + file)) << outcome.err;
  EXPECT_TRUE(contains(outcome.err, "unknown command /nonsense")) << outcome.err;
  EXPECT_FALSE(contains(outcome.out, "again")) << "/exit ends the program";
  unlink(file.c_str());
}

TEST(Chat, BadSlashCommandsAreErrorsAndTheConversationGoesOn) {
  const std::string question = "Tell me the badge number of Rachel Young.";
  const Outcome outcome = run_program({"chat", "-m", kScribe, "--temp", "0", "-sys", kDocument},
                                      "/regen\n/read /does/not/exist\n/compact 2 select\n" + question +
                                          "\n/compact many\n/compact 2 magic\n" + question + "\n");
  EXPECT_EQ(outcome.status, 1) << "a scripted conversation with errors must not look like a good one";
  for (const char* part : {"/does/not/exist", "many", "magic", "empty"})
    EXPECT_TRUE(contains(outcome.err, part)) << part << " in " << outcome.err;
  EXPECT_EQ(answer_after(outcome.out, question), " 70623");
}

TEST(Chat, CompactGoesByTheFlagsAndSaysHowGoodItIs) {
  const std::string question = "Tell me the badge number of Rachel Young.";
  const std::vector<std::string> command = {"chat", "-m", kScribe, "--temp", "0", "-sys", kDocument};
  const auto compacted = [&](std::vector<std::string> flags) {
    flags.insert(flags.begin(), command.begin(), command.end());
    return run_program(flags, question + "\n/compact 1000 truncate\n").err;
  };
  const auto rows_after = [](const std::string& err) {
    const size_t at = err.find(" -> ");
    return at == std::string::npos ? -1 : std::stoi(err.substr(at + 4));
  };
  const std::string plain = compacted({});
  EXPECT_EQ(rows_after(plain), 2) << plain;
  EXPECT_EQ(rows_after(compacted({"--compact-pin", "10-30"})), 22);
  EXPECT_EQ(rows_after(compacted({"--compact-keep", "12"})), 14);
  const std::string refused = compacted({"--compact-max-kl", "1e-9"});
  EXPECT_TRUE(contains(refused, "max_kl")) << refused;
  const std::string checked = compacted({"--compact-max-kl", "1000"});
  EXPECT_TRUE(contains(checked, "reject: KL ")) << checked;
  EXPECT_TRUE(contains(checked, " replayed tokens")) << checked;
  EXPECT_FALSE(contains(checked, "against the compacted cache before")) << checked;
  std::vector<std::string> flags = command;
  flags.insert(flags.end(), {"--compact-max-kl", "1000"});
  const std::string twice = run_program(flags, question + "\n/compact 2 truncate\n/compact 2 truncate\n").err;
  EXPECT_TRUE(contains(twice, " replayed tokens, against the compacted cache before")) << twice;
}

TEST(Chat, SingleTurnAndRawText) {
  const Outcome single = run_program({"chat", "-m", kScribe, "--temp", "0", "-sys", kDocument, "-st", "-p",
                                      "Tell me the badge number of Rachel Young."},
                                     "ignored\n");
  EXPECT_EQ(single.status, 0);
  EXPECT_TRUE(contains(single.out, " 70623")) << single.out;
  EXPECT_FALSE(contains(single.out, "ignored"));
  const Outcome raw =
      run_program({"chat", "-m", kScribe, "--temp", "0", "-no-cnv"},
                  "<|bos|><|system|>" + kDocument +
                      "<|end|><|user|>Tell me the badge number of Rachel Young.<|end|><|assistant|>\n");
  EXPECT_EQ(raw.status, 0);
  EXPECT_TRUE(contains(raw.out, " 70623")) << raw.out;
}

TEST(Chat, AConversationOutlivesItsCache) {
  const Recall recall = first_recall_document();
  ASSERT_GE(recall.questions.size(), 4u);
  const std::string system = temporary("document.txt");
  std::ofstream(system) << recall.context;
  // All but the first question, again and again, until the conversation is far longer than the cache; the first
  // one only at the end.
  std::string input;
  for (int round = 0; round < 8; ++round)
    for (size_t i = 1; i < recall.questions.size(); ++i) input += recall.questions[i].first + "\n";
  input += recall.questions[0].first + "\n";
  const std::vector<std::string> command = {"chat", "-m", kScribe, "--temp", "0", "-sysf", system, "-c", "512"};

  std::vector<std::string> compacting = command;
  for (const char* part : {"--compact-threshold", "0.95", "--compact-ratio", "3", "--compact-method", "self_study"})
    compacting.push_back(part);
  const Outcome outcome = run_program(compacting, input);
  EXPECT_EQ(outcome.status, 0) << outcome.err;
  EXPECT_EQ(answer_after(outcome.out, recall.questions[0].first), " " + recall.questions[0].second)
      << "a fact of the first turn, never asked before";
  EXPECT_EQ(answer_after(outcome.out, recall.questions[1].first), " " + recall.questions[1].second);
  const size_t last_status = outcome.err.rfind("\n[");
  EXPECT_GT(std::stoi(outcome.err.substr(last_status + 2)), 2 * 512) << outcome.err.substr(last_status);
  EXPECT_TRUE(contains(outcome.err, "budget 512 rows")) << outcome.err;
  EXPECT_FALSE(contains(outcome.err.substr(last_status), "compactions 0"));

  const Outcome without = run_program(command, input);
  EXPECT_EQ(without.status, 1) << "without compaction the same conversation ends at its limit";
  EXPECT_TRUE(contains(without.err, "--compact-threshold")) << without.err;
  unlink(system.c_str());
}

TEST(Chat, DelayedCompactionWaitsForTheNextTurn) {
  const Recall recall = first_recall_document();
  const std::string system = temporary("delayed.txt");
  std::ofstream(system) << recall.context;
  const std::string input = recall.questions[0].first + "\n" + recall.questions[2].first + "\n";
  std::vector<std::string> command = {"chat", "-m", kScribe, "--temp", "0", "-sysf", system, "-c", "512"};
  for (const char* part : {"--compact-threshold", "0.8", "--compact-method", "select"}) command.push_back(part);
  const auto compactions_after_each_turn = [](const std::string& log) {
    std::vector<int> counts;
    for (size_t at = 0; (at = log.find("| compactions ", at)) != std::string::npos; ++at)
      counts.push_back(std::stoi(log.substr(at + 14)));
    return counts;
  };
  const Outcome at_once = run_program(command, input);
  command.push_back("--compact-delay");
  const Outcome delayed = run_program(command, input);
  EXPECT_EQ(at_once.status, 0) << at_once.err;
  EXPECT_EQ(delayed.status, 0) << delayed.err;
  const std::vector<int> now = compactions_after_each_turn(at_once.err), later = compactions_after_each_turn(delayed.err);
  ASSERT_EQ(now.size(), 2u) << at_once.err;
  ASSERT_EQ(later.size(), 2u) << delayed.err;
  EXPECT_EQ(now[0], 1);
  EXPECT_EQ(later[0], 0) << "nobody has asked yet what is to be kept";
  EXPECT_EQ(later[1], 1) << delayed.err;
  EXPECT_EQ(answer_after(delayed.out, recall.questions[2].first), " " + recall.questions[2].second)
      << "what the turn asks for was kept";
  unlink(system.c_str());
}

}  // namespace
}  // namespace sh::tools
