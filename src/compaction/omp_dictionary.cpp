// SPDX-License-Identifier: MIT
#include "compaction/omp_dictionary.h"

#include <algorithm>
#include <utility>

#include "compaction/gram.h"
#include "compaction/region.h"

namespace sh::compaction {
namespace {

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

}  // namespace

MassDictionary make_mass_dictionary(const HeadProblem& problem, std::span<const int32_t> rows, Weighting weighting,
                                    const SolveOptions& options, const std::function<bool()>& should_stop,
                                    const kernels::KernelSet& kernels) {
  const std::vector<int64_t> queries = pick_queries(problem, options.max_queries_per_head);
  const int64_t n = static_cast<int64_t>(queries.size()), c = static_cast<int64_t>(rows.size());
  if (n == 0 || c == 0) return {};
  Mass mass{Mat<float>(n, c), std::vector<float>(queries.size(), 0.0f)};
  if (!gather_mass(problem, queries, rows, weighting, should_stop, kernels, mass)) return {};
  MassDictionary dictionary{.rhs = std::vector<double>(rows.size(), 0.0)};
  for (int64_t i = 0; i < n; ++i) {
    const double target = mass.target[static_cast<size_t>(i)];
    dictionary.target_square += target * target;
    const float* row = mass.of_rows.row(i);
    for (size_t j = 0; j < rows.size(); ++j) dictionary.rhs[j] += target * row[j];
  }
  dictionary.gram = gram_of_columns(std::as_const(mass.of_rows).view(), should_stop, kernels);
  if (dictionary.gram.rows == 0) return {};
  return dictionary;
}

}  // namespace sh::compaction
