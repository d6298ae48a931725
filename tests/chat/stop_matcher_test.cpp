// SPDX-License-Identifier: MIT
#include "chat/stop_matcher.h"

#include <gtest/gtest.h>

#include <algorithm>

#include "base/rng.h"
#include "base/utf8.h"

namespace sh::chat {
namespace {

struct Outcome {
  std::string text;
  int matched = -1;
  bool operator==(const Outcome&) const = default;
};

/// Looks at the whole text at once: the smallest end, then the smallest begin.
Outcome naive(const std::string& text, const std::vector<std::string>& stops) {
  size_t best_end = std::string::npos, best_begin = 0;
  int matched = -1;
  for (size_t i = 0; i < stops.size(); ++i) {
    const size_t at = stops[i].empty() ? std::string::npos : text.find(stops[i]);
    if (at == std::string::npos) continue;
    const size_t end = at + stops[i].size();
    if (end > best_end || (end == best_end && at >= best_begin)) continue;
    best_end = end;
    best_begin = at;
    matched = static_cast<int>(i);
  }
  return matched < 0 ? Outcome{text, -1} : Outcome{text.substr(0, best_begin), matched};
}

TEST(StopMatcher, StreamsAreWhatTheWholeTextGives) {
  Rng rng(20250314);
  const std::vector<std::string> letters = {"a", "b", "ab", "é", "🤔", "<|", "|>"};
  const auto random_text = [&](uint64_t n_most) {
    std::string text;
    for (uint64_t n = rng.next_u64() % (n_most + 1); n > 0; --n) text += letters[rng.next_u64() % letters.size()];
    return text;
  };
  int n_stopped = 0;
  for (int round = 0; round < 20000; ++round) {
    std::vector<std::string> stops;
    for (uint64_t n = rng.next_u64() % 4; n > 0; --n) stops.push_back(random_text(4));
    const std::string text = random_text(20);
    StopMatcher matcher(stops);
    Outcome streamed;
    for (size_t at = 0; at < text.size();) {
      const size_t n = std::min<size_t>(1 + rng.next_u64() % 5, text.size() - at);
      const std::string piece = matcher.feed(std::string_view(text).substr(at, n));
      EXPECT_TRUE(is_valid_utf8(piece)) << "a character was cut in round " << round;
      streamed.text += piece;
      at += n;
    }
    streamed.text += matcher.finish();
    streamed.matched = matcher.matched();
    ASSERT_EQ(streamed, naive(text, stops)) << "round " << round << ", text " << text;
    n_stopped += matcher.is_stopped();
  }
  EXPECT_GT(n_stopped, 2000);
}

TEST(StopMatcher, HoldsBackOnlyWhatMayStillMatch) {
  StopMatcher matcher({"</tool>", "STOP"});
  EXPECT_EQ(matcher.feed("hello </to"), "hello ");
  EXPECT_EQ(matcher.n_held_bytes(), 4u);
  EXPECT_EQ(matcher.feed("ast> ST"), "</toast> ");
  EXPECT_EQ(matcher.feed("OP and more"), "");
  EXPECT_EQ(matcher.matched(), 1);
  EXPECT_EQ(matcher.feed("ignored"), "");
  EXPECT_EQ(matcher.finish(), "");
}

TEST(StopMatcher, HoldsBackHalfACharacter) {
  StopMatcher matcher({});
  EXPECT_EQ(matcher.feed("Z\xC3"), "Z");
  EXPECT_EQ(matcher.feed("\xBC"), "ü");
  EXPECT_EQ(matcher.feed("\xF0\x9F\xA4"), "");
  EXPECT_EQ(matcher.finish(), "\xF0\x9F\xA4");
}

TEST(StopMatcher, TheLongerOfTwoThatEndTogetherWins) {
  StopMatcher matcher({"b", "ab", ""});
  EXPECT_EQ(matcher.feed("xab"), "x");
  EXPECT_EQ(matcher.matched(), 1);
}

}  // namespace
}  // namespace sh::chat
