// SPDX-License-Identifier: MIT
#include "engine/params.h"

#include <gtest/gtest.h>

#include <cstdlib>
#include <set>

#include "base/mapped_file.h"

namespace sh::engine {
namespace {

using Args = std::vector<std::string>;

/// A variable that exists while the object does.
struct ScopedVariable {
  ScopedVariable(const char* name, const char* value) : name_(name) { setenv(name, value, 1); }
  ~ScopedVariable() { unsetenv(name_); }
  const char* name_;
};

ProgramParams parse(Command command, const Args& args) {
  Result<ProgramParams> params = parse_params(command, args);
  EXPECT_TRUE(params.ok()) << (params.ok() ? "" : params.error().message);
  return params.ok() ? *params : ProgramParams{};
}
std::string parse_error(Command command, const Args& args) {
  const Result<ProgramParams> params = parse_params(command, args);
  EXPECT_FALSE(params.ok());
  return params.ok() ? "" : params.error().message;
}
bool any_contains(const std::vector<std::string>& lines, const std::string& what) {
  for (const std::string& line : lines)
    if (line.find(what) != std::string::npos) return true;
  return false;
}

TEST(Flags, ValuesReachTheirFields) {
  const ProgramParams p = parse(kServe, {"-m", "x.gguf", "--ctx-size", "4096", "-ub", "64", "-b", "128", "--temp", "0", "--top-k", "7",
                                         "-s", "5", "--host", "0.0.0.0", "--port", "0", "-a", "scribe", "--metrics", "--no-slots",
                                         "--props", "--endpoint-compact", "--compact-threshold", "0.9", "--compact-ratio", "8"});
  EXPECT_EQ(p.engine.model_path, "x.gguf");
  EXPECT_EQ(p.engine.n_ctx, 4096);
  EXPECT_EQ(p.engine.n_ubatch, 64);
  EXPECT_EQ(p.engine.n_batch, 128);
  EXPECT_EQ(p.sampling.temperature, 0.0f);
  EXPECT_EQ(p.sampling.top_k, 7);
  EXPECT_EQ(p.sampling.seed, 5u);
  EXPECT_EQ(p.server.host, "0.0.0.0");
  EXPECT_EQ(p.server.port, 0);
  EXPECT_EQ(p.engine.model_alias, "scribe");
  EXPECT_TRUE(p.server.has_metrics);
  EXPECT_FALSE(p.server.has_slots);
  EXPECT_TRUE(p.server.has_props);
  EXPECT_TRUE(p.server.has_compact);
  EXPECT_DOUBLE_EQ(p.engine.compact_threshold, 0.9);
  EXPECT_DOUBLE_EQ(p.engine.compact_ratio, 8);
  EXPECT_TRUE(p.warnings.empty());
}

TEST(Flags, UnderscoresEqualDashes) {
  EXPECT_EQ(parse(kServe, {"--ctx_size", "77"}).engine.n_ctx, 77);
  EXPECT_EQ(parse(kComplete, {"--n_predict", "3", "-p", "a_b"}).prompt, "a_b");
}

TEST(Flags, LettersAreNotGrouped) {
  EXPECT_NE(parse_error(kServe, {"-vm"}).find("unknown argument '-vm'"), std::string::npos);
}

TEST(Flags, UnknownOnesAreRefusedWithTheNearestName) {
  EXPECT_NE(parse_error(kServe, {"--ctx-sise", "5"}).find("did you mean --ctx-size?"), std::string::npos);
  EXPECT_NE(parse_error(kServe, {"--zzzzzzzzzzzz"}).find("shorthand serve --help"), std::string::npos);
  EXPECT_NE(parse_error(kServe, {"stray"}).find("'stray'"), std::string::npos);
  EXPECT_NE(parse_error(kServe, {std::string(100000, 'x')}).find("unknown"), std::string::npos);
}

TEST(Flags, AFlagOfAnotherCommandSaysWhose) {
  EXPECT_NE(parse_error(kTokenize, {"--port", "1"}).find("serve"), std::string::npos);
}

TEST(Flags, BadValuesNameFlagExpectedAndGot) {
  for (const Args& args : std::vector<Args>{{"--port", "70000"}, {"--port", "8o8o"}, {"--port", ""}, {"--port", "-1"}, {"--port", "80.5"}}) {
    const std::string message = parse_error(kServe, args);
    EXPECT_NE(message.find("--port: expected a whole number from 0 to 65535"), std::string::npos) << message;
    EXPECT_NE(message.find("'" + args[1] + "'"), std::string::npos) << message;
  }
  EXPECT_NE(parse_error(kServe, {"--temp", "nan"}).find("--temp"), std::string::npos);
  EXPECT_NE(parse_error(kServe, {"--compact-ratio", "0.5"}).find("--compact-ratio"), std::string::npos);
  for (const char* name : {"q9", "q2_K"})  // unknown, and of no use in a cache
    for (const Command command : {kServe, kBench}) {
      const std::string message = parse_error(command, {"-ctk", name});
      EXPECT_NE(message.find("-ctk: '" + std::string(name) + "' cannot hold a KV cache; use one of bf16, f16"),
                std::string::npos)
          << message;
      EXPECT_EQ(message.find("q4_K"), std::string::npos) << message;
    }
  EXPECT_NE(parse_error(kServe, {"-fa", "maybe"}).find("on, off or auto"), std::string::npos);
  EXPECT_NE(parse_error(kServe, {"-m"}).find("expected a value (FILE)"), std::string::npos);
  EXPECT_NE(parse_error(kComplete, {"-f", "/does/not/exist"}).find("/does/not/exist"), std::string::npos);
}

TEST(Flags, OptionsBehindTheMethodAreToldTheirPlace) {
  EXPECT_NE(parse_error(kChat, {"--compact-method", "self_study:fit=none"}).find("given by --compact-options"),
            std::string::npos);
}

TEST(Flags, RepeatsWarnAndTheLastCounts) {
  const ProgramParams p = parse(kServe, {"--port", "1", "--port", "2"});
  EXPECT_EQ(p.server.port, 2);
  EXPECT_TRUE(any_contains(p.warnings, "--port is given more than once"));
  const ProgramParams several = parse(kChat, {"-r", "a", "-r", "b"});
  EXPECT_EQ(several.chat.reverse_prompts, (Args{"a", "b"}));
  EXPECT_TRUE(several.warnings.empty());
}

TEST(Flags, VariablesAreReadAndTheCommandLineWinsWithAWarning) {
  const ScopedVariable size("LLAMA_ARG_CTX_SIZE", "123");
  const ScopedVariable metrics("LLAMA_ARG_ENDPOINT_METRICS", "enabled");
  const ScopedVariable no_slots("LLAMA_ARG_NO_ENDPOINT_SLOTS", "");
  const ProgramParams from_env = parse(kServe, {});
  EXPECT_EQ(from_env.engine.n_ctx, 123);
  EXPECT_TRUE(from_env.server.has_metrics);
  EXPECT_FALSE(from_env.server.has_slots);
  EXPECT_TRUE(from_env.warnings.empty());
  const ProgramParams both = parse(kServe, {"-c", "456"});
  EXPECT_EQ(both.engine.n_ctx, 456);
  EXPECT_TRUE(any_contains(both.warnings, "LLAMA_ARG_CTX_SIZE"));
}

TEST(Flags, BadVariablesAreNamed) {
  {
    const ScopedVariable port("LLAMA_ARG_PORT", "many");
    EXPECT_NE(parse_error(kServe, {}).find("LLAMA_ARG_PORT: expected"), std::string::npos);
    EXPECT_TRUE(parse_params(kTokenize, Args{}).ok()) << "a variable of another command is not read";
  }
  {
    const ScopedVariable method("LLAMA_ARG_COMPACT_METHOD", "magic");
    EXPECT_NE(parse_error(kServe, {}).find("LLAMA_ARG_COMPACT_METHOD: unknown compaction method 'magic'"),
              std::string::npos);
  }
  const ScopedVariable metrics("LLAMA_ARG_ENDPOINT_METRICS", "maybe");
  EXPECT_NE(parse_error(kServe, {}).find("LLAMA_ARG_ENDPOINT_METRICS: expected on or off"), std::string::npos);
}

TEST(Flags, VariablesThatNobodyReadsAreNamed) {
  const ScopedVariable slip("LLAMA_ARG_COMPACT_TRESHOLD", "0.9");
  const ScopedVariable other("LLAMA_ARG_QUANTUM_TUNNELS", "1");
  const ScopedVariable good("LLAMA_ARG_NO_ENDPOINT_SLOTS", "1");
  const ScopedVariable of_another_command("LLAMA_ARG_HOST", "::1");
  const ProgramParams p = parse(kTokenize, {});
  ASSERT_EQ(p.warnings.size(), 2u);
  EXPECT_EQ(
      p.warnings[0],
      "LLAMA_ARG_COMPACT_TRESHOLD is set, but no setting is called so; did you mean LLAMA_ARG_COMPACT_THRESHOLD?");
  EXPECT_EQ(p.warnings[1], "LLAMA_ARG_QUANTUM_TUNNELS is set, but no setting is called so");
}

TEST(Flags, ListsOfCompactionComeFromVariablesAndTheCommandLineReplacesThem) {
  const ScopedVariable pin("LLAMA_ARG_COMPACT_PIN", "1-3,10:20");
  const ScopedVariable options("LLAMA_ARG_COMPACT_OPTIONS", "fit=none");
  const ScopedVariable keep("LLAMA_ARG_COMPACT_KEEP", "7");
  const Args on = {"--compact-threshold", "0.9"};
  const ProgramParams from_env = parse(kServe, on);
  EXPECT_EQ(from_env.engine.compact_pinned, (std::vector<Span>{{1, 3}, {10, 20}}));
  EXPECT_EQ(from_env.engine.compact_options.size(), 1u);
  EXPECT_EQ(from_env.engine.compact_keep, 7);
  const ProgramParams both = parse(kServe, {"--compact-threshold", "0.9", "--compact-pin", "5-6", "--compact-pin",
                                            "8-9", "--compact-options", "score=max"});
  EXPECT_EQ(both.engine.compact_pinned, (std::vector<Span>{{5, 6}, {8, 9}}));
  ASSERT_EQ(both.engine.compact_options.size(), 1u);
  EXPECT_EQ(both.engine.compact_options[0].first, "score");
  EXPECT_TRUE(
      any_contains(both.warnings, "LLAMA_ARG_COMPACT_PIN is set, but the command line's --compact-pin counts"));
  const ScopedVariable wrong("LLAMA_ARG_COMPACT_PIN", "1-3,x");
  EXPECT_NE(parse_error(kServe, on).find("LLAMA_ARG_COMPACT_PIN: expected two token positions"),
            std::string::npos);
}

TEST(Flags, WhatOnlyAutomaticCompactionReadsWarnsWhileItIsOff) {
  for (const Args& args : std::vector<Args>{{"--compact-pin", "1-3"},
                                            {"--compact-keep", "3"},
                                            {"--compact-method", "select"},
                                            {"--compact-max-kl", "1"},
                                            {"--compact-target-kl", "1"},
                                            {"--compact-target-head-error", "0.1"},
                                            {"--compact-ratio", "2"},
                                            {"--compact-options", "fit=none"},
                                            {"--compact-delay"},
                                            {"--compact-rebase"}}) {
    EXPECT_TRUE(
        any_contains(parse(kServe, args).warnings, args[0] + " has no effect: automatic compaction is off"));
    const bool is_idle_in_chat = args.size() == 1;  // its /compact goes by the others
    EXPECT_EQ(any_contains(parse(kChat, args).warnings, "has no effect"), is_idle_in_chat) << args[0];
    Args on = args;
    on.insert(on.end(), {"--compact-threshold", "0.9"});
    EXPECT_TRUE(parse(kServe, on).warnings.empty()) << args[0];
  }
}

TEST(Flags, WhatPostCompactReadsToo) {
  for (const Args& args : std::vector<Args>{{"--compact-capture", "64"}, {"--compact-profile", "x.json"}}) {
    const std::string warning = args[0] + " has no effect: automatic compaction is off";
    EXPECT_TRUE(any_contains(parse(kServe, args).warnings, warning));
    EXPECT_TRUE(any_contains(parse(kComplete, args).warnings, warning));
    EXPECT_TRUE(parse(kChat, args).warnings.empty());
    Args with_endpoint = args;
    with_endpoint.push_back("--endpoint-compact");
    EXPECT_TRUE(parse(kServe, with_endpoint).warnings.empty()) << args[0];
  }
}

TEST(Flags, WhatIsKeptNeedsACompaction) {
  EXPECT_TRUE(any_contains(parse(kComplete, {"--keep", "4"}).warnings, "--keep has no effect"));
  EXPECT_TRUE(parse(kComplete, {"--keep", "4", "--compact-threshold", "0.9"}).warnings.empty());
  EXPECT_TRUE(parse(kChat, {"--keep", "4"}).warnings.empty()) << "/compact goes by it";
}

TEST(Flags, TheRatioOfBenchNeedsAMethod) {
  EXPECT_TRUE(any_contains(parse(kBench, {"--compact-ratio", "8"}).warnings,
                           "--compact-ratio has no effect: nothing is compacted without --compact-method"));
  const ProgramParams p = parse(kBench, {"--compact-ratio", "8", "--compact-method", "select"});
  EXPECT_TRUE(p.warnings.empty());
  EXPECT_EQ(p.bench.compact_ratio, 8);
}

TEST(Flags, CompatibilityFlagsAreAcceptedWithANote) {
  const ProgramParams p = parse(kServe, {"-ngl", "99", "--no-mmap", "--mlock", "-tb", "2", "--jinja"});
  EXPECT_EQ(p.notes.size(), 5u);
  EXPECT_TRUE(any_contains(p.notes, "-ngl has no effect"));
}

TEST(Flags, SlotsAreFourAndSharedUnlessAsked) {
  const ProgramParams automatic = parse(kServe, {});
  EXPECT_EQ(automatic.engine.n_parallel, 4);
  EXPECT_TRUE(automatic.engine.is_kv_unified);
  const ProgramParams divided = parse(kServe, {"-np", "2"});
  EXPECT_EQ(divided.engine.n_parallel, 2);
  EXPECT_FALSE(divided.engine.is_kv_unified);
  EXPECT_TRUE(parse(kServe, {"-np", "2", "-kvu"}).engine.is_kv_unified);
  EXPECT_EQ(parse(kChat, {}).engine.n_parallel, 1);
  EXPECT_NE(parse_error(kServe, {"-np", "0"}).find("-np"), std::string::npos);
}

TEST(Flags, WeightsAreRepackedUnlessRefused) {
  EXPECT_TRUE(parse(kServe, {}).engine.repacks);
  EXPECT_FALSE(parse(kServe, {"--no-repack"}).engine.repacks);
  EXPECT_FALSE(parse(kBench, {"-nr"}).engine.repacks);
  EXPECT_TRUE(parse(kComplete, {"--no-repack", "--repack"}).engine.repacks);
  const ScopedVariable off("LLAMA_ARG_REPACK", "0");
  EXPECT_FALSE(parse(kServe, {}).engine.repacks);
}

TEST(Flags, KeysComeFromListAndFile) {
  const std::string path = testing::TempDir() + "/shorthand_keys.txt";
  ASSERT_TRUE(write_file(path, std::string("one\n\ntwo\r\n")).ok());
  EXPECT_EQ(parse(kServe, {"--api-key", "a,b", "--api-key-file", path}).server.api_keys, (Args{"a", "b", "one", "two"}));
  ASSERT_TRUE(write_file(path, std::string("\n\n")).ok());
  EXPECT_NE(parse_error(kServe, {"--api-key-file", path}).find("holds no key"), std::string::npos);
}

TEST(Flags, PromptEscapes) {
  EXPECT_EQ(parse(kComplete, {"-p", R"(a\nb\x41\\n\q\)"}).prompt, "a\nbA\\n\\q\\");
  EXPECT_EQ(parse(kComplete, {"-p", R"(a\nb)", "--no-escape"}).prompt, R"(a\nb)");
}

TEST(Flags, HelpListsEveryFlagOfTheCommand) {
  for (const Command command : {kServe, kComplete, kChat, kBench, kEval, kTokenize, kInspect, kLogits, kMakeModel}) {
    const std::string help = help_text(command);
    std::set<std::string> taken;  // commands may share a spelling
    for (const Flag& flag : flag_table())
      if ((flag.commands & command) != 0) taken.insert(flag.names.front());
    for (const Flag& flag : flag_table()) {
      const std::string name = std::string("\n  ") + flag.names.front();
      bool is_listed = false;
      for (const char* after : {",", " ", "\n"}) is_listed = is_listed || help.find(name + after) != std::string::npos;
      EXPECT_EQ(is_listed, taken.count(flag.names.front()) > 0) << name_of(command) << " " << flag.names.front();
    }
  }
  EXPECT_TRUE(parse(kServe, {"--help"}).wants_help);
}

TEST(Flags, EachVariableBelongsToOneFlag) {
  std::set<std::string> seen;
  for (const Flag& flag : flag_table())
    if (flag.env != nullptr) {
      EXPECT_TRUE(seen.insert(flag.env).second) << flag.env;
    }
}

TEST(Flags, TheDocumentIsTheTable) {
  const Result<std::string> document = read_file(std::string(SH_SOURCE_DIR) + "/docs/flags.md");
  ASSERT_TRUE(document.ok());
  EXPECT_EQ(*document, flags_markdown()) << "run: shorthand help --markdown > docs/flags.md";
}

}  // namespace
}  // namespace sh::engine
