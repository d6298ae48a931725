// SPDX-License-Identifier: MIT
// All that a run will measure, read before it starts: a fault in the last file shows at once.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "base/clock.h"
#include "tools/compact_eval.h"
#include "tools/eval_subject.h"

namespace sh::tools {

/// A document with questions, or a context and its true continuation.
struct PlannedSubject {
  std::string context;
  RecallDocument document;            // of a passage only the id
  std::vector<int32_t> ids;           // of the context
  std::vector<int32_t> continuation;  // of a passage; empty for a document
  bool is_first = false;              // of its context
};
/// Errors: files that cannot be read; nothing fits the context.
Result<std::vector<PlannedSubject>> plan_subjects(const engine::Engine& engine, const EvalOptions& options,
                                                  const SubjectReader* reader);

/// Lines about how far a run is and how long it will still take.
class EvalProgress {
 public:
  EvalProgress(const std::vector<PlannedSubject>& subjects, int64_t n_steps_each, bool is_shown);
  void begin(size_t subject);  // says so
  void step();                 // one of n_steps_each; says so every 15 seconds

 private:
  void show() const;
  const std::vector<PlannedSubject>& subjects_;
  int64_t n_steps_each_;
  bool is_shown_;
  Stopwatch watch_;
  double total_ = 0, before_ = 0;  // work in tokens, of all subjects and of those before this one
  size_t subject_ = 0;
  int64_t n_steps_ = 0;
  double last_shown_ = 0;
};

}  // namespace sh::tools
