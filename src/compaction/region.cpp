// SPDX-License-Identifier: MIT
#include "compaction/region.h"

#include <fmt/format.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <limits>
#include <string>
#include <utility>

#include "base/rng.h"

namespace sh::compaction {
namespace {

constexpr float kInf = std::numeric_limits<float>::infinity();
// Squares and products of larger numbers leave the range of f32.
constexpr float kMaxMagnitude = 1e15f;
constexpr int64_t kTileFloats = 1 << 18;  // 1 MiB of scores at a time: inside the second-level cache
constexpr int64_t kStreamedFloats = 1 << 20;  // more where every tile decodes the rows anew

// Compares bits without the sign, which order as magnitudes do with infinity and NaN above all: integer lanes,
// where a loop over truth values took 29 % of a score pass of 82 queries.
bool all_usable(const float* x, int64_t n) {
  constexpr int32_t kMagnitude = 0x7FFFFFFF, kLimit = std::bit_cast<int32_t>(kMaxMagnitude);
  int32_t n_unusable = 0;
  for (int64_t i = 0; i < n; ++i) n_unusable += (std::bit_cast<int32_t>(x[i]) & kMagnitude) > kLimit ? 1 : 0;
  return n_unusable == 0;
}

std::vector<uint8_t> rows_with_finite_bias(const HeadProblem& problem) {
  std::vector<uint8_t> is_finite(static_cast<size_t>(problem.keys.rows), 1);
  for (size_t row = 0; row < problem.bias.size(); ++row) is_finite[row] = std::isfinite(problem.bias[row]);
  return is_finite;
}

// What a thread keeps when nothing is solved.
thread_local AlignedBuffer<float> spare_buffer;

bool is_query_finite(const HeadProblem& problem, int64_t query) {
  if (!all_usable(problem.queries.row(query), problem.queries.cols)) return false;
  if (!problem.lse.empty() && !std::isfinite(problem.lse[static_cast<size_t>(query)])) return false;
  return problem.out.rows == 0 || all_usable(problem.out.row(query), problem.out.cols);
}

}  // namespace

Result<void> check_shapes(const HeadProblem& problem) {
  const int64_t n_rows = problem.keys.rows, n_queries = problem.queries.rows;
  const auto n = [](const auto& span) { return static_cast<int64_t>(span.size()); };
  std::string what;
  if (problem.values.rows != n_rows)
    what = fmt::format("{} keys but {} values", n_rows, problem.values.rows);
  else if (!problem.bias.empty() && n(problem.bias) != n_rows)
    what = fmt::format("{} keys but {} biases", n_rows, n(problem.bias));
  else if (!problem.pos.empty() && n(problem.pos) != n_rows)
    what = fmt::format("{} keys but {} positions", n_rows, n(problem.pos));
  else if (n_rows > std::numeric_limits<int32_t>::max())
    what = fmt::format("{} rows; row indices are 32 bits", n_rows);
  else if (n_queries > 0 && problem.queries.cols != problem.keys.cols)
    what = fmt::format("queries of width {} but keys of width {}", problem.queries.cols, problem.keys.cols);
  else if (!problem.query_pos.empty() && n(problem.query_pos) != n_queries)
    what = fmt::format("{} queries but {} query positions", n_queries, n(problem.query_pos));
  else if (!problem.lse.empty() && n(problem.lse) != n_queries)
    what = fmt::format("{} queries but {} log-sum-exps", n_queries, n(problem.lse));
  else if (problem.out.rows > 0 && (problem.out.rows != n_queries || problem.out.cols != problem.values.cols))
    what = fmt::format("outputs are [{}, {}], expected [{}, {}]", problem.out.rows, problem.out.cols, n_queries,
                       problem.values.cols);
  else if (problem.out.rows > 0 && problem.lse.empty())
    what = "outputs without log-sum-exps: the rest's share is not known";
  else if (problem.n_fixed_rows < 0)
    what = fmt::format("{} fixed rows", problem.n_fixed_rows);
  else if (!std::is_sorted(problem.pos.begin(), problem.pos.end()))
    what = "positions of rows do not increase";
  if (what.empty()) return {};
  return Error{ErrorKind::invalid_argument,
               fmt::format("compaction of layer {}, KV head {}: {}", problem.layer, problem.head, what)};
}

std::vector<uint8_t> finite_rows(const HeadProblem& problem) {
  std::vector<uint8_t> is_finite = rows_with_finite_bias(problem);
  for_stretches(problem, [&](int64_t begin, int64_t end) {
    const MatView<const float> keys = keys_of(problem, begin, end), values = values_of(problem, begin, end);
    for (int64_t row = begin; row < end; ++row)
      is_finite[static_cast<size_t>(row)] &=
          all_usable(keys.row(row - begin), keys.cols) && all_usable(values.row(row - begin), values.cols);
  });
  return is_finite;
}

std::vector<int64_t> pick_queries(const HeadProblem& problem, int64_t max_queries) {
  std::vector<int64_t> finite;
  for (int64_t query = 0; query < problem.queries.rows; ++query)
    if (is_query_finite(problem, query)) finite.push_back(query);
  const int64_t n = static_cast<int64_t>(finite.size());
  const int64_t n_picked = std::min(n, std::max<int64_t>(max_queries, 0));
  if (n_picked == n) return finite;
  std::vector<int64_t> picked(static_cast<size_t>(n_picked));
  Rng rng(0);
  for (int64_t i = 0; i < n_picked; ++i) {
    const int64_t begin = i * n / n_picked, end = (i + 1) * n / n_picked;
    const int64_t drawn = begin + static_cast<int64_t>(rng.next_below(static_cast<uint64_t>(end - begin)));
    picked[static_cast<size_t>(i)] = finite[static_cast<size_t>(drawn)];
  }
  return picked;
}

bool has_nonfinite_query(const HeadProblem& problem) {
  for (int64_t query = 0; query < problem.queries.rows; ++query)
    if (!is_query_finite(problem, query)) return true;
  return false;
}

RegionSoftmax::Lease::Lease(size_t n) : buffer_(std::exchange(spare_buffer, {})) {
  buffer_.grow(n);
}

RegionSoftmax::Lease::~Lease() {
  spare_buffer = std::move(buffer_);
}

RegionSoftmax::RegionSoftmax(const HeadProblem& problem, const kernels::KernelSet& kernels)
    : problem_(problem),
      kernels_(kernels),
      n_rows_(problem.keys.rows),
      max_tile_(std::min(std::clamp<int64_t>((problem.reader != nullptr ? kStreamedFloats : kTileFloats) /
                                                 std::max<int64_t>(n_rows_, 1),
                                             16, 256),
                         std::max<int64_t>(problem.queries.rows, 1))),
      row_is_finite_(problem.reader != nullptr ? rows_with_finite_bias(problem) : finite_rows(problem)),
      n_keys_seen_(problem.reader != nullptr ? 0 : n_rows_),
      n_values_seen_(n_keys_seen_),
      scores_(static_cast<size_t>(max_tile_ * n_rows_)) {
  n_finite_rows_ = std::count(row_is_finite_.begin(), row_is_finite_.end(), 1);
  if (n_finite_rows_ < n_rows_ && problem.reader == nullptr) {
    clean_values_ = Mat<float>(n_rows_, problem.values.cols);
    for (int64_t row = 0; row < n_rows_; ++row)
      if (row_is_finite_[static_cast<size_t>(row)])
        std::copy_n(problem.values.row(row), problem.values.cols, clean_values_.row(row));
  }
  queries_.resize(static_cast<size_t>(max_tile_ * problem.keys.cols));
  sum_.resize(static_cast<size_t>(max_tile_));
  lse_.resize(static_cast<size_t>(max_tile_));
}

int64_t RegionSoftmax::n_visible(int64_t query) const {
  if (problem_.pos.empty() || problem_.query_pos.empty()) return n_rows_;
  const int32_t query_pos = problem_.query_pos[static_cast<size_t>(query)];
  return std::upper_bound(problem_.pos.begin(), problem_.pos.end(), query_pos) - problem_.pos.begin();
}

void RegionSoftmax::compute(std::span<const int64_t> queries) {
  const int64_t m = static_cast<int64_t>(queries.size()), d = problem_.keys.cols;
  SH_CHECK(m <= max_tile_, "more queries than a tile holds");
  for (int64_t i = 0; i < m; ++i)
    std::copy_n(problem_.queries.row(queries[static_cast<size_t>(i)]), d, queries_.data() + i * d);
  for_stretches(problem_, [&](int64_t begin, int64_t end) {
    const MatView<const float> keys = keys_of(problem_, begin, end);
    if (begin == n_keys_seen_) {
      look_at(keys, begin);
      n_keys_seen_ = end;
    }
    kernels_.gemm_nt({.m = m,
                      .n = end - begin,
                      .k = d,
                      .a = queries_.data(),
                      .a_stride = d,
                      .b = keys.data,
                      .b_stride = keys.stride,
                      .c = scores_.data() + begin,
                      .c_stride = n_rows_,
                      .alpha = problem_.scale});
  });
  for (int64_t i = 0; i < m; ++i)
    finish_row(scores_.data() + i * n_rows_, n_visible(queries[static_cast<size_t>(i)]), i);
}

void RegionSoftmax::finish_row(float* scores, int64_t n_seen, int64_t i) {
  if (problem_.softcap > 0)
    for (int64_t row = 0; row < n_seen; ++row)
      scores[row] = problem_.softcap * std::tanh(scores[row] / problem_.softcap);
  if (!problem_.bias.empty()) kernels_.add(scores, problem_.bias.data(), scores, n_seen);
  if (n_finite_rows_ < n_rows_)
    for (int64_t row = 0; row < n_seen; ++row)
      if (!row_is_finite_[static_cast<size_t>(row)]) scores[row] = -kInf;
  const float highest = kernels_.max(scores, n_seen);
  float sum = 0, lse = -kInf;
  if (highest != -kInf) {
    sum = kernels_.exp_sum(scores, highest, n_seen);
    lse = highest + std::log(sum);  // NaN if a score overflowed: infinity minus infinity is in the sum
  }
  if (!std::isfinite(lse)) {
    lse = highest == -kInf ? -kInf : std::numeric_limits<float>::quiet_NaN();
    sum = 0;
    n_seen = 0;
  }
  std::fill(scores + n_seen, scores + n_rows_, 0.0f);
  sum_[static_cast<size_t>(i)] = sum;
  lse_[static_cast<size_t>(i)] = lse;
}

void RegionSoftmax::look_at(MatView<const float> rows, int64_t begin) {
  for (int64_t row = 0; row < rows.rows; ++row) {
    uint8_t& is_finite = row_is_finite_[static_cast<size_t>(begin + row)];
    if (is_finite == 0 || all_usable(rows.row(row), rows.cols)) continue;
    is_finite = 0;
    --n_finite_rows_;
  }
}

bool RegionSoftmax::found_late() {
  for_stretches(problem_, [&](int64_t begin, int64_t end) {
    if (begin >= n_values_seen_) values(begin, end);
    if (begin < n_keys_seen_) return;
    look_at(keys_of(problem_, begin, end), begin);  // no query has been scored
    n_keys_seen_ = end;
  });
  return std::exchange(found_late_, false);
}

MatView<const float> RegionSoftmax::values(int64_t begin, int64_t end) {
  if (problem_.reader == nullptr) return values().slice(begin, end - begin);
  const MatView<const float> read = values_of(problem_, begin, end);
  if (begin == n_values_seen_) {
    const int64_t n_before = n_finite_rows_;
    look_at(read, begin);
    n_values_seen_ = end;
    found_late_ |= n_finite_rows_ < n_before;
  }
  if (std::all_of(row_is_finite_.begin() + begin, row_is_finite_.begin() + end, [](uint8_t f) { return f != 0; }))
    return read;
  clean_values_ = Mat<float>(end - begin, read.cols);
  for (int64_t row = begin; row < end; ++row)
    if (row_is_finite_[static_cast<size_t>(row)])
      std::copy_n(read.row(row - begin), read.cols, clean_values_.row(row - begin));
  return clean_values_.view();
}

float RegionSoftmax::share(int64_t query, float lse_of_region) const {
  if (problem_.lse.empty()) return lse_of_region == -kInf ? 0.0f : 1.0f;
  return std::min(1.0f, std::exp(lse_of_region - problem_.lse[static_cast<size_t>(query)]));
}

void RegionSoftmax::scores_of(int64_t query, std::span<const int32_t> rows, float* out) const {
  const int64_t n_seen = n_visible(query), d = problem_.keys.cols;
  for (size_t i = 0; i < rows.size(); ++i) {
    const int64_t row = rows[i];
    out[i] = -kInf;
    if (row >= n_seen || !row_is_finite_[static_cast<size_t>(row)]) continue;
    float score = problem_.scale * kernels_.dot(problem_.queries.row(query), problem_.keys.row(row), d);
    if (problem_.softcap > 0) score = problem_.softcap * std::tanh(score / problem_.softcap);
    out[i] = score + (problem_.bias.empty() ? 0.0f : problem_.bias[static_cast<size_t>(row)]);
  }
}

}  // namespace sh::compaction
