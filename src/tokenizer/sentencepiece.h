// SPDX-License-Identifier: MIT
#pragma once

#include <memory>

#include "tokenizer/tokenizer.h"

namespace sh::tokenizer {

/// SentencePiece BPE ("llama"): spaces are written as U+2581, the pair whose joined piece scores best merges
/// first, what is no piece becomes byte tokens. Needs:   data passed Vocabulary::check(). Source:  Kudo and
/// Richardson, "SentencePiece", arXiv 1808.06226.
Result<std::unique_ptr<Tokenizer>> make_sentencepiece_tokenizer(VocabularyData data);

}  // namespace sh::tokenizer
