// SPDX-License-Identifier: MIT
// What stands in a document's place without any compaction of a cache: its summary, or passages of it.
#pragma once

#include <cstdint>
#include <string_view>
#include <vector>

#include "base/result.h"
#include "tools/eval_subject.h"

namespace sh::tools {

/// A document that is the model's own summary, which it is asked for after the whole one, greedily: tokens as
/// document_tokens() gives them, at most n_tokens.
/// Errors: invalid_argument (no room beside the template; nothing was written), out_of_memory.
Result<std::vector<int32_t>> summary_tokens(const SubjectReader& reader, const Subject& subject, int64_t n_tokens);

/// A document of the passages of `text` (n_words words at least each) that suit a query best by BM25, in their
/// order in the text; as many as fit n_tokens, those that do not fit passed over. Of the best one its beginning,
/// when no passage fits.
/// Errors: invalid_argument (no room beside the template).
Result<std::vector<int32_t>> retrieved_tokens(const SubjectReader& reader, std::string_view text,
                                              std::string_view query, int64_t n_words, int64_t n_tokens);

}  // namespace sh::tools
