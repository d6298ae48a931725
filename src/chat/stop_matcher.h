// SPDX-License-Identifier: MIT
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace sh::chat {

/// Finds stop strings in a stream of bytes, and says what may be shown already. Bytes that may still become a stop
/// string are held back, and so is a UTF-8 sequence that is not complete: what it emits is whole characters (of
/// valid UTF-8) that are before any stop string.
///
/// The stop string that ends first wins; of those that end together, the one that begins first.
class StopMatcher {
 public:
  /// Empty stop strings are ignored.
  explicit StopMatcher(std::vector<std::string> stops);

  /// Takes bytes and returns those that can be emitted now. After a stop string was found, nothing more is taken
  /// or emitted. Cost: O(bytes · total length of the stop strings) at worst.
  std::string feed(std::string_view bytes);

  /// The end of the stream: what was held back.
  std::string finish();

  /// Whether a stop string was found, and which (-1: none), as an index into the list given.
  bool is_stopped() const { return matched_ >= 0; }
  int matched() const { return matched_; }
  /// Bytes held back at the moment.
  size_t n_held_bytes() const { return held_.size(); }

 private:
  /// Whether the stop string `stop` ends at `end` of the bytes held.
  bool ends_at(const std::string& stop, size_t end) const;
  /// Bytes at the end of held_ that begin some stop string.
  size_t longest_partial_match() const;

  std::vector<std::string> stops_;
  std::string held_;
  int matched_ = -1;
};

}  // namespace sh::chat
