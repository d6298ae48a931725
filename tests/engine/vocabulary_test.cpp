// SPDX-License-Identifier: MIT
#include "engine/vocabulary.h"

#include <gtest/gtest.h>

namespace sh::engine {
namespace {

using gguf::Array;
using Strings = std::vector<std::string>;

gguf::Writer good_file() {
  gguf::Writer writer;
  writer.set("general.name", std::string("toy"));
  writer.set("tokenizer.ggml.model", std::string("gpt2"));
  writer.set("tokenizer.ggml.pre", std::string("gpt-2"));
  writer.set("tokenizer.ggml.tokens", Array{Strings{"a", "b", "ab", "<s>"}});
  writer.set("tokenizer.ggml.scores", Array{std::vector<double>{0, -1, -2, -3}});
  writer.set("tokenizer.ggml.token_type", Array{std::vector<int64_t>{1, 1, 1, 3}});
  writer.set("tokenizer.ggml.merges", Array{Strings{"a b"}});
  writer.set("tokenizer.ggml.bos_token_id", int64_t{3});
  writer.set("tokenizer.ggml.add_bos_token", true);
  return writer;
}
Result<tokenizer::VocabularyData> read(const gguf::Writer& writer) {
  const std::vector<std::byte> bytes = writer.to_bytes();
  const auto file = gguf::File::parse(bytes, "toy.gguf");
  EXPECT_TRUE(file.ok()) << (file.ok() ? "" : file.error().message);
  return read_vocabulary(*file);
}

TEST(Vocabulary, ReadsWhatTheFileSays) {
  const auto data = read(good_file());
  ASSERT_TRUE(data.ok()) << data.error().message;
  EXPECT_EQ(data->model, "gpt2");
  EXPECT_EQ(data->pre, "gpt-2");
  EXPECT_EQ(data->model_name, "toy");
  EXPECT_EQ(data->pieces, (Strings{"a", "b", "ab", "<s>"}));
  EXPECT_EQ(data->scores, (std::vector<float>{0, -1, -2, -3}));
  EXPECT_EQ(data->kinds[3], tokenizer::TokenKind::control);
  EXPECT_EQ(data->merges, Strings{"a b"});
  EXPECT_EQ(data->bos, 3);
  EXPECT_EQ(data->eos, tokenizer::kNoToken);
  EXPECT_EQ(data->add_bos, true);
  EXPECT_FALSE(data->add_eos.has_value());
}

TEST(Vocabulary, ContradictionsAreCorrupt) {
  struct Case {
    const char* key;
    gguf::Value value;
  };
  const Case cases[] = {
      {"tokenizer.ggml.tokens", Array{Strings{}}},
      {"tokenizer.ggml.tokens", std::string("a")},
      {"tokenizer.ggml.scores", Array{std::vector<double>{0, 1}}},
      {"tokenizer.ggml.token_type", Array{std::vector<int64_t>{1, 1, 1}}},
      {"tokenizer.ggml.token_type", Array{std::vector<int64_t>{1, 1, 1, 7}}},
      {"tokenizer.ggml.token_type", Array{std::vector<int64_t>{1, 1, 1, -1}}},
      {"tokenizer.ggml.bos_token_id", int64_t{4}},
      {"tokenizer.ggml.eos_token_id", int64_t{-1}},
      {"tokenizer.ggml.unknown_token_id", int64_t{1} << 40},
      {"tokenizer.ggml.eot_token_id", std::string("<s>")},
      {"tokenizer.ggml.add_bos_token", int64_t{1}},
      {"tokenizer.ggml.merges", Array{std::vector<int64_t>{1}}},
      {"tokenizer.ggml.model", int64_t{1}},
  };
  for (const Case& c : cases) {
    gguf::Writer writer = good_file();
    writer.set(c.key, c.value);
    const auto data = read(writer);
    ASSERT_FALSE(data.ok()) << c.key;
    EXPECT_EQ(data.error().kind, ErrorKind::corrupt) << data.error().message;
    EXPECT_NE(data.error().message.find("toy.gguf"), std::string::npos) << data.error().message;
    EXPECT_NE(data.error().message.find(c.key), std::string::npos) << data.error().message;
  }
  const auto nothing = read(gguf::Writer());
  ASSERT_FALSE(nothing.ok());
  EXPECT_NE(nothing.error().message.find("tokenizer.ggml.model"), std::string::npos);
}

}  // namespace
}  // namespace sh::engine
