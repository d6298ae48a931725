// SPDX-License-Identifier: MIT
#include "tensor/dtype.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cctype>

#include "base/check.h"

namespace sh {

#define SH_PLUGIN(name) extern const TensorFormat name;
#include "formats_list.inc"
#undef SH_PLUGIN

namespace {
const TensorFormat* const kFormats[] = {
#define SH_PLUGIN(name) &name,
#include "formats_list.inc"
#undef SH_PLUGIN
};

constexpr size_t kMaxTypeId = 64;

const TensorFormat* format_of_id(uint32_t type_id) {
  static const auto by_id = [] {
    std::array<const TensorFormat*, kMaxTypeId> table{};
    for (const TensorFormat* format : kFormats) table[static_cast<size_t>(format->dtype)] = format;
    return table;
  }();
  return type_id < kMaxTypeId ? by_id[type_id] : nullptr;
}

std::string known_names() {
  std::string names;
  for (const TensorFormat* format : kFormats) names += (names.empty() ? "" : ", ") + std::string(format->name);
  return names;
}

bool equal_ignoring_case(std::string_view a, std::string_view b) {
  const auto lower = [](char c) { return std::tolower(static_cast<unsigned char>(c)); };
  return std::equal(a.begin(), a.end(), b.begin(), b.end(), [&](char x, char y) { return lower(x) == lower(y); });
}
}  // namespace

std::span<const TensorFormat* const> tensor_formats() {
  return kFormats;
}

const TensorFormat& tensor_format(DType dtype) {
  const TensorFormat* format = format_of_id(static_cast<uint32_t>(dtype));
  SH_CHECK(format != nullptr, "a DType without a file in tensor/formats");
  return *format;
}

Result<DType> dtype_from_gguf(uint32_t type_id) {
  if (const TensorFormat* format = format_of_id(type_id)) return format->dtype;
  return Error{ErrorKind::unsupported, fmt::format("tensor format with id {} is not supported; known formats: {}",
                                                   type_id, known_names())};
}

Result<DType> dtype_from_name(std::string_view name) {
  for (const TensorFormat* format : kFormats)
    if (equal_ignoring_case(name, format->name)) return format->dtype;
  return Error{ErrorKind::invalid_argument,
               fmt::format("unknown tensor format '{}'; known formats: {}", name, known_names())};
}

int64_t row_bytes(DType dtype, int64_t n_elements) {
  const TensorFormat& format = tensor_format(dtype);
  SH_CHECK(n_elements >= 0 && n_elements % format.block_elements == 0, "a row must be a whole number of blocks");
  return n_elements / format.block_elements * format.block_bytes;
}

}  // namespace sh
