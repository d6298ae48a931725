// SPDX-License-Identifier: MIT
// complete, tokenize, inspect, logits, and what every command does with bad flags and files.
#include <algorithm>
#include <cmath>
#include <filesystem>

#include "base/json.h"
#include "base/machine.h"
#include "base/npy.h"
#include "tools/program.h"

namespace sh::tools {
namespace {

Json golden_model(const std::string& name) {
  const auto manifest = parse_json(slurp(kGolden + "manifest.json"));
  EXPECT_TRUE(manifest.ok());
  return (*manifest)["models"][name];
}

std::string joined(const Json& ids) {
  std::string text;
  for (const Json& id : ids) text += (text.empty() ? "" : ",") + std::to_string(id.get<int>());
  return text;
}

float largest_difference(const Mat<float>& a, const Mat<float>& b) {
  if (a.rows != b.rows || a.cols != b.cols) return INFINITY;
  float largest = 0;
  for (size_t i = 0; i < a.data.size(); ++i) largest = std::max(largest, std::fabs(a.data[i] - b.data[i]));
  return largest;
}

TEST(Logits, EqualTheGoldenOnesHoweverThePromptIsCut) {
  const Json golden = golden_model("llama");
  const auto expected = read_npy(kGolden + golden["logits"].get<std::string>());
  ASSERT_TRUE(expected.ok());
  const std::string path = temporary("logits.npy");
  for (const char* n_ubatch : {"7", "512"}) {
    const std::string out = output_of({"logits", "-m", kGolden + "llama.gguf", "--ids", joined(golden["tokens"]),
                                       "-o", path, "-ctk", "f32", "-ctv", "f32", "-ub", n_ubatch});
    EXPECT_TRUE(contains(out, "[48, 328]")) << out;
    const auto logits = read_npy(path);
    ASSERT_TRUE(logits.ok());
    EXPECT_LE(largest_difference(*logits, *expected), golden["tolerance_abs"].get<float>()) << "-ub " << n_ubatch;
  }
  unlink(path.c_str());
}

TEST(Logits, RefusesTokensOutsideTheVocabulary) {
  const Outcome outcome =
      run_program({"logits", "-m", kGolden + "llama.gguf", "--ids", "1,328", "-o", temporary("x.npy")});
  EXPECT_EQ(outcome.status, 1);
  EXPECT_TRUE(contains(outcome.err, "token 328")) << outcome.err;
}

TEST(Logits, AreNotWrittenOverTheModel) {
  const std::string model = temporary("model.gguf");
  std::filesystem::copy_file(kGolden + "llama.gguf", model);
  const Outcome outcome = run_program({"logits", "-m", model, "--ids", "1", "-o", model});
  EXPECT_EQ(outcome.status, 1);
  EXPECT_TRUE(contains(outcome.err, "-m and -o are the same file")) << outcome.err;
  EXPECT_TRUE(slurp(model) == slurp(kGolden + "llama.gguf"));
  unlink(model.c_str());
}

TEST(Tokenize, GivesTheGoldenIds) {
  const auto texts = parse_json(slurp(kGolden + "tokenizer/texts.json"));
  const auto cases = parse_json(slurp(kGolden + "tokenizer/real-llama-spm.cases.json"));
  ASSERT_TRUE(texts.ok() && cases.ok());
  for (const size_t i : {0, 1, 11, 18}) {
    const std::string text = (*texts)[i].get<std::string>();
    const std::vector<std::string> command = {
        "tokenize", "-m", kGolden + "tokenizer/ggml-vocab-llama-spm.gguf", "--ids", "--no-escape", "-p", text};
    const auto ids = parse_json(output_of(command));
    ASSERT_TRUE(ids.ok());
    EXPECT_EQ(*ids, (*cases)[i]["ids_special"]) << text;
    std::vector<std::string> without_bos = command;
    without_bos.push_back("--no-bos");
    const auto plain = parse_json(output_of(without_bos));
    ASSERT_TRUE(plain.ok());
    EXPECT_EQ(*plain, (*cases)[i]["ids"]) << text;
  }
}

TEST(Tokenize, ReadsStandardInputAndCounts) {
  const std::string out =
      output_of({"tokenize", "-m", kScribe, "--stdin", "--show-count", "--no-bos"}, "12<|end|>");
  EXPECT_TRUE(contains(out, "-> '1'\n") && contains(out, "-> '2'\n") && contains(out, "-> '<|end|>'\n")) << out;
  EXPECT_TRUE(contains(out, "Total number of tokens: 3\n")) << out;
  EXPECT_TRUE(contains(output_of({"tokenize", "-m", kScribe, "-p", "12<|end|>", "--no-parse-special"}), "'<'"));
}

TEST(Inspect, ListsKeysTensorsAndTotals) {
  const std::string text = output_of({"inspect", "-m", kScribe});
  for (const char* part :
       {"llama.block_count", "tokenizer.ggml.tokens", "2048 items", "blk.4.ffn_down.weight", "[512, 256]"})
    EXPECT_TRUE(contains(text, part)) << part;
  const auto json = parse_json(output_of({"inspect", "--json", "-m", kScribe}));
  ASSERT_TRUE(json.ok());
  EXPECT_EQ((*json)["metadata"]["llama.embedding_length"], 256);
  EXPECT_EQ((*json)["tensors"].size(), 47u);
  int64_t n_elements = 0;
  for (const Json& tensor : (*json)["tensors"]) {
    int64_t n = 1;
    for (const Json& size : tensor["shape"]) n *= size.get<int64_t>();
    n_elements += n;
  }
  EXPECT_EQ(
      (*json)["totals"]["f16"]["elements"].get<int64_t>() + (*json)["totals"]["f32"]["elements"].get<int64_t>(),
      n_elements);
  EXPECT_EQ((*json)["totals"]["f16"]["bytes"].get<int64_t>(),
            2 * (*json)["totals"]["f16"]["elements"].get<int64_t>());
}

const std::string kPrompt =
    "<|bos|><|system|>The ticket number of Daniel Webb is 216014. It was a fine day, and they walked to the "
    "river. The badge number of "
    "Rachel Young is 70623. The sky was blue.<|end|><|user|>Tell me the badge number of Rachel "
    "Young.<|end|><|assistant|>";

std::string logits_hash(const std::string& result_line) {
  const size_t at = result_line.find("| logits ");
  return at == std::string::npos ? "none" : result_line.substr(at + 9, 16);
}

TEST(Complete, AnswersFromItsPrompt) {
  const Outcome outcome = run_program({"complete", "-m", kScribe, "--temp", "0", "-p", kPrompt});
  EXPECT_EQ(outcome.status, 0);
  EXPECT_EQ(outcome.out, " 70623\n");
  for (const char* part : {"prompt ", "answer 6 tokens", "GB/s", "cache ", "compactions 0", "kernels "})
    EXPECT_TRUE(contains(outcome.err, part)) << part;
  constexpr int64_t kReadBytes = 7 << 20;  // weights and a few rows
  EXPECT_EQ(contains(outcome.err, "GB/s (in cache)"), last_level_cache_bytes() >= kReadBytes) << outcome.err;
}

TEST(Complete, ThreadsAndPiecesDoNotChangeABit) {
  std::string first_text, first_hash;
  for (const char* n_threads : {"1", "2"})
    for (const char* n_ubatch : {"7", "512"}) {
      const Outcome outcome = run_program({"complete", "-m", kScribe, "--temp", "0", "-n", "40", "--ignore-eos",
                                           "-p", "It was the best of times", "-t", n_threads, "-ub", n_ubatch});
      ASSERT_EQ(outcome.status, 0) << outcome.err;
      if (first_text.empty()) {
        first_text = outcome.out;
        first_hash = logits_hash(outcome.err);
        EXPECT_EQ(first_hash.size(), 16u) << outcome.err;
        EXPECT_GT(first_text.size(), 40u);
      }
      EXPECT_EQ(outcome.out, first_text) << "-t " << n_threads << " -ub " << n_ubatch;
      EXPECT_EQ(logits_hash(outcome.err), first_hash) << "-t " << n_threads << " -ub " << n_ubatch;
    }
}

TEST(Complete, ASeedRepeatsAndAnotherDiffers) {
  const auto with_seed = [](const char* seed) {
    return output_of({"complete", "-m", kScribe, "--temp", "1.5", "-n", "40", "-s", seed, "-p", "It was"});
  };
  EXPECT_EQ(with_seed("1"), with_seed("1"));
  EXPECT_NE(with_seed("1"), with_seed("2"));
}

TEST(Complete, StopsAtLimitsAndWords) {
  EXPECT_EQ(output_of({"complete", "-m", kScribe, "--temp", "0", "-n", "0", "-p", kPrompt}), "\n");
  EXPECT_EQ(output_of({"complete", "-m", kScribe, "--temp", "0", "-r", "62", "-p", kPrompt}), " 70\n");
  EXPECT_EQ(output_of({"complete", "-m", kScribe, "--temp", "0", "-n", "0", "--display-prompt", "-p", "Hello"}),
            "Hello\n");
  // A cache of 32 rows: the answer ends where it is full, without an error.
  const Outcome full = run_program(
      {"complete", "-m", kScribe, "--temp", "0", "-c", "32", "--ignore-eos", "-p", "It was the best of times"});
  EXPECT_EQ(full.status, 0) << full.err;
  EXPECT_TRUE(contains(full.err, "cache 32 tokens in 32 rows")) << full.err;
  EXPECT_TRUE(contains(full.err, "the answer was cut: the context has 32 tokens (raise -c")) << full.err;
}

TEST(Complete, CompactsWhenThresholdIsGiven) {
  const Outcome outcome =
      run_program({"complete", "-m", kScribe, "--temp", "0", "-c", "96", "-n", "200", "--ignore-eos",
                   "--compact-threshold", "0.9", "--compact-method", "select", "-p", "It was the best of times"});
  EXPECT_EQ(outcome.status, 0) << outcome.err;
  EXPECT_TRUE(contains(outcome.err, "answer 200 tokens")) << outcome.err;
  EXPECT_FALSE(contains(outcome.err, "compactions 0")) << outcome.err;
  EXPECT_TRUE(contains(outcome.err, "compacted by 'select'")) << outcome.err;
}

TEST(Complete, TellsOfACompactionWhenItHappens) {
  const std::vector<std::string> arguments = {"complete",
                                              "-m",
                                              kScribe,
                                              "--temp",
                                              "0",
                                              "-c",
                                              "96",
                                              "-n",
                                              "120",
                                              "--ignore-eos",
                                              "--compact-threshold",
                                              "0.9",
                                              "--compact-method",
                                              "select",
                                              "-p",
                                              "It was the best of times"};
  const std::string answer = output_of(arguments), both = temporary("both");
  std::string command = SH_PROGRAM;
  for (const std::string& argument : arguments) command += " '" + argument + "'";
  ASSERT_EQ(std::system((command + " > '" + both + "' 2>&1").c_str()), 0);
  const std::string text = slurp(both);
  ASSERT_TRUE(contains(text, "compacted by 'select'")) << text;
  ASSERT_GT(answer.size(), 20u);
  EXPECT_GT(text.rfind(answer.substr(answer.size() - 20)), text.find("compacted by 'select'"))
      << "the answer goes on behind the line: " << text;
  unlink(both.c_str());
}

TEST(Complete, ReadsAPromptLongerThanItsCache) {
  std::string prose = slurp(std::string(SH_SOURCE_DIR) + "/models/prose/room_with_view.txt").substr(0, 4000);
  const std::vector<std::string> command = {"complete", "-m", kScribe,        "--temp",      "0",  "-c", "256",
                                            "-n",       "4",  "--ignore-eos", "--no-escape", "-p", prose};
  const Outcome refused = run_program(command);
  EXPECT_EQ(refused.status, 1);
  EXPECT_TRUE(contains(refused.err, "--compact-threshold")) << refused.err;
  std::vector<std::string> compacting = command;
  for (const char* part : {"--compact-threshold", "0.9", "--compact-method", "select"}) compacting.push_back(part);
  const Outcome read = run_program(compacting);
  EXPECT_EQ(read.status, 0) << read.err;
  EXPECT_TRUE(contains(read.err, "answer 4 tokens")) << read.err;
}

TEST(Complete, CtrlCStopsTheAnswerAndReports) {
  const RunningProgram program(
      {"complete", "-m", kScribe, "--temp", "0", "--ignore-eos", "-p", "It was the best of times"});
  program.wait_for_output();
  program.send(SIGINT);
  const Outcome outcome = program.finish();
  EXPECT_EQ(outcome.status, 130) << outcome.err;
  EXPECT_TRUE(contains(outcome.err, "| logits ")) << "stopped in order, not killed: " << outcome.err;
  EXPECT_FALSE(outcome.out.empty());
}

TEST(MakeModel, WritesAFileThatRuns) {
  const std::string path = temporary("random.gguf");
  EXPECT_TRUE(
      contains(output_of({"make-model", "--arch", "qwen2", "--shape", "0.5B", "--type", "q4_0", "-o", path}),
               "qwen2 0.5B"));
  const Outcome outcome =
      run_program({"complete", "-m", path, "-c", "64", "--temp", "0", "-n", "2", "--ignore-eos", "-p", "Hi"});
  EXPECT_EQ(outcome.status, 0) << outcome.err;
  EXPECT_TRUE(contains(outcome.err, "answer 2 tokens")) << outcome.err;
  // llama.cpp reads this key as f32 (type 6) only.
  const std::string key = "layer_norm_rms_epsilon", head = slurp(path).substr(0, 4096);
  ASSERT_NE(head.find(key), std::string::npos);
  EXPECT_EQ(head.substr(head.find(key) + key.size(), 4), std::string("\x06\0\0\0", 4));
  unlink(path.c_str());
}

TEST(Commands, BadFlagsAndFilesAreErrorsWithAMessage) {
  const std::string broken = temporary("broken.gguf");
  std::ofstream(broken) << "GGUF but not really";
  struct Case {
    std::vector<std::string> arguments;
    const char* message;
  };
  const std::vector<Case> cases = {
      {{"complete", "--no-such-flag"}, "--no-such-flag"},
      {{"complete", "-m", "/does/not/exist.gguf", "-p", "x"}, "/does/not/exist.gguf"},
      {{"complete", "-m", broken, "-p", "x"}, broken.c_str()},
      {{"complete", "-p", "x"}, "-m FILE"},
      {{"complete", "-m", kScribe, "-p", "x", "-n", "many"}, "many"},
      {{"complete", "-m", kScribe, "-p", "x", "--compact-threshold", "2"}, "--compact-threshold"},
      {{"complete", "-m", kScribe, "-p", "x", "--compact-threshold", "0.9", "--compact-method", "magic"}, "magic"},
      {{"chat", "-m", broken}, broken.c_str()},
      {{"chat", "-m", kScribe, "-sysf", "/does/not/exist"}, "/does/not/exist"},
      {{"tokenize", "-p", "x"}, "-m FILE"},
      {{"tokenize", "-m", broken, "-p", "x"}, broken.c_str()},
      {{"inspect", "-m", broken}, broken.c_str()},
      {{"inspect", "--port", "1"}, "--port"},
      {{"logits", "-m", kScribe}, "--ids"},
      {{"logits", "-m", kScribe, "--ids", "1,two"}, "two"},
      {{"logits", "-m", kScribe, "--ids", "1"}, "-o FILE"},
      {{"logits", "-m", kScribe, "--ids", "1", "-o", "/does/not/exist/x.npy"}, "/does/not/exist"},
      {{"bench"}, "-m FILE"},
      {{"bench", "-m", kScribe, "-p", "8-"}, "'"},
      {{"bench", "-m", kScribe, "-o", "xml"}, "xml"},
      {{"bench", "-m", kScribe, "-p", "0", "-n", "0"}, "nothing to run"},
      {{"bench", "-m", kScribe, "--compact-method", "select"}, "-d"},
      {{"make-model"}, "-o FILE"},
      {{"make-model", "--shape", "9000B", "-o", temporary("x.gguf")}, "qwen3 0.6B"},
      {{"no-such-command"}, "no-such-command"},
  };
  for (const Case& c : cases) {
    const Outcome outcome = run_program(c.arguments);
    EXPECT_EQ(outcome.status, 1) << c.arguments[0] << ": " << outcome.err;
    EXPECT_TRUE(contains(outcome.err, c.message))
        << c.arguments[0] << ", expected '" << c.message << "' in: " << outcome.err;
    EXPECT_EQ(outcome.out, "") << c.arguments[0];
  }
  unlink(broken.c_str());
}

TEST(Commands, HelpAndVersionSucceed) {
  for (const char* command : {"complete", "chat", "bench", "tokenize", "inspect", "logits", "make-model", "make-recall"}) {
    EXPECT_TRUE(contains(output_of({command, "--help"}), std::string("usage: shorthand ") + command));
    EXPECT_TRUE(contains(output_of({command, "--version"}), "version: "));
  }
}

}  // namespace
}  // namespace sh::tools
