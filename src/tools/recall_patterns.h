// SPDX-License-Identifier: MIT
// Sentence patterns of make-recall: what is stated, what is asked and what the answer is, with slots for invented
// values. The built-in ones and a user's own (--patterns FILE, docs/make-recall.md) are read by the same reader.
#pragma once

#include <cstdint>
#include <map>
#include <set>
#include <string>
#include <string_view>
#include <vector>

#include "base/result.h"
#include "base/rng.h"

namespace sh::tools {

struct RecallPattern {
  std::string kind;                     // one of recall_kinds()
  std::vector<std::string> statements;  // one sentence each; of `update` the later overrides the earlier
  std::string question, answer;
  std::vector<std::string> accept;  // other answers that are right
  int64_t repeat_min = 0,
          repeat_max = 0;  // count, list_all: how often the statement is made, each time with a new {item}
  std::string item;        // slot type of {item}
};

struct RecallPatterns {
  std::vector<RecallPattern> patterns;
  std::map<std::string, std::vector<std::string>> lists;  // slot types of the file's own
  std::set<std::string> repeatable;  // those of them whose values may come back in one document
  std::string suffix;                // after every question but those of kind verbatim
  std::string instruction;           // "" : none
};

/// direct, paraphrased, reverse, two_hop, update, absent, count, list_all, verbatim.
const std::vector<std::string>& recall_kinds();

/// Reads the JSON of a pattern file; `where` names it in messages.
/// Errors: invalid_argument for anything that could not make a sound question: unknown kinds and slots, an answer
/// that no statement holds, a question without a slot of its own.
Result<RecallPatterns> parse_recall_patterns(const std::string& json, const std::string& where);
/// The JSON text of the built-in patterns.
std::string_view default_recall_patterns();

/// Values of one document: each is drawn once, none stands in `text`.
class SlotValues {
 public:
  SlotValues(const RecallPatterns& patterns, std::string_view text, Rng& rng)
      : patterns_(patterns), text_(text), rng_(rng) {}
  /// A new value for a slot type ("person", "code", a list of the file).
  /// Errors: invalid_argument when a list is used up.
  Result<std::string> draw(const std::string& type);

 private:
  const RecallPatterns& patterns_;
  std::string_view text_;
  Rng& rng_;
  std::set<std::string> used_;
};

/// "person" for the slot name "person2".
std::string slot_type(std::string_view name);
/// Names of the slots of a template, in order, with repeats. Needs: a template that parse_recall_patterns()
/// accepted.
std::vector<std::string> slots_of(std::string_view text);
/// The template with its slots filled in. Needs: a value for each.
std::string fill_slots(std::string_view text, const std::map<std::string, std::string>& values);

}  // namespace sh::tools
