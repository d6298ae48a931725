// SPDX-License-Identifier: MIT
#include <algorithm>

#include "compaction/fit.h"

namespace sh::compaction {
namespace {

// A stretch of the problem's rows; queries and what they saw stay whole.
HeadProblem stretch_of(const HeadProblem& problem, int64_t begin, int64_t n) {
  const auto first = static_cast<size_t>(begin), count = static_cast<size_t>(n);
  HeadProblem part = problem;
  part.keys = problem.keys.slice(begin, n);
  part.values = problem.values.slice(begin, n);
  if (!problem.bias.empty()) part.bias = problem.bias.subspan(first, count);
  if (!problem.pos.empty()) part.pos = problem.pos.subspan(first, count);
  return part;
}

// Errors of stretches become their mean, worst ones their maximum.
class ReportSum {
 public:
  void add(const FitReport& part) {
    if (part.n_heldout_queries == 0) return;
    ++n_;
    sum_.n_fit_queries = std::max(sum_.n_fit_queries, part.n_fit_queries);
    sum_.n_heldout_queries = std::max(sum_.n_heldout_queries, part.n_heldout_queries);
    sum_.heldout_plain += part.heldout_plain;
    sum_.heldout_fitted += part.heldout_fitted;
    sum_.log_mass_plain += part.log_mass_plain;
    sum_.log_mass_fitted += part.log_mass_fitted;
    sum_.mean_log_mass_plain += part.mean_log_mass_plain;
    sum_.mean_log_mass_fitted += part.mean_log_mass_fitted;
    sum_.heldout_plain_worst = std::max(sum_.heldout_plain_worst, part.heldout_plain_worst);
    sum_.heldout_fitted_worst = std::max(sum_.heldout_fitted_worst, part.heldout_fitted_worst);
    sum_.worst_regret = std::max(sum_.worst_regret, part.worst_regret);
    sum_.is_fit_accepted |= part.is_fit_accepted;
    sum_.bias_ridge = std::max(sum_.bias_ridge, part.bias_ridge);
    sum_.value_ridge = std::max(sum_.value_ridge, part.value_ridge);
    sum_.n_bias_at_bound += part.n_bias_at_bound;
    sum_.n_nnls_sweeps += part.n_nnls_sweeps;
    sum_.n_factorisation_retries += part.n_factorisation_retries;
    sum_.had_nonfinite_input |= part.had_nonfinite_input;
  }
  FitReport result() const {
    FitReport mean = sum_;
    for (double* value :
         {&mean.heldout_plain, &mean.heldout_fitted, &mean.log_mass_plain, &mean.log_mass_fitted,
          &mean.mean_log_mass_plain, &mean.mean_log_mass_fitted})
      *value /= std::max(1, n_);
    return mean;
  }

 private:
  FitReport sum_;
  int n_ = 0;
};

}  // namespace

CompactHead fit_head_in_chunks(const HeadProblem& problem, std::span<const int32_t> rows,
                               std::span<const float> scores, Fit fit, const SolveOptions& options,
                               const kernels::KernelSet& kernels) {
  const int64_t n_rows = problem.keys.rows;
  const auto chunk_of = [&](int64_t row) {
    return (problem.pos.empty() ? row : problem.pos[static_cast<size_t>(row)]) / options.chunk_tokens;
  };
  CompactHead head;
  ReportSum report;
  size_t next = 0;  // of rows
  for (int64_t begin = 0; begin < n_rows;) {
    int64_t end = begin + 1;
    while (end < n_rows && chunk_of(end) == chunk_of(begin)) ++end;
    std::vector<int32_t> kept;
    for (; next < rows.size() && rows[next] < end; ++next) kept.push_back(rows[next] - static_cast<int32_t>(begin));
    const CompactHead part =
        fit_head(stretch_of(problem, begin, end - begin), kept,
                 scores.subspan(static_cast<size_t>(begin), static_cast<size_t>(end - begin)), fit, options, kernels);
    report.add(part.report);
    // Values are all or none: once a stretch has new ones, the others' are copied.
    const auto n_done = static_cast<int64_t>(head.source_rows.size()), n_kept = static_cast<int64_t>(kept.size());
    if (part.values.rows > 0 && head.values.rows == 0) {
      head.values = Mat<float>(static_cast<int64_t>(rows.size()), problem.values.cols);
      for (size_t i = 0; i < rows.size(); ++i)
        std::copy_n(problem.values.row(rows[i]), problem.values.cols, head.values.row(static_cast<int64_t>(i)));
    }
    for (int64_t i = 0; i < n_kept && part.values.rows > 0; ++i)
      std::copy_n(part.values.row(i), part.values.cols, head.values.row(n_done + i));
    for (int64_t i = 0; i < n_kept; ++i) {
      head.source_rows.push_back(part.source_rows[static_cast<size_t>(i)] + static_cast<int32_t>(begin));
      head.bias.push_back(part.bias[static_cast<size_t>(i)]);
    }
    begin = end;
  }
  head.report = report.result();
  return head;
}

}  // namespace sh::compaction
