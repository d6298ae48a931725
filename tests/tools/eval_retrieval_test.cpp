// SPDX-License-Identifier: MIT
// Passages and their ranks.
#include "tools/eval_retrieval.h"

#include <gtest/gtest.h>

#include <cmath>
#include <string>

namespace sh::tools {
namespace {

using Passages = std::vector<std::string_view>;

TEST(SplitPassages, KeepsSentencesWholeAndLosesNothing) {
  const std::string text = "One two. Three v1.5 four!  Five\nsix? Seven";
  EXPECT_EQ(split_passages(text, 1), (Passages{"One two. ", "Three v1.5 four!  ", "Five\n", "six? ", "Seven"}));
  EXPECT_EQ(split_passages(text, 3), (Passages{"One two. Three v1.5 four!  ", "Five\nsix? Seven"}));
  EXPECT_EQ(split_passages(text, 100), Passages{text});
  EXPECT_EQ(split_passages("", 1), Passages{});
  EXPECT_EQ(split_passages("\n\nA.", 1), (Passages{"\n\nA."})) << "a passage has a word";
}

TEST(Bm25, IsTheFormula) {
  // "red" is in one of two passages of 3 and 1 words: length 2 on average.
  const Passages passages = {"Red red wine", "blue"};
  const std::vector<double> scores = bm25(passages, "RED?");
  const double rarity = std::log(1 + (2 - 1 + 0.5) / (1 + 0.5)), length = 0.25 + 0.75 * 3 / 2;
  EXPECT_DOUBLE_EQ(scores[0], rarity * 2 * 2.2 / (2 + 1.2 * length));
  EXPECT_EQ(scores[1], 0);
}

TEST(Bm25, RareWordsCountMoreAndRepeatedOnesOnce) {
  const Passages passages = {"the door is red", "the key is here", "the wall is tall"};
  const std::vector<double> key = bm25(passages, "the the the is key");
  EXPECT_GT(key[1], key[0]);
  EXPECT_EQ(key, bm25(passages, "the is key"));
  EXPECT_EQ(bm25(passages, "elsewhere"), std::vector<double>(3));
  EXPECT_EQ(bm25({}, "the"), std::vector<double>{});
  const Passages umlauts = {"Gr\u00f6\u00dfe 5", "Gr 5"};
  EXPECT_GT(bm25(umlauts, "gr\u00f6\u00dfe")[0], 0) << "bytes above ASCII belong to words";
  EXPECT_EQ(bm25(umlauts, "gr\u00f6\u00dfe")[1], 0);
}

}  // namespace
}  // namespace sh::tools
