// SPDX-License-Identifier: MIT
#include "tools/eval_retrieval.h"

#include <cctype>
#include <cmath>
#include <map>
#include <set>
#include <string>

namespace sh::tools {

namespace {

bool is_word_byte(char c) {
  const auto byte = static_cast<unsigned char>(c);
  return byte >= 0x80 || std::isalnum(byte) != 0;
}

std::vector<std::string> words_in(std::string_view text) {
  std::vector<std::string> words;
  bool is_inside = false;
  for (const char c : text) {
    if (is_word_byte(c)) {
      if (!is_inside) words.emplace_back();
      words.back() += static_cast<char>(std::tolower(static_cast<unsigned char>(c)));
    }
    is_inside = is_word_byte(c);
  }
  return words;
}

/// The end of the sentence or line that begins at `begin`, the white space after it included.
size_t end_of_sentence(std::string_view text, size_t begin) {
  size_t at = begin;
  const auto is_space = [&](size_t i) { return std::isspace(static_cast<unsigned char>(text[i])) != 0; };
  for (; at < text.size(); ++at) {
    const bool ends = text[at] == '.' || text[at] == '!' || text[at] == '?';
    if (text[at] == '\n' || (ends && at + 1 < text.size() && is_space(at + 1))) break;
  }
  if (at < text.size()) ++at;
  while (at < text.size() && is_space(at)) ++at;
  return at;
}

}  // namespace

std::vector<std::string_view> split_passages(std::string_view text, int64_t n_words) {
  std::vector<std::string_view> passages;
  for (size_t begin = 0; begin < text.size();) {
    size_t end = begin;
    do {
      end = end_of_sentence(text, end);
    } while (end < text.size() && std::ssize(words_in(text.substr(begin, end - begin))) < n_words);
    passages.push_back(text.substr(begin, end - begin));
    begin = end;
  }
  return passages;
}

std::vector<double> bm25(std::span<const std::string_view> passages, std::string_view query) {
  constexpr double kSaturation = 1.2, kLengthWeight = 0.75;
  std::vector<std::map<std::string, double>> counts(passages.size());
  std::vector<double> lengths(passages.size());
  std::map<std::string, double> n_with;
  double mean_length = 0;
  for (size_t i = 0; i < passages.size(); ++i) {
    for (const std::string& word : words_in(passages[i])) {
      if (++counts[i][word] == 1) ++n_with[word];
      ++lengths[i];
    }
    mean_length += lengths[i] / static_cast<double>(passages.size());
  }
  const std::vector<std::string> query_words = words_in(query);
  const std::set<std::string> wanted(query_words.begin(), query_words.end());
  std::vector<double> scores(passages.size());
  for (const std::string& word : wanted) {
    const auto known = n_with.find(word);
    if (known == n_with.end()) continue;
    const double n = known->second, n_all = static_cast<double>(passages.size());
    const double rarity = std::log(1 + (n_all - n + 0.5) / (n + 0.5));
    for (size_t i = 0; i < passages.size(); ++i) {
      const auto found = counts[i].find(word);
      if (found == counts[i].end()) continue;
      const double length = 1 - kLengthWeight + kLengthWeight * lengths[i] / mean_length;
      scores[i] += rarity * found->second * (kSaturation + 1) / (found->second + kSaturation * length);
    }
  }
  return scores;
}

}  // namespace sh::tools
