// SPDX-License-Identifier: MIT
// Documents with facts that cannot be known or guessed, made from any text: what compact-eval --recall reads.
// Source:  the rules for own documents in docs/make-recall.md.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "base/json.h"
#include "base/result.h"
#include "tools/recall_patterns.h"
#include "tools/recall_text.h"

namespace sh::tools {

struct RecallSpec {
  std::string label;  // ids are label-000, label-001, ...
  std::vector<std::string> texts;
  int64_t n_tokens = 4096;  // of a document; between 95 and 100 % of it are used
  int64_t n_documents = 10, n_facts = 20;
  uint64_t seed = 1;
  std::vector<std::string> kinds;  // empty: all that the patterns have
  bool has_instruction = true;
  std::function<int64_t(const std::string&)> count_tokens;
};

/// One document: {"id", "n_tokens", "context", "instruction"?, "questions"}, as docs/make-recall.md says. The same
/// spec gives the same bytes. Fewer questions than facts were asked for come back where the text has too few
/// neighbouring sentences to quote. Errors: invalid_argument when the text is too short for the length or the length
/// too short for the facts, and what to change.
Result<std::vector<Json>> make_recall(const RecallSpec& spec, const RecallPatterns& patterns);

}  // namespace sh::tools
