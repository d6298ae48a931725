// SPDX-License-Identifier: MIT
// The packed layout of a quantised matrix, for kernels whose lanes are rows. kPackedRows rows make a panel, which
// holds its blocks one after the other: of a block first the 4-byte words of all rows, [words, kPackedRows], then
// the odd bytes of all rows (where a block is no whole number of words), [kPackedRows, block_bytes % 4]. It is the
// file's bytes in another order: nothing grows, codes stay packed, and a row can be taken back.
#pragma once

#include <cstddef>
#include <cstdint>

#include "tensor/dtype.h"

namespace sh {

/// Rows of a panel: two vectors of 16 lanes, so that every word of a panel fills whole cache lines.
inline constexpr int64_t kPackedRows = 32;

/// Whether a format has the layout: the quantised ones do.
bool can_pack(DType dtype);
/// Bytes of a matrix in panels; the last one is filled up with zeros.
int64_t packed_bytes(DType dtype, int64_t n_rows, int64_t n_inner);
/// n_rows (1 to kPackedRows) rows of a file -> one panel.
void pack_panel(DType dtype, const std::byte* rows, int64_t n_rows, int64_t n_inner, std::byte* panel);
/// Row `row` of a packed matrix as a file has it; `out` has row_bytes(dtype, n_inner) bytes.
void unpack_row(DType dtype, const std::byte* packed, int64_t row, int64_t n_inner, std::byte* out);

}  // namespace sh
