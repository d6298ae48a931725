// SPDX-License-Identifier: MIT
#pragma once

#include <cstdint>
#include <span>
#include <type_traits>
#include <vector>

#include "base/check.h"

namespace sh {

/// A borrowed row-major matrix: rows × cols, `stride` elements from one row to the next.
template <typename T>
struct MatView {
  T* data = nullptr;
  int64_t rows = 0;
  int64_t cols = 0;
  int64_t stride = 0;

  MatView() = default;
  MatView(T* data_, int64_t rows_, int64_t cols_) : data(data_), rows(rows_), cols(cols_), stride(cols_) {}
  MatView(T* data_, int64_t rows_, int64_t cols_, int64_t stride_)
      : data(data_), rows(rows_), cols(cols_), stride(stride_) {}
  template <typename U>
    requires(std::is_same_v<const U, T>)
  MatView(const MatView<U>& other) : data(other.data), rows(other.rows), cols(other.cols), stride(other.stride) {}

  T* row(int64_t r) const {
    SH_DCHECK(r >= 0 && r < rows);
    return data + r * stride;
  }
  T& operator()(int64_t r, int64_t c) const { return row(r)[c]; }
  MatView slice(int64_t first_row, int64_t n_rows) const {
    SH_DCHECK(first_row >= 0 && first_row + n_rows <= rows);
    return MatView(data + first_row * stride, n_rows, cols, stride);
  }
};

/// An owned row-major matrix.
template <typename T>
struct Mat {
  int64_t rows = 0;
  int64_t cols = 0;
  std::vector<T> data;  // [rows, cols]

  Mat() = default;
  Mat(int64_t rows_, int64_t cols_) : rows(rows_), cols(cols_), data(static_cast<size_t>(rows_ * cols_)) {}
  /// Another shape in the same memory where that is enough; the content is then undefined.
  void resize(int64_t rows_, int64_t cols_) {
    rows = rows_;
    cols = cols_;
    data.resize(static_cast<size_t>(rows * cols));
  }
  T* row(int64_t r) { return data.data() + r * cols; }
  const T* row(int64_t r) const { return data.data() + r * cols; }
  T& operator()(int64_t r, int64_t c) { return row(r)[c]; }
  const T& operator()(int64_t r, int64_t c) const { return row(r)[c]; }
  MatView<T> view() { return {data.data(), rows, cols}; }
  MatView<const T> view() const { return {data.data(), rows, cols}; }
};

}  // namespace sh
