// SPDX-License-Identifier: MIT
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "base/json.h"
#include "chat/chat_template.h"
#include "tokenizer/tokenizer.h"

namespace sh::server {

/// Checks the messages and tools of a chat request and renders them. A trailing assistant message is continued.
/// Errors: invalid_argument naming the message and field; unsupported (media parts, forced tool choice); what the
/// template raises.
Result<std::string> render_chat(const Json& body, const chat::ChatTemplate& chat_template,
                                const tokenizer::Tokenizer& tokenizer);

/// The rendered prompt as a text to send to /completion, which puts the vocabulary's start token before it if the
/// vocabulary wants one: then the template's own is left out, as llama.cpp does.
std::string without_added_bos(std::string prompt, const tokenizer::Tokenizer& tokenizer);

/// The rendered prompt as tokens, with the vocabulary's start token once.
std::vector<int32_t> encode_chat(const std::string& prompt, const tokenizer::Tokenizer& tokenizer);

}  // namespace sh::server
