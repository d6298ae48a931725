// SPDX-License-Identifier: MIT
#include "tensor/packed.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <vector>

#include "base/rng.h"

namespace sh {
namespace {

std::vector<std::byte> random_bytes(int64_t n, uint64_t seed) {
  Rng rng(seed);
  std::vector<std::byte> bytes(static_cast<size_t>(n));
  for (std::byte& b : bytes) b = static_cast<std::byte>(rng.next_below(256));
  return bytes;
}

std::vector<std::byte> pack(DType dtype, const std::vector<std::byte>& rows, int64_t n_rows, int64_t n_inner) {
  const int64_t bytes = row_bytes(dtype, n_inner);
  // Filled with something else than the zeros that missing rows must become.
  std::vector<std::byte> packed(static_cast<size_t>(packed_bytes(dtype, n_rows, n_inner)), std::byte{0xAA});
  for (int64_t row = 0; row < n_rows; row += kPackedRows)
    pack_panel(dtype, rows.data() + row * bytes, std::min(kPackedRows, n_rows - row), n_inner,
               packed.data() + row * bytes);
  return packed;
}

TEST(Packed, RowsComeBackByteForByte) {
  for (const TensorFormat* format : tensor_formats()) {
    if (!can_pack(format->dtype)) continue;
    for (const int64_t n_rows : {1, 31, 32, 33, 77})
      for (const int64_t n_blocks : {1, 3}) {
        const int64_t n_inner = n_blocks * format->block_elements, bytes = row_bytes(format->dtype, n_inner);
        const std::vector<std::byte> rows = random_bytes(n_rows * bytes, 1);
        const std::vector<std::byte> packed = pack(format->dtype, rows, n_rows, n_inner);
        std::vector<std::byte> row(static_cast<size_t>(bytes));
        for (int64_t r = 0; r < n_rows; ++r) {
          unpack_row(format->dtype, packed.data(), r, n_inner, row.data());
          ASSERT_TRUE(std::equal(row.begin(), row.end(), rows.begin() + r * bytes))
              << format->name << " row " << r;
        }
      }
  }
}

TEST(Packed, TakesTheBytesOfTheFileAndNoMore) {
  for (const TensorFormat* format : tensor_formats()) {
    if (!can_pack(format->dtype)) continue;
    const int64_t n_inner = 2 * format->block_elements, bytes = row_bytes(format->dtype, n_inner);
    EXPECT_EQ(packed_bytes(format->dtype, 96, n_inner), 96 * bytes) << format->name;
    std::vector<std::byte> rows = random_bytes(96 * bytes, 2);
    std::vector<std::byte> packed = pack(format->dtype, rows, 96, n_inner);
    std::sort(rows.begin(), rows.end());
    std::sort(packed.begin(), packed.end());
    EXPECT_EQ(rows, packed) << format->name;
  }
}

TEST(Packed, MissingRowsAreZeros) {
  const int64_t n_inner = 64, bytes = row_bytes(DType::q8_0, n_inner);
  const std::vector<std::byte> packed = pack(DType::q8_0, random_bytes(5 * bytes, 3), 5, n_inner);
  std::vector<std::byte> row(static_cast<size_t>(bytes));
  for (int64_t r = 5; r < kPackedRows; ++r) {
    unpack_row(DType::q8_0, packed.data(), r, n_inner, row.data());
    EXPECT_TRUE(std::all_of(row.begin(), row.end(), [](std::byte b) { return b == std::byte{0}; })) << r;
  }
}

TEST(Packed, WordsOfARowLieAPanelApart) {
  // The layout that kernels rely on: word w of row r, then the scales of all rows.
  const int64_t bytes = row_bytes(DType::q8_0, 32);
  const std::vector<std::byte> rows = random_bytes(32 * bytes, 4);
  const std::vector<std::byte> packed = pack(DType::q8_0, rows, 32, 32);
  for (int64_t r = 0; r < 32; ++r) {
    for (int64_t i = 0; i < 32; ++i)
      EXPECT_EQ(packed[static_cast<size_t>((i / 4 * 32 + r) * 4 + i % 4)],
                rows[static_cast<size_t>(r * bytes + 2 + i)]);
    for (int64_t i = 0; i < 2; ++i)
      EXPECT_EQ(packed[static_cast<size_t>(32 * 32 + r * 2 + i)], rows[static_cast<size_t>(r * bytes + i)]);
  }
}

TEST(Packed, FloatsAreNotPacked) {
  for (const DType dtype : {DType::f32, DType::f16, DType::bf16}) EXPECT_FALSE(can_pack(dtype));
}

}  // namespace
}  // namespace sh
