// SPDX-License-Identifier: MIT
// Multiple choice for people who have the files: QuALITY (JSON lines) and LongHealth (one JSON object).
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "base/result.h"
#include "tools/eval_data.h"

namespace sh::tools {

/// One JSON object a line: {"article_id", "title"?, "article", "questions": [{"question", "options", "gold_label",
/// "question_unique_id"?, "difficult"?}]}; gold_label counts from 1. Lines of one article are merged, so that it
/// is compacted once. Options are shuffled by seed and question, the same for every method. At most n_documents
/// articles are read.
/// Errors: not_found, io, invalid_argument naming file and line. Questions without a gold label (the test split)
/// are left out with a warning. Source: the format of QuALITY v1.0.1 (Pang et al., arXiv 2112.08608).
Result<std::vector<RecallDocument>> read_quality(const std::string& path, int64_t n_documents, uint64_t seed);

/// {patient: {"name", "birthday", "diagnosis", "texts": {note: text}, "questions": [{"No"?, "question", "answer_a"
/// ... "answer_e", "correct"}]}}; `correct` is the text of the right option. Each document holds the notes of
/// `n_patients` consecutive patients, each note between tags with its name; with more than one patient every
/// question says which it is about. Questions whose `correct` is none of the options are left out with a warning.
/// Errors: as read_quality().
/// Source: the format of LongHealth (Adams et al., arXiv 2401.14490).
Result<std::vector<RecallDocument>> read_longhealth(const std::string& path, int64_t n_patients,
                                                    int64_t n_documents, uint64_t seed);

}  // namespace sh::tools
