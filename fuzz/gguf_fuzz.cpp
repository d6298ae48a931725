// SPDX-License-Identifier: MIT
// Any bytes as a model file: parse, then use everything that a parsed file offers.
#include <cstddef>
#include <cstdint>
#include <span>

#include "base/check.h"
#include "gguf/gguf.h"

namespace {
void read_metadata(const sh::gguf::File& file) {
  for (const auto& [key, value] : file.metadata()) {
    SH_CHECK(file.has(key), "a key that is listed is there");
    const int n_readable = file.find_int(key).ok() + file.find_float(key).ok() + file.find_bool(key).ok() +
                           file.find_string(key).ok() + file.find_int_array(key).ok() +
                           file.find_float_array(key).ok() + file.find_string_array(key).ok();
    // Only an integer above int64_t has no accessor; an empty array suits three of them.
    SH_CHECK(n_readable == 1 || n_readable == 3 || std::holds_alternative<uint64_t>(value),
             "a value has one type");
  }
}

void read_tensors(const sh::gguf::File& file, std::span<const std::byte> bytes) {
  int64_t n_bytes = 0;
  for (const sh::gguf::TensorInfo& tensor : file.tensors()) {
    SH_CHECK(file.find_tensor(tensor.name) == &tensor, "a tensor that is listed is found");
    SH_CHECK(!tensor.describe().empty() && tensor.n_elements() > 0, "a tensor has a shape");
    SH_CHECK(tensor.data.data() >= bytes.data() &&
                 tensor.data.data() + tensor.data.size() <= bytes.data() + bytes.size(),
             "data lies inside the file");
    n_bytes += static_cast<int64_t>(tensor.data.size());
    // The first block decodes, whatever it holds.
    const sh::TensorFormat& format = sh::tensor_format(tensor.dtype);
    float block[256];
    format.dequantize(tensor.data.data(), format.block_elements, block);
  }
  SH_CHECK(n_bytes == file.total_tensor_bytes(), "sizes add up");
}

/// What was parsed can be written and parsed again.
void write_again(const sh::gguf::File& file) {
  sh::gguf::Writer writer;
  for (const auto& [key, value] : file.metadata())
    if (!key.starts_with("split.") && key != "general.alignment") writer.set(key, value);
  for (const sh::gguf::TensorInfo& tensor : file.tensors())
    writer.add_tensor(tensor.name, tensor.dtype, tensor.shape, tensor.data);
  const auto bytes = writer.to_bytes();
  const auto again = sh::gguf::File::parse(bytes, "again");
  SH_CHECK(again.ok(), "a written file parses");
  SH_CHECK(again->tensors().size() == file.tensors().size(), "no tensor is lost");
}
}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t n_data) {
  const auto bytes = std::as_bytes(std::span(data, n_data));
  const auto file = sh::gguf::File::parse(bytes, "fuzz");
  if (!file.ok()) return 0;
  read_metadata(*file);
  read_tensors(*file, bytes);
  write_again(*file);
  return 0;
}
