// SPDX-License-Identifier: MIT
#include "chat/stop_matcher.h"

#include <algorithm>
#include <utility>

#include "base/utf8.h"

namespace sh::chat {

StopMatcher::StopMatcher(std::vector<std::string> stops) : stops_(std::move(stops)) {}

bool StopMatcher::ends_at(const std::string& stop, size_t end) const {
  return !stop.empty() && stop.size() <= end && held_.compare(end - stop.size(), stop.size(), stop) == 0;
}

size_t StopMatcher::longest_partial_match() const {
  size_t longest = 0;
  for (const std::string& stop : stops_) {
    for (size_t n = std::min(stop.size(), held_.size()); n > longest; --n) {
      if (held_.compare(held_.size() - n, n, stop, 0, n) == 0) {
        longest = n;
        break;
      }
    }
  }
  return longest;
}

std::string StopMatcher::feed(std::string_view bytes) {
  if (is_stopped()) return {};
  const size_t n_seen = held_.size();
  held_ += bytes;
  for (size_t end = n_seen + 1; end <= held_.size(); ++end) {
    for (size_t i = 0; i < stops_.size(); ++i)
      if (ends_at(stops_[i], end) &&
          (matched_ < 0 || stops_[i].size() > stops_[static_cast<size_t>(matched_)].size()))
        matched_ = static_cast<int>(i);
    if (!is_stopped()) continue;
    std::string before = held_.substr(0, end - stops_[static_cast<size_t>(matched_)].size());
    held_.clear();
    return before;
  }
  size_t n_keep = longest_partial_match();
  // The bytes before a possible stop string may themselves end within a character.
  n_keep += incomplete_utf8_tail(std::string_view(held_).substr(0, held_.size() - n_keep));
  std::string ready = held_.substr(0, held_.size() - n_keep);
  held_.erase(0, ready.size());
  return ready;
}

std::string StopMatcher::finish() {
  return std::exchange(held_, {});
}

}  // namespace sh::chat
