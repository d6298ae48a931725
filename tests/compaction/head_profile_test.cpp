// SPDX-License-Identifier: MIT
#include "compaction/head_profile.h"

#include <gtest/gtest.h>

#include <cmath>
#include <string>

#include "base/rng.h"

namespace sh::compaction {
namespace {

HeadProfile random_profile(uint64_t seed, std::vector<size_t> heads_of_layers) {
  Rng rng(seed);
  HeadProfile profile{.model = "llama-5x64", .method = "self_study", .ratio = 16, .n_documents = 3};
  double sum = 0;
  for (const size_t n_heads : heads_of_layers) {
    profile.shares.emplace_back(n_heads);
    for (float& share : profile.shares.back()) sum += share = static_cast<float>(rng.next_unit());
  }
  for (auto& layer : profile.shares)
    for (float& share : layer) share /= static_cast<float>(sum);
  return profile;
}

TEST(HeadProfile, ReadsBackBitForBit) {
  const HeadProfile profile = random_profile(1, {2, 0, 2, 8});  // layer 1 is never compacted
  const std::string text = format_head_profile(profile);
  const HeadProfile read = parse_head_profile(text, "p.json").value();
  EXPECT_EQ(read.model, profile.model);
  EXPECT_EQ(read.method, profile.method);
  EXPECT_EQ(read.ratio, profile.ratio);
  EXPECT_EQ(read.n_documents, profile.n_documents);
  EXPECT_EQ(read.shares, profile.shares);
  EXPECT_EQ(format_head_profile(read), text);
}

TEST(HeadProfile, IsWrittenForPeople) {
  const HeadProfile profile{
      .model = "m", .method = "select", .ratio = 8, .n_documents = 2, .shares = {{0.1f}, {0.9f}}};
  EXPECT_EQ(format_head_profile(profile),
            "{\n  \"format\": \"shorthand-head-profile\",\n  \"version\": 1,\n  \"model\": \"m\",\n"
            "  \"method\": \"select\",\n  \"ratio\": 8.0,\n  \"documents\": 2,\n  \"shares\": {\n"
            "    \"L0H0\": 0.1,\n    \"L1H0\": 0.9\n  }\n}\n");
}

// A file that is right but for its shares, or for one other field.
std::string with_shares(const std::string& shares) {
  return R"({"format": "shorthand-head-profile", "version": 1, "model": "m", "method": "s", "ratio": 8, )"
         R"("documents": 2, "shares": )" +
         shares + "}";
}
std::string with_field(const std::string& field, const std::string& value) {
  std::string text = with_shares(R"({"L0H0": 1})");
  const size_t begin = text.find("\"" + field + "\"");
  const size_t colon = text.find(": ", begin) + 2;
  return text.replace(colon, text.find(field == "shares" ? "}" : ",", colon) + (field == "shares") - colon, value);
}

struct Broken {
  std::string text;
  std::string expected;  // in the message
};

TEST(HeadProfile, WhatIsBrokenIsNamed) {
  ASSERT_TRUE(parse_head_profile(with_shares(R"({"L0H0": 1})"), "p.json").ok());
  ASSERT_TRUE(parse_head_profile(with_field("ratio", "1.5"), "p.json").ok());
  const std::string deep(5000, '[');
  const Broken cases[] = {
      {"", "malformed JSON"},
      {"{", "malformed JSON"},
      {deep, "nested deeper"},
      {"[1]", "expected a JSON object, found [1]"},
      {R"({"L0H0": 1})", "field 'format' should be \"shorthand-head-profile\", found nothing"},
      {with_field("format", "\"gguf\""), "field 'format' should be \"shorthand-head-profile\", found \"gguf\""},
      {with_field("version", "2"), "field 'version' should be 1, the only one that this program knows, found 2"},
      {with_field("version", "\"1\""), "found \"1\""},
      {with_field("model", "7"), "field 'model' should be a string, found 7"},
      {with_field("method", "null"), "field 'method' should be a string, found null"},
      {with_field("ratio", "0.5"), "field 'ratio' should be a number from 1"},
      {with_field("ratio", "\"8\""), "field 'ratio' should be a number from 1"},
      {with_field("ratio", "1e999"), "malformed JSON"},
      {with_field("documents", "0"), "field 'documents' should be a number from 1"},
      {with_field("documents", "2.5"), "field 'documents' should be a whole number, found 2.5"},
      {with_field("documents", "18446744073709551615"), "field 'documents' should be a number from 1"},
      {with_field("documents", "2, \"comment\": \"x\""), "unknown field \"comment\""},
      {with_field("shares", "{}"), "field 'shares' should be an object"},
      {with_field("shares", "[1]"), "field 'shares' should be an object"},
      // Names of heads: no digits, signs, leading zeros, something after it, numbers that would allocate.
      {with_shares(R"({"L1H": 1})"), "\"L1H\" in shares is not the name of a head"},
      {with_shares(R"({"LH": 1})"), "is not the name of a head"},
      {with_shares(R"({"L0": 1})"), "is not the name of a head"},
      {with_shares(R"({"": 1})"), "is not the name of a head"},
      {with_shares(R"({"l0h0": 1})"), "is not the name of a head"},
      {with_shares(R"({"L-1H0": 1})"), "is not the name of a head"},
      {with_shares(R"({"L+1H0": 1})"), "is not the name of a head"},
      {with_shares(R"({"L 1H0": 1})"), "is not the name of a head"},
      {with_shares(R"({"L00H0": 1})"), "is not the name of a head"},
      {with_shares(R"({"L0H01": 1})"), "is not the name of a head"},
      {with_shares(R"({"L0H0x": 1})"), "is not the name of a head"},
      {with_shares(R"({"L10000H0": 1})"), "each at most 9999"},
      {with_shares(R"({"L0H99999999999999999999": 1})"), "each at most 9999"},
      {with_shares(R"({"L0H0": -0.5, "L0H1": 1.5})"), "share L0H0 should be a number from 0 to 1, found -0.5"},
      {with_shares(R"({"L0H0": 1.5})"), "share L0H0 should be a number from 0 to 1, found 1.5"},
      {with_shares(R"({"L0H0": null})"), "share L0H0 should be a number from 0 to 1, found null"},
      {with_shares(R"({"L0H0": NaN})"), "malformed JSON"},
      {with_shares(R"({"L0H0": "1"})"), "share L0H0 should be a number from 0 to 1, found \"1\""},
      {with_shares(R"({"L0H0": 0.5, "L0H2": 0.5})"), "shares lack L0H1"},
      {with_shares(R"({"L0H0": 0.5, "L0H1": 0.4})"), "should sum to 1, found 0.9"},
  };
  for (const Broken& broken : cases) {
    const auto read = parse_head_profile(broken.text, "p.json");
    ASSERT_FALSE(read.ok()) << broken.text;
    EXPECT_EQ(read.error().kind, ErrorKind::invalid_argument);
    EXPECT_NE(read.error().message.find(broken.expected), std::string::npos)
        << read.error().message << "\nexpected: " << broken.expected;
    EXPECT_NE(read.error().message.find("p.json"), std::string::npos) << read.error().message;
    EXPECT_LT(read.error().message.size(), 600u);  // a bad file is quoted, not repeated
  }
}

TEST(HeadProfile, EveryCutOfAFileIsRefused) {
  const std::string text = format_head_profile(random_profile(2, {2, 2}));
  for (size_t n = 0; n + 2 < text.size(); ++n)  // without the last brace
    EXPECT_FALSE(parse_head_profile(text.substr(0, n), "p.json").ok()) << n;
}

TEST(HeadProfile, AverageWeighsDocuments) {
  HeadProfile a{.model = "m", .method = "s", .ratio = 8, .n_documents = 3, .shares = {{0.2f, 0.8f}}};
  HeadProfile b = a;
  b.n_documents = 1;
  b.ratio = 16;
  b.shares = {{0.6f, 0.4f}};
  const HeadProfile profiles[] = {a, b};
  const HeadProfile mean = average(profiles).value();
  EXPECT_EQ(mean.n_documents, 4);
  EXPECT_DOUBLE_EQ(mean.ratio, 10);
  EXPECT_FLOAT_EQ(mean.shares[0][0], 0.3f);
  EXPECT_FLOAT_EQ(mean.shares[0][1], 0.7f);
  EXPECT_TRUE(parse_head_profile(format_head_profile(mean), "mean").ok());
}

TEST(HeadProfile, AverageRefusesProfilesThatDoNotBelongTogether) {
  EXPECT_FALSE(average({}).ok());
  const HeadProfile good = random_profile(3, {2, 2});
  HeadProfile other_model = good, other_method = good, other_layers = good, other_heads = good;
  other_model.model = "x";
  other_method.method = "x";
  other_layers.shares.pop_back();
  other_heads.shares[1].push_back(0);
  for (const HeadProfile& other : {other_model, other_method, other_layers, other_heads}) {
    const HeadProfile profiles[] = {good, other};
    EXPECT_FALSE(average(profiles).ok());
  }
}

TEST(HeadProfile, SharesOfAPlan) {
  const HeadId heads[] = {{0, 0}, {0, 1}, {2, 0}};  // layer 1 has none
  const int64_t kept[] = {1, 0, 3};
  EXPECT_EQ(shares_of(heads, kept), (std::vector<std::vector<float>>{{0.25f, 0.0f}, {}, {0.75f}}));
  const int64_t nothing[] = {0, 0, 0};
  EXPECT_FLOAT_EQ(shares_of(heads, nothing)[2][0], 1.0f / 3);
}

TEST(HeadProfile, SharesAreGivenInTheOrderOfTheHeads) {
  const HeadProfile profile{.model = "m", .method = "s", .shares = {{0.1f, 0.2f}, {}, {0.3f, 0.4f}}};
  const HeadId heads[] = {{2, 1}, {0, 0}, {0, 1}, {2, 0}};
  EXPECT_EQ(shares_for(profile, "m", heads).value(), (std::vector<float>{0.4f, 0.1f, 0.2f, 0.3f}));
}

TEST(HeadProfile, AProfileThatDoesNotFitIsRefused) {
  const HeadProfile profile{.model = "m", .method = "s", .shares = {{0.5f}, {0.5f}}};
  const auto message = [&](std::string_view model, std::vector<HeadId> heads) {
    const auto shares = shares_for(profile, model, heads);
    return shares.ok() ? std::string() : shares.error().message;
  };
  EXPECT_EQ(message("m", {{0, 0}, {1, 0}}), "");
  EXPECT_NE(message("n", {{0, 0}, {1, 0}}).find("made for model 'm', but the model loaded is 'n'"),
            std::string::npos);
  EXPECT_NE(message("m", {{0, 0}, {1, 0}, {1, 1}}).find("no share for L1H1"), std::string::npos);
  EXPECT_NE(message("m", {{0, 0}, {1, 0}, {2, 0}}).find("no share for L2H0"), std::string::npos);
  EXPECT_NE(message("m", {{0, 0}}).find("a share of 0.5 for L1H0, which is not compacted"), std::string::npos);
}

}  // namespace
}  // namespace sh::compaction
