// SPDX-License-Identifier: MIT
// What compact-eval reads: documents with questions, and plain prose.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "base/json.h"
#include "base/result.h"

namespace sh::tools {

struct RecallQuestion {
  std::string question, answer;
  std::string query;                // what a search for it would be given; "": the question
  std::vector<std::string> accept;  // what is right: the answer and other ways to say it
  std::string kind = "fact";        // direct, paraphrased, reverse, two_hop, update, absent, verbatim, choice, ...
  double depth = -1;  // where in the document the answer stands, 0 to 1; -1 when it is not found word for word
  int n_options = 0;  // > 0: multiple choice, the answer is a letter
};
struct RecallDocument {
  std::string id, context;
  std::string origin;  // where it was read, for messages: "file:line"
  std::vector<RecallQuestion> questions;
  std::string instruction_word;  // with which the document wants every reply to end; "": none
};
/// One JSON object a line: {"id", "context", "questions": [{"q", "answer", "kind"?, "depth"?, "accept"?: [...]}],
/// "instruction"?: {"word"}}. At most n_documents are read.
/// Errors: not_found, io, invalid_argument naming file and line.
Result<std::vector<RecallDocument>> read_recall(const std::string& path, int64_t n_documents);

/// The string under a key. `where` names the place in messages. Errors: invalid_argument.
Result<std::string> text_field(const Json& object, const char* key, const std::string& where);

/// "512" for ".../recall/512.jsonl": the label of a file in tables.
std::string label_of(const std::string& path);
/// Files of a folder with an ending, ordered by length of name, then name ("512" before "1024"). Empty when there
/// is no such folder.
std::vector<std::string> files_in(const std::string& folder, const std::string& ending);

/// The data beside a model, for a call that names none: recall/*.jsonl and prose/*.txt.
struct DataFiles {
  std::vector<std::string> recall, prose;
};
DataFiles data_beside(const std::string& model_path);

}  // namespace sh::tools
