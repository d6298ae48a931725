// SPDX-License-Identifier: MIT
// shorthand profile, and the programs that read what it writes.
#include <filesystem>

#include "base/json.h"
#include "tools/program.h"

namespace sh::tools {
namespace {

const std::string kRecall = std::string(SH_SOURCE_DIR) + "/models/recall/512.jsonl";
const std::string kProse = std::string(SH_SOURCE_DIR) + "/models/prose/room_with_view.txt";
const std::string kMethod = "self_study:conversations=24";

std::vector<std::string> joined(std::vector<std::string> a, const std::vector<std::string>& b) {
  a.insert(a.end(), b.begin(), b.end());
  return a;
}

TEST(Profile, IsMeasuredShownWrittenAndReadBack) {
  const std::string path = temporary("profile.json");
  const std::string out = output_of({"profile", "-m", kScribe, "--recall", kRecall, "--text", kProse, "--tokens",
                                     "256", "--docs", "2", "--method", kMethod, "-o", path});
  for (const char* part : {"L0H0", "L4H1", "share", "4 documents at 8x by self_study:conversations=24"})
    EXPECT_TRUE(contains(out, part)) << part << " in " << out;
  const auto written = parse_json(slurp(path));
  ASSERT_TRUE(written.ok()) << slurp(path);
  EXPECT_EQ((*written)["documents"], 4);
  EXPECT_EQ((*written)["ratio"], 8);
  EXPECT_EQ((*written)["method"], kMethod);
  ASSERT_EQ((*written)["shares"].size(), 10u);
  double sum = 0, most = 0;
  for (const Json& share : (*written)["shares"]) {
    sum += share.get<double>();
    most = std::max(most, share.get<double>());
  }
  EXPECT_NEAR(sum, 1, 1e-4);
  EXPECT_GT(most, 0.15) << "an even share is 0.1";
  // The table begins with the largest.
  std::string largest;
  for (const auto& [name, share] : (*written)["shares"].items())
    if (share == most) largest = name;
  EXPECT_LT(out.find(largest), out.find(largest == "L0H0" ? "L4H1" : "L0H0"));

  const std::vector<std::string> eval = {"compact-eval",
                                         "-m",
                                         kScribe,
                                         "--recall",
                                         kRecall,
                                         "--docs",
                                         "1",
                                         "--ratios",
                                         "8",
                                         "--methods",
                                         kMethod + ":budget=profile"};
  EXPECT_TRUE(contains(output_of(joined(eval, {"--compact-profile", path})), "budget=profile"));
  const Outcome unused = run_program({"compact-eval", "-m", kScribe, "--recall", kRecall, "--docs", "1", "--ratios",
                                      "4", "--methods", "select", "--compact-profile", path});
  EXPECT_EQ(unused.status, 0) << unused.err;
  EXPECT_TRUE(contains(unused.err, "--compact-profile is not used")) << unused.err;
  const Outcome without = run_program(eval);
  EXPECT_EQ(without.status, 1);
  EXPECT_TRUE(contains(without.err, "--compact-profile")) << without.err;

  const std::vector<std::string> chat = {"chat", "-m", kScribe, "--temp", "0", "-sys", "The sky was blue."};
  const Outcome compacted = run_program(
      joined(chat, {"--compact-profile", path, "--compact-options", "budget=profile", "--compact-threshold", "0.5",
                    "--compact-method", "select", "-c", "64", "-n", "40", "--ignore-eos"}),
      "Tell me more.\n");
  EXPECT_EQ(compacted.status, 0) << compacted.err;
  EXPECT_TRUE(contains(compacted.err, "compacted by 'select'")) << compacted.err;
  unlink(path.c_str());
}

TEST(Profile, SaysWhatIsWrong) {
  const std::string path = temporary("never.json");
  const std::vector<std::string> good = {"profile", "-m", kScribe, "--recall", kRecall, "--docs", "1", "-o", path};
  const std::pair<std::vector<std::string>, std::string> cases[] = {
      {{"profile", "-m", kScribe, "--recall", kRecall}, "-o FILE.json"},
      {joined(good, {"--method", "magic"}), "magic"},
      {joined(good, {"--method", "self_study:budget=uniform"}), "budget=global"},
      {joined(good, {"--method", "truncate"}), "truncate"},
      {joined(good, {"--method", "kv:q8_0"}), "kv:q8_0"},
      {joined(good, {"--recall", "/does/not/exist.jsonl"}), "/does/not/exist.jsonl"},
      {joined(good, {"-c", "100"}), "-c"},
      {joined(good, {"--ratio", "0.5"}), "--ratio"},
      {joined(good, {"--docs", "0"}), "--docs"},
      {{"profile", "-m", kGolden + "llama.gguf", "-o", path}, "--text"},
  };
  for (const auto& [arguments, expected] : cases) {
    const Outcome outcome = run_program(arguments);
    EXPECT_EQ(outcome.status, 1) << expected;
    EXPECT_TRUE(contains(outcome.err, expected)) << outcome.err;
  }
  EXPECT_EQ(slurp(path), "") << "nothing is written";
}

TEST(Profile, WritesOverNothingThatItReads) {
  const std::string model = temporary("model.gguf"), recall = temporary("recall.jsonl"),
                    text = temporary("text.txt");
  std::filesystem::copy_file(kScribe, model);
  std::ofstream(recall) << "{}\n";
  std::ofstream(text) << "A text.\n";
  for (const auto& [flag, path] : {std::pair("-m", model), {"--recall", recall}, {"--text", text}}) {
    const std::string before = slurp(path);
    const Outcome outcome = run_program({"profile", "-m", model, "--recall", recall, "--text", text, "-o", path});
    EXPECT_EQ(outcome.status, 1);
    EXPECT_TRUE(contains(outcome.err, std::string(flag) + " and -o are the same file")) << outcome.err;
    EXPECT_TRUE(slurp(path) == before) << path;
  }
  for (const std::string& path : {model, recall, text}) unlink(path.c_str());
}

}  // namespace
}  // namespace sh::tools
