// SPDX-License-Identifier: MIT
#pragma once

#include <cstdint>
#include <memory>
#include <string_view>
#include <vector>

#include "base/result.h"
#include "tokenizer/pre_tokenizer_table.h"

namespace sh::tokenizer {

/// The compiled patterns of one rule. Threads: split() may be called at once.
class PreTokenizer {
 public:
  /// Errors: unsupported, when the regular-expression library refuses a pattern.
  static Result<PreTokenizer> create(const PreTokenizerRule& rule);
  PreTokenizer(PreTokenizer&&) noexcept;
  PreTokenizer& operator=(PreTokenizer&&) noexcept;
  ~PreTokenizer();

  /// Cuts `text` into words; returns the end of each, so the last is text.size(). Text between two matches is a
  /// word too. Needs:  text is valid UTF-8. Cost:   linear; a match that would exceed the limits ends the search,
  /// and what is left of its piece is one word.
  std::vector<size_t> split(std::string_view text) const;

 private:
  struct State;
  explicit PreTokenizer(std::unique_ptr<State> state);
  std::unique_ptr<State> state_;
};

}  // namespace sh::tokenizer
