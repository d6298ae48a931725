// SPDX-License-Identifier: MIT
#pragma once

#include <cstddef>
#include <map>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "gguf/gguf.h"

namespace sh::gguf {

/// One file as it stands, before parts are put together.
struct ParsedPart {
  std::map<std::string, Value> metadata;
  std::vector<TensorInfo> tensors;  // in file order; data points into the bytes
};

/// Parses one file. Every count is compared with the bytes left before anything is reserved, so memory stays
/// within a small multiple of the file's size. Errors: corrupt, unsupported; the message names file, byte and key
/// or tensor.
Result<ParsedPart> parse_part(std::span<const std::byte> bytes, const std::string& file_name);

/// A name out of a file, fit for a message: quoted, unprintable bytes as \xNN, cut after 80 bytes.
std::string quoted(std::string_view name);

}  // namespace sh::gguf
