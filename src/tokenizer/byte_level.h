// SPDX-License-Identifier: MIT
#pragma once

#include <memory>

#include "tokenizer/tokenizer.h"

namespace sh::tokenizer {

/// Byte-level BPE ("gpt2"): text is cut by a pre-tokenizer, bytes are written as printable letters, merges are
/// ranked. Needs:   data passed Vocabulary::check(). Errors: unsupported (pre-tokenizer), corrupt (merges).
/// Source:  the GPT-2 tokenizer (Radford et al. 2019).
Result<std::unique_ptr<Tokenizer>> make_byte_level_tokenizer(VocabularyData data);

}  // namespace sh::tokenizer
