// SPDX-License-Identifier: MIT
#include "tokenizer/special_tokens.h"

#include <algorithm>

namespace sh::tokenizer {

namespace {
bool is_ascii_space(char c) {
  return c == ' ' || (c >= '\t' && c <= '\r');
}
}  // namespace

void SpecialTokens::add(std::string_view text, TokenId id, bool eats_space_after) {
  if (text.empty()) return;
  auto at =
      std::find_if(lengths_.begin(), lengths_.end(), [&](const OneLength& l) { return l.n_bytes <= text.size(); });
  if (at == lengths_.end() || at->n_bytes != text.size()) {
    at = lengths_.insert(at, OneLength{});
    at->n_bytes = text.size();
  }
  const auto first = static_cast<unsigned char>(text[0]);
  at->can_begin[first] = true;
  can_begin_[first] = true;
  at->tokens.emplace(text, Token{id, eats_space_after});
}

std::vector<Fragment> SpecialTokens::split(std::string_view text) const {
  std::vector<size_t> starts;
  for (size_t i = 0; i < text.size(); ++i) {
    if (can_begin_[static_cast<unsigned char>(text[i])]) starts.push_back(i);
  }
  std::vector<Fragment> found;
  std::vector<bool> is_taken(starts.empty() ? 0 : text.size());
  for (const OneLength& length : lengths_) {
    for (const size_t begin : starts) {
      size_t end = begin + length.n_bytes;
      // What is taken already is at least as long as this token, so an overlap covers its first or its last byte.
      if (end > text.size() || is_taken[begin] || is_taken[end - 1]) continue;
      if (!length.can_begin[static_cast<unsigned char>(text[begin])]) continue;
      const auto token = length.tokens.find(text.substr(begin, length.n_bytes));
      if (token == length.tokens.end()) continue;
      if (token->second.eats_space_after) {
        while (end < text.size() && !is_taken[end] && is_ascii_space(text[end])) ++end;
      }
      std::fill(is_taken.begin() + static_cast<std::ptrdiff_t>(begin),
                is_taken.begin() + static_cast<std::ptrdiff_t>(end), true);
      found.push_back({begin, end, token->second.id});
    }
  }
  std::sort(found.begin(), found.end(), [](const Fragment& a, const Fragment& b) { return a.begin < b.begin; });
  std::vector<Fragment> fragments;
  size_t done = 0;
  for (const Fragment& token : found) {
    if (token.begin > done) fragments.push_back({done, token.begin, kNoToken});
    fragments.push_back(token);
    done = token.end;
  }
  if (done < text.size()) fragments.push_back({done, text.size(), kNoToken});
  return fragments;
}

}  // namespace sh::tokenizer
