// SPDX-License-Identifier: MIT
#pragma once

#include "base/result.h"
#include "gguf/gguf.h"
#include "tokenizer/tokenizer.h"

namespace sh::engine {

/// Reads the `tokenizer.ggml.*` keys of a model file.
/// Errors: corrupt (a key is missing, has the wrong type or contradicts another), named with the file's value.
Result<tokenizer::VocabularyData> read_vocabulary(const gguf::File& file);

}  // namespace sh::engine
