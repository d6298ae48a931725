// SPDX-License-Identifier: MIT
#include "compaction/problem_source.h"

#include <algorithm>

namespace sh::compaction {
namespace {

void gather(MatView<const float> from, std::span<const int32_t> rows, Mat<float>& to) {
  to.rows = static_cast<int64_t>(rows.size());
  to.cols = from.cols;
  to.data.resize(static_cast<size_t>(to.rows * to.cols));
  for (int64_t i = 0; i < to.rows; ++i) std::copy_n(from.row(rows[static_cast<size_t>(i)]), from.cols, to.row(i));
}

template <typename T>
void gather(std::span<const T> from, std::span<const int32_t> rows, std::vector<T>& to) {
  to.clear();
  if (from.empty()) return;
  for (const int32_t row : rows) to.push_back(from[static_cast<size_t>(row)]);
}

}  // namespace

HeadProblem gather_rows(const HeadProblem& problem, std::span<const int32_t> rows, HeadStorage& storage) {
  gather(problem.keys, rows, storage.keys);
  gather(problem.values, rows, storage.values);
  gather(problem.bias, rows, storage.bias);
  gather(problem.pos, rows, storage.pos);
  HeadProblem part = problem;
  part.keys = storage.keys.view();
  part.values = storage.values.view();
  part.bias = storage.bias;
  part.pos = storage.pos;
  return part;
}

}  // namespace sh::compaction
