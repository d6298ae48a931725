// SPDX-License-Identifier: MIT
// What compact-eval reads: documents with questions, and plain prose.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "base/result.h"

namespace sh::tools {

struct RecallQuestion {
  std::string question, answer;
  double depth = -1;  // where in the document the answer stands, 0 to 1; -1 when it is not found word for word
};
struct RecallDocument {
  std::string id, context;
  std::vector<RecallQuestion> questions;
};
/// One JSON object a line: {"id", "context", "questions": [{"q", "answer"}]}. At most n_documents are read.
/// Errors: not_found, io, invalid_argument naming file and line.
Result<std::vector<RecallDocument>> read_recall(const std::string& path, int64_t n_documents);

/// "512" for ".../recall/512.jsonl": the label of a file in tables.
std::string label_of(const std::string& path);
/// Files of a folder with an ending, ordered by length of name, then name ("512" before "1024"). Empty when there is no such folder.
std::vector<std::string> files_in(const std::string& folder, const std::string& ending);

}  // namespace sh::tools
