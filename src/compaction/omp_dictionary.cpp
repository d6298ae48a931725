// SPDX-License-Identifier: MIT
#include "compaction/omp_dictionary.h"

#include <algorithm>

#include "compaction/region.h"

namespace sh::compaction {
namespace {

constexpr int64_t kTileRows = 256;
constexpr int64_t kStripeColumns = 64;

struct Mass {
  Mat<float> of_rows;         // [n, c] P
  std::vector<float> target;  // [n]
};

// False if stopped.
bool gather_mass(const HeadProblem& problem, std::span<const int64_t> queries, std::span<const int32_t> rows,
                 Weighting weighting, const std::function<bool()>& should_stop, const kernels::KernelSet& kernels,
                 Mass& mass) {
  RegionSoftmax softmax(problem, kernels);
  const int64_t n_queries = static_cast<int64_t>(queries.size());
  for (int64_t begin = 0; begin < n_queries; begin += softmax.max_tile()) {
    if (should_stop()) return false;
    const int64_t m = std::min(softmax.max_tile(), n_queries - begin);
    const std::span<const int64_t> tile = queries.subspan(static_cast<size_t>(begin), static_cast<size_t>(m));
    softmax.compute(tile);
    for (int64_t i = 0; i < m; ++i) {
      if (!(softmax.sum(i) > 0)) continue;  // sees nothing: a row of zeros, target 0
      const float share =
          weighting == Weighting::none ? 1.0f : softmax.share(tile[static_cast<size_t>(i)], softmax.lse(i));
      const float factor = share / softmax.sum(i);
      const float* weights = softmax.weights(i);
      float* out = mass.of_rows.row(begin + i);
      for (size_t j = 0; j < rows.size(); ++j) out[j] = factor * weights[rows[j]];
      mass.target[static_cast<size_t>(begin + i)] = share;
    }
  }
  return true;
}

// Rows [first, first + width) of the upper triangle of PᵀP, rounded and mirrored into `gram`.
void write_stripe(MatView<const double> stripe, int64_t first, Mat<float>& gram) {
  for (int64_t i = 0; i < stripe.rows; ++i)
    for (int64_t j = i; j < stripe.cols; ++j) gram(first + i, first + j) = static_cast<float>(stripe(i, j));
  for (int64_t j = 0; j < stripe.cols; ++j)
    for (int64_t i = 0; i < std::min(j, stripe.rows); ++i)
      gram(first + j, first + i) = static_cast<float>(stripe(i, j));
}

// False if stopped.
bool accumulate_gram(const Mat<float>& mass, const std::function<bool()>& should_stop,
                     const kernels::KernelSet& kernels, Mat<float>& gram) {
  const int64_t c = mass.cols;
  std::vector<float> product(static_cast<size_t>(kStripeColumns * c));
  std::vector<double> sums(static_cast<size_t>(kStripeColumns * c));
  for (int64_t first = 0; first < c; first += kStripeColumns) {
    const int64_t width = std::min(kStripeColumns, c - first), n_right = c - first;
    std::fill_n(sums.begin(), width * n_right, 0.0);
    for (int64_t begin = 0; begin < mass.rows; begin += kTileRows) {
      if (should_stop()) return false;
      kernels.gemm_tn({.m = width,
                       .n = n_right,
                       .k = std::min(kTileRows, mass.rows - begin),
                       .a = mass.row(begin) + first,
                       .a_stride = c,
                       .b = mass.row(begin) + first,
                       .b_stride = c,
                       .c = product.data(),
                       .c_stride = n_right});
      for (int64_t k = 0; k < width * n_right; ++k)
        sums[static_cast<size_t>(k)] += product[static_cast<size_t>(k)];
    }
    write_stripe({sums.data(), width, n_right}, first, gram);
  }
  return true;
}

}  // namespace

MassDictionary make_mass_dictionary(const HeadProblem& problem, std::span<const int32_t> rows, Weighting weighting,
                                    const SolveOptions& options, const std::function<bool()>& should_stop,
                                    const kernels::KernelSet& kernels) {
  const std::vector<int64_t> queries = pick_queries(problem, options.max_queries_per_head);
  const int64_t n = static_cast<int64_t>(queries.size()), c = static_cast<int64_t>(rows.size());
  if (n == 0 || c == 0) return {};
  Mass mass{Mat<float>(n, c), std::vector<float>(queries.size(), 0.0f)};
  if (!gather_mass(problem, queries, rows, weighting, should_stop, kernels, mass)) return {};
  MassDictionary dictionary{.gram = Mat<float>(c, c), .rhs = std::vector<double>(rows.size(), 0.0)};
  for (int64_t i = 0; i < n; ++i) {
    const double target = mass.target[static_cast<size_t>(i)];
    dictionary.target_square += target * target;
    const float* row = mass.of_rows.row(i);
    for (size_t j = 0; j < rows.size(); ++j) dictionary.rhs[j] += target * row[j];
  }
  if (!accumulate_gram(mass.of_rows, should_stop, kernels, dictionary.gram)) return {};
  return dictionary;
}

}  // namespace sh::compaction
