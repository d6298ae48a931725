// SPDX-License-Identifier: MIT
#include "tensor/packed.h"

#include <cstring>

#include "base/check.h"

namespace sh {

namespace {

constexpr int64_t kWord = 4;

/// Where the parts of a block lie in a row and in a panel.
struct BlockParts {
  int64_t n_bytes, n_words, first_word, n_odd, odd;

  explicit BlockParts(const TensorFormat& format)
      : n_bytes(format.block_bytes),
        n_words(n_bytes / kWord),
        first_word(format.odd_bytes_at == 0 ? n_bytes % kWord : 0),
        n_odd(n_bytes % kWord),
        odd(format.odd_bytes_at) {}
};

}  // namespace

bool can_pack(DType dtype) {
  return tensor_format(dtype).block_elements > 1;
}

int64_t packed_bytes(DType dtype, int64_t n_rows, int64_t n_inner) {
  return (n_rows + kPackedRows - 1) / kPackedRows * kPackedRows * row_bytes(dtype, n_inner);
}

void pack_panel(DType dtype, const std::byte* rows, int64_t n_rows, int64_t n_inner, std::byte* panel) {
  SH_CHECK(can_pack(dtype) && n_rows >= 1 && n_rows <= kPackedRows, "no rows of a panel");
  const BlockParts part(tensor_format(dtype));
  const int64_t n_bytes = row_bytes(dtype, n_inner);
  if (n_rows < kPackedRows) std::memset(panel, 0, static_cast<size_t>(kPackedRows * n_bytes));
  for (int64_t at = 0; at < n_bytes; at += part.n_bytes, panel += kPackedRows * part.n_bytes) {
    std::byte* odd = panel + part.n_words * kPackedRows * kWord;
    for (int64_t r = 0; r < n_rows; ++r) {
      const std::byte* block = rows + r * n_bytes + at;
      for (int64_t w = 0; w < part.n_words; ++w)
        std::memcpy(panel + (w * kPackedRows + r) * kWord, block + part.first_word + w * kWord, kWord);
      for (int64_t i = 0; i < part.n_odd; ++i) odd[r * part.n_odd + i] = block[part.odd + i];
    }
  }
}

void unpack_row(DType dtype, const std::byte* packed, int64_t row, int64_t n_inner, std::byte* out) {
  const BlockParts part(tensor_format(dtype));
  const int64_t n_bytes = row_bytes(dtype, n_inner), r = row % kPackedRows;
  const std::byte* panel = packed + (row - r) * n_bytes;
  for (int64_t at = 0; at < n_bytes;
       at += part.n_bytes, panel += kPackedRows * part.n_bytes, out += part.n_bytes) {
    const std::byte* odd = panel + part.n_words * kPackedRows * kWord;
    for (int64_t w = 0; w < part.n_words; ++w)
      std::memcpy(out + part.first_word + w * kWord, panel + (w * kPackedRows + r) * kWord, kWord);
    for (int64_t i = 0; i < part.n_odd; ++i) out[part.odd + i] = odd[r * part.n_odd + i];
  }
}

}  // namespace sh
