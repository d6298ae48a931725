// SPDX-License-Identifier: MIT
// Every vocabulary of the golden data, exactly: ids, text and end-of-generation set as llama.cpp gives them.
#include <gtest/gtest.h>

#include <algorithm>
#include <sstream>

#include "base/json.h"
#include "base/mapped_file.h"
#include "tokenizer/gguf_vocabulary.h"
#include "tokenizer/tokenizer.h"

namespace sh::tokenizer {
namespace {

constexpr const char* kGolden = SH_SOURCE_DIR "/tests/golden/";

Json read_json(const std::string& path) {
  auto text = read_file(kGolden + path);
  EXPECT_TRUE(text.ok()) << text.error().message;
  auto json = parse_json(*text);
  EXPECT_TRUE(json.ok()) << json.error().message;
  return std::move(*json);
}

std::unique_ptr<Tokenizer> make(const std::string& path) {
  auto tokenizer = Tokenizer::create(test::read_golden_vocabulary(path));
  EXPECT_TRUE(tokenizer.ok()) << tokenizer.error().message;
  return std::move(*tokenizer);
}

std::string to_hex(const std::string& bytes) {
  std::string hex;
  for (const unsigned char c : bytes) {
    hex += "0123456789abcdef"[c >> 4];
    hex += "0123456789abcdef"[c & 15];
  }
  return hex;
}

std::vector<std::string> vocabulary_names() {
  std::vector<std::string> names;
  const Json manifest = read_json("tokenizer_manifest.json");
  for (const auto& [name, value] : manifest["vocabs"].items()) names.push_back(name);
  return names;
}

class GoldenVocabulary : public testing::TestWithParam<std::string> {
 protected:
  const Json manifest_ = read_json("tokenizer_manifest.json");
  const Json& entry_ = manifest_["vocabs"][GetParam()];
};

TEST_P(GoldenVocabulary, EncodesAndDecodesEveryText) {
  const auto tokenizer = make(entry_["file"].get<std::string>());
  const auto texts = read_json(manifest_["texts"].get<std::string>()).get<std::vector<std::string>>();
  const Json cases = read_json(entry_["cases"].get<std::string>());
  ASSERT_EQ(cases.size(), texts.size());
  for (size_t i = 0; i < texts.size(); ++i) {
    SCOPED_TRACE("text " + std::to_string(i) + ": " + texts[i]);
    const auto ids = cases[i]["ids"].get<std::vector<TokenId>>();
    const auto ids_special = cases[i]["ids_special"].get<std::vector<TokenId>>();
    EXPECT_EQ(tokenizer->encode(texts[i], {}), ids);
    EXPECT_EQ(tokenizer->encode(texts[i], {.add_special = true, .parse_special = true}), ids_special);
    const std::string text =
        cases[i].contains("detokenized_hex") ? cases[i]["detokenized_hex"].get<std::string>() : to_hex(texts[i]);
    EXPECT_EQ(to_hex(tokenizer->decode(ids, false)), text);
    const std::string rendered = cases[i].contains("detokenized_special_hex")
                                     ? cases[i]["detokenized_special_hex"].get<std::string>()
                                     : text;
    EXPECT_EQ(to_hex(tokenizer->decode(ids_special, true)), rendered);
  }
}

TEST_P(GoldenVocabulary, ResolvesSpecialTokens) {
  const auto tokenizer = make(entry_["file"].get<std::string>());
  EXPECT_EQ(tokenizer->n_vocab(), entry_["n_vocab"].get<int32_t>());
  EXPECT_EQ(tokenizer->data().bos, entry_["bos"].get<TokenId>());
  EXPECT_EQ(tokenizer->data().eos, entry_["eos"].get<TokenId>());
  EXPECT_EQ(tokenizer->adds_bos(), entry_["add_bos"].get<bool>());
  EXPECT_EQ(tokenizer->adds_eos(), entry_["add_eos"].get<bool>());
  std::vector<TokenId> ends;
  for (TokenId id = 0; id < tokenizer->n_vocab(); ++id) {
    if (tokenizer->is_end_of_generation(id)) ends.push_back(id);
  }
  auto expected = entry_["eog"].get<std::vector<TokenId>>();
  std::sort(expected.begin(), expected.end());
  EXPECT_EQ(ends, expected);
}

INSTANTIATE_TEST_SUITE_P(All, GoldenVocabulary, testing::ValuesIn(vocabulary_names()), [](const auto& parameter) {
  std::string name = parameter.param;
  std::replace_if(
      name.begin(), name.end(), [](unsigned char c) { return std::isalnum(c) == 0; }, '_');
  return name;
});

/// The pairs that come with the real vocabularies: texts one after the other, ids a line each.
class GoldenPairs : public testing::TestWithParam<std::string> {};

TEST_P(GoldenPairs, EncodesEveryText) {
  const std::string path = "tokenizer/ggml-vocab-" + GetParam() + ".gguf";
  const auto tokenizer = make(path);
  auto input = read_file(kGolden + path + ".inp");
  auto output = read_file(kGolden + path + ".out");
  ASSERT_TRUE(input.ok() && output.ok());
  constexpr std::string_view kSeparator = "\n__ggml_vocab_test__\n";
  std::istringstream lines(*output);
  std::string line;
  size_t n_texts = 0;
  for (size_t begin = 0; std::getline(lines, line); ++n_texts) {
    ASSERT_LT(begin, input->size());
    const size_t end = std::min(input->find(kSeparator, begin), input->size());
    std::istringstream numbers(line);
    const std::vector<TokenId> expected{std::istream_iterator<TokenId>(numbers), {}};
    const std::string text = input->substr(begin, end - begin);
    EXPECT_EQ(tokenizer->encode(text, {}), expected) << "text " << n_texts << ": " << text;
    begin = end + kSeparator.size();
  }
  EXPECT_GT(n_texts, 40u);
}

INSTANTIATE_TEST_SUITE_P(All, GoldenPairs,
                         testing::Values("llama-spm", "phi-3", "gpt-2", "deepseek-coder", "deepseek-llm",
                                         "starcoder"),
                         [](const auto& parameter) {
                           std::string name = parameter.param;
                           std::replace(name.begin(), name.end(), '-', '_');
                           return name;
                         });

}  // namespace
}  // namespace sh::tokenizer
