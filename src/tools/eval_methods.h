// SPDX-License-Identifier: MIT
// What compact-eval compares: compactions, quantised caches, both together, and the baselines that are no
// compaction.
#pragma once

#include <map>
#include <optional>
#include <string>

#include "engine/compact_sequence.h"
#include "tensor/dtype.h"

namespace sh::tools {

/// A method as the user names it: "self_study:fit=none:budget=uniform", "kv:q8_0", "kv:q4_0+self_study",
/// "reprefill:keep=4", "summary", "retrieval:words=20", "full:rerun".
struct MethodSpec {
  enum class Kind {
    compaction,
    quantised,  // all rows in another encoding
    reprefill,  // the text that fits the same bytes, read afresh
    summary,    // the model's own summary of the same bytes, read in place of the document
    retrieval,  // the passages that suit a question, of the same bytes, read afresh for each
    rerun,      // the full cache, read in pieces of another size: the noise of the arithmetic
  };
  std::string label;  // as given
  Kind kind = Kind::compaction;
  engine::CompactionRequest request;  // of a compaction: method and axes set
  std::optional<DType> kv_type;       // of the cache; nothing: as the engine has it
  int64_t n_keep = 4;                 // of reprefill: first tokens that stay
  // Of retrieval: in a passage, at least; 1: single sentences. Of 34 and 31 answers (scribe, 6 documents of 512 and
  // 1024 tokens) single sentences keep 32 and 28 at 8x and 5 and 29 at 16x, 10 words 28 and 30, 3 and 26, 40 words
  // 7 and 24, 3 and 7: long passages leave bytes unused.
  int64_t n_words = 1;
  std::map<std::string, std::string> options;

  /// Measured at every ratio that is asked for; the others have one of their own.
  bool has_ratios() const { return kind != Kind::quantised && kind != Kind::rerun; }
};
/// Errors: invalid_argument naming the option and its choices, not_found naming the known methods.
Result<MethodSpec> parse_method_spec(const std::string& text);
/// Of a flag that takes a compaction and nothing else: the same words.
Result<engine::CompactionRequest> parse_compaction(const char* flag, const std::string& text);

}  // namespace sh::tools
