// SPDX-License-Identifier: MIT
#include "compaction/fit.h"

#include <algorithm>
#include <cmath>
#include <iterator>
#include <numeric>
#include <optional>
#include <utility>

#include "compaction/nnls.h"
#include "compaction/problem_source.h"
#include "compaction/region.h"
#include "compaction/ridge.h"
#include "compaction/score.h"
#include "compaction/targets.h"
#include "compaction/validate.h"
#include "compaction/values.h"

namespace sh::compaction {
namespace {

// Ridge strengths as multiples of the mean eigenvalue, from strong to weak. From kWeakStrength on the held-out
// error must still fall by more than kLeastGain for a weaker one to be tried: with few queries it goes on falling
// in the fourth digit.
constexpr double kStrengths[] = {10.0, 3.0, 1.0, 0.3, 1e-1, 1e-2, 1e-3, 1e-5};
constexpr double kWeakStrength = 0.1, kLeastGain = 0.005;
bool is_worth_going_on(double strength, double before, double now) {
  return now < (strength <= kWeakStrength ? (1 - kLeastGain) * before : before);
}
// Of weights: a percent of one row's mass. At a tenth of that the sweeps were a quarter of a fit's time.
constexpr float kBoxTolerance = 1e-2f;
// A mass error of a query moves its mixed output by (1 - π) times the error; this is added so that queries that
// attend nothing but the region still ask for its mass: what will stand beside it later is not known. Clustered
// synthetic heads at t/T of 5 to 20 %: 0.3 and 1 end within 2 % of each other, 0.01 finds no bias that survives
// acceptance.
constexpr float kMassWeightFloor = 0.3f;
// A fitted value moves at most this many times the longest original value.
constexpr float kMaxValueStep = 4.0f;

// An output this wrong is of no use, and more wrong makes no difference to what a query may lose.
constexpr float kLostError = 1.0f;

struct Candidate {
  std::vector<float> weights;  // [t] exp of the change of bias
  // What its values are formed from, if it has new ones.
  const ValueFit* value_fit = nullptr;
  ValueFit::Step step;
  Mat<float> values;  // [t, dv], of the best candidate only, or 0 rows: the original ones
  double bias_ridge = 0, value_ridge = 0;
};

struct Judgement {
  ErrorSummary heldout, fit;
  double regret = 0;  // how much worse than with the plain rows the error of any query became, at most
};

struct BiasFit {
  std::vector<float> weights;
  double ridge = 0;
  double heldout_residual = 0;
};

Mat<float> transposed(const Mat<float>& from) {
  Mat<float> to(from.cols, from.rows);
  for (int64_t i = 0; i < from.rows; ++i)
    for (int64_t j = 0; j < from.cols; ++j) to(j, i) = from(i, j);
  return to;
}

class HeadFitter {
 public:
  HeadFitter(const FitTargets& targets, MatView<const float> values, float max_value_step,
             const SolveOptions& options, const kernels::KernelSet& kernels, FitReport& report)
      : targets_(targets),
        values_(values),
        max_value_step_(max_value_step),
        options_(options),
        kernels_(kernels),
        report_(report),
        ones_(static_cast<size_t>(targets.mass.cols), 1.0f) {}

  /// The best admissible candidate, or none if the plain rows are.
  std::optional<Candidate> run(Fit fit);

 private:
  Judgement judge(std::span<const float> errors) const;
  bool is_admissible(const Judgement& judgement) const;
  /// Judges a candidate with these errors; keeps it, as make() gives it, if it is the best so far. Returns its
  /// held-out mean square error.
  template <typename Make>
  double consider(std::span<const float> errors, Make&& make) {
    const Judgement judgement = judge(errors);
    // Squares: a change of the output by ε costs the model's prediction of the order ε².
    const double best = best_ ? best_judgement_.heldout.mean_square : plain_.heldout.mean_square;
    if (is_admissible(judgement) && judgement.heldout.mean_square < best) {
      best_ = make();
      best_judgement_ = judgement;
    }
    return judgement.heldout.mean_square;
  }
  std::vector<BiasFit> fit_biases();
  void try_biases(const std::vector<BiasFit>& fits);
  /// `plain` and `value_fit`, which it fills, must live until the end of run().
  void try_values(const std::vector<float>& weights, double bias_ridge, const Approximation& plain,
                  std::optional<ValueFit>& value_fit);
  Approximation approximate_with(std::span<const float> weights, MatView<const float> values) const {
    return approximate(targets_, weights, values, kernels_);
  }
  double heldout_mass_residual(std::span<const float> row_weight, std::span<const float> weights) const;

  const FitTargets& targets_;
  MatView<const float> values_;
  float max_value_step_;
  const SolveOptions& options_;
  const kernels::KernelSet& kernels_;
  FitReport& report_;
  std::vector<float> ones_;
  std::vector<float> plain_errors_;
  Judgement plain_;
  std::optional<Candidate> best_;
  Judgement best_judgement_;
};

Judgement HeadFitter::judge(std::span<const float> errors) const {
  const size_t n_fit = static_cast<size_t>(targets_.n_fit);
  Judgement judgement{.heldout = summarise(errors.subspan(n_fit)), .fit = summarise(errors.first(n_fit))};
  for (size_t i = 0; i < plain_errors_.size(); ++i)
    judgement.regret = std::max<double>(judgement.regret, std::min(errors[i], kLostError) - plain_errors_[i]);
  return judgement;
}

bool HeadFitter::is_admissible(const Judgement& j) const {
  const double factor = options_.accept_worst_factor;
  return j.heldout.worst <= factor * plain_.heldout.worst && j.heldout.p99 <= factor * plain_.heldout.p99 &&
         j.fit.worst <= factor * plain_.fit.worst && j.regret <= options_.accept_max_regret &&
         j.heldout.mean < plain_.heldout.mean;
}

double HeadFitter::heldout_mass_residual(std::span<const float> row_weight, std::span<const float> weights) const {
  double total = 0;
  for (int64_t i = targets_.n_fit; i < targets_.n(); ++i) {
    const size_t query = static_cast<size_t>(i);
    const double mass =
        kernels_.dot(targets_.mass.row(i), weights.data(), targets_.mass.cols) + targets_.unfitted_mass[query];
    const double residual = row_weight[query] * (mass - targets_.region_mass[query]);
    total += residual * residual;
  }
  return total;
}

std::vector<BiasFit> HeadFitter::fit_biases() {
  const int64_t n = targets_.n(), n_fit = targets_.n_fit, t = targets_.mass.cols;
  std::vector<float> row_weight(static_cast<size_t>(n));
  // For weights w: the mass that they restore, and that of the region. For steps from 1: what the plain rows lack.
  Mat<float> design(n_fit, t), missing(n_fit, 1);
  std::vector<float> target(static_cast<size_t>(n_fit));
  for (int64_t i = 0; i < n; ++i) {
    const size_t query = static_cast<size_t>(i);
    const float share = targets_.region_mass[query];
    const float weight = row_weight[query] = share > 0 ? 1.0f - share + kMassWeightFloor : 0.0f;
    if (i >= n_fit) continue;
    const float* mass = targets_.mass.row(i);
    float* row = design.row(i);
    for (int64_t j = 0; j < t; ++j) row[j] = weight * mass[j];
    target[query] = weight * (share - targets_.unfitted_mass[query]);
    missing(i, 0) = target[query] - kernels_.dot(row, ones_.data(), t);
  }
  RidgeSystem system(std::as_const(design).view(), std::move(missing), kernels_);
  const float lower = std::exp(options_.min_bias), upper = std::exp(options_.max_bias);
  Mat<float> columns;  // of the design, for the box
  std::vector<BiasFit> fits;
  double last_residual = heldout_mass_residual(row_weight, ones_);
  for (const double strength : kStrengths) {
    // The box hardly ever binds: first without it, and what lies outside is put right from there.
    Mat<float> step = system.solve(strength, report_.n_factorisation_retries);
    if (step.rows == 0) break;
    if (system.is_dual()) step = system.from_dual(step);
    BiasFit fit{std::move(step.data), strength, 0};
    bool is_outside = false;
    for (float& weight : fit.weights) {
      weight += 1.0f;
      is_outside |= weight < lower || weight > upper;
    }
    if (is_outside) {
      if (columns.rows == 0) columns = transposed(design);
      const BoxRegression problem{.columns = std::as_const(columns).view(),
                                  .target = target,
                                  .ridge = static_cast<float>(strength * system.mean_eigenvalue()),
                                  .lower = lower,
                                  .upper = upper};
      report_.n_nnls_sweeps +=
          solve_box_regression(problem, kBoxTolerance, options_.max_nnls_sweeps, kernels_, fit.weights).n_sweeps;
    }
    fit.heldout_residual = heldout_mass_residual(row_weight, fit.weights);
    if (!(fit.heldout_residual < last_residual)) break;
    const bool goes_on = is_worth_going_on(strength, last_residual, fit.heldout_residual);
    last_residual = fit.heldout_residual;
    fits.push_back(std::move(fit));
    if (!goes_on) break;
  }
  return fits;
}

void HeadFitter::try_values(const std::vector<float>& weights, double bias_ridge, const Approximation& plain,
                            std::optional<ValueFit>& value_fit) {
  value_fit.emplace(targets_, weights, values_, plain, max_value_step_, kernels_);
  double last = judge(plain.error).heldout.mean_square;
  for (const double strength : kStrengths) {
    if (!value_fit->solve(strength, report_.n_factorisation_retries)) break;
    const double error = consider(value_fit->errors(), [&] {
      return Candidate{.weights = weights,
                       .value_fit = &*value_fit,
                       .step = value_fit->step(),
                       .bias_ridge = bias_ridge,
                       .value_ridge = strength};
    });
    if (!is_worth_going_on(strength, last, error)) break;
    last = error;
  }
}

void HeadFitter::try_biases(const std::vector<BiasFit>& fits) {
  double last = plain_.heldout.mean_square;
  for (const BiasFit& fit : fits) {
    const double error = consider(approximate_with(fit.weights, values_).error,
                                  [&] { return Candidate{.weights = fit.weights, .bias_ridge = fit.ridge}; });
    if (!is_worth_going_on(fit.ridge, last, error)) return;
    last = error;
  }
}

std::optional<Candidate> HeadFitter::run(Fit fit) {
  const Approximation plain = approximate_with(ones_, values_);
  plain_errors_ = plain.error;
  plain_ = judge(plain_errors_);
  report_.heldout_plain = report_.heldout_fitted = plain_.heldout.mean;
  report_.heldout_plain_worst = report_.heldout_fitted_worst = plain_.heldout.worst;
  const LogMass plain_mass = log_mass_of(targets_, targets_.n_fit, targets_.n(), ones_);
  report_.log_mass_plain = report_.log_mass_fitted = plain_mass.rms;
  report_.mean_log_mass_plain = report_.mean_log_mass_fitted = plain_mass.mean;
  if (fit == Fit::none || targets_.n_fit == 0 || targets_.n_fit == targets_.n() || targets_.mass.cols == 0)
    return std::nullopt;

  std::optional<ValueFit> fit_of_plain, fit_of_biased;
  std::optional<Approximation> biased;
  if (fit == Fit::values || fit == Fit::both) try_values(ones_, 0, plain, fit_of_plain);
  if (fit == Fit::biases || fit == Fit::both) {
    const std::vector<BiasFit> bias_fits = fit_biases();
    try_biases(bias_fits);
    // The last one has the lowest held-out mass error.
    if (fit == Fit::both && !bias_fits.empty()) {
      const std::vector<float>& weights = bias_fits.back().weights;
      biased = approximate_with(weights, values_);
      try_values(weights, bias_fits.back().ridge, *biased, fit_of_biased);
    }
  }
  if (!best_) return std::nullopt;
  if (best_->value_fit != nullptr) best_->values = best_->value_fit->values(best_->step);
  report_.heldout_fitted = best_judgement_.heldout.mean;
  report_.heldout_fitted_worst = best_judgement_.heldout.worst;
  const LogMass fitted_mass = log_mass_of(targets_, targets_.n_fit, targets_.n(), best_->weights);
  report_.log_mass_fitted = fitted_mass.rms;
  report_.mean_log_mass_fitted = fitted_mass.mean;
  report_.worst_regret = best_judgement_.regret;
  report_.is_fit_accepted = true;
  report_.bias_ridge = static_cast<float>(best_->bias_ridge);
  report_.value_ridge = static_cast<float>(best_->value_ridge);
  return std::move(best_);
}

// Rows as they are: the input's biases, the original values.
CompactHead plain_head(const HeadProblem& kept, std::span<const int32_t> rows) {
  CompactHead head;
  head.source_rows.assign(rows.begin(), rows.end());
  head.bias.assign(kept.bias.begin(), kept.bias.end());
  head.bias.resize(rows.size(), 0.0f);
  return head;
}

// The kept rows that a fit may move: all, or the best scored. Indices into `rows`.
std::vector<int32_t> rows_to_fit(std::span<const int32_t> rows, std::span<const float> scores, int64_t max_rows) {
  std::vector<float> row_scores;
  for (const int32_t row : rows) row_scores.push_back(scores[static_cast<size_t>(row)]);
  return top_rows(row_scores, max_rows);
}

Mat<float> copy_of(MatView<const float> from) {
  Mat<float> copy(from.rows, from.cols);
  for (int64_t i = 0; i < from.rows; ++i) std::copy_n(from.row(i), from.cols, copy.row(i));
  return copy;
}

void apply(Candidate candidate, std::span<const int32_t> fitted, const HeadProblem& kept,
           const SolveOptions& options, CompactHead& head) {
  const bool has_new_values = candidate.value_ridge > 0;
  const bool has_unfitted = static_cast<int64_t>(fitted.size()) < kept.values.rows;
  if (has_new_values) head.values = has_unfitted ? copy_of(kept.values) : std::move(candidate.values);
  // Weights at a bound are within f32 rounding of it.
  const float lower = std::exp(options.min_bias) * 1.0001f, upper = std::exp(options.max_bias) * 0.9999f;
  for (size_t j = 0; j < fitted.size(); ++j) {
    const auto i = static_cast<size_t>(fitted[j]);
    const float weight = candidate.weights[j];
    if (candidate.bias_ridge > 0) {
      head.bias[i] += std::clamp(std::log(weight), options.min_bias, options.max_bias);
      head.report.n_bias_at_bound += weight <= lower || weight >= upper ? 1 : 0;
    }
    if (has_new_values && has_unfitted)
      std::copy_n(candidate.values.row(static_cast<int64_t>(j)), candidate.values.cols,
                  head.values.row(static_cast<int64_t>(i)));
  }
}

}  // namespace

CompactHead fit_kept_rows(const HeadProblem& kept, std::span<const int32_t> rows, std::span<const float> scores,
                          const RegionSummary& region, Fit fit, const SolveOptions& options,
                          const kernels::KernelSet& kernels) {
  CompactHead head = plain_head(kept, rows);
  if (kept.queries.rows == 0) return head;
  const QuerySplit split = queries_of_fit(kept, fit, options);
  FitReport& report = head.report;
  report.had_nonfinite_input = region.n_finite_rows < region.n_rows || has_nonfinite_query(kept);
  if (static_cast<int64_t>(rows.size()) == region.n_finite_rows) {
    // Everything is kept: exact, whatever the queries.
    report.n_heldout_queries = static_cast<int64_t>(split.queries.size()) - split.n_fit;
    return head;
  }
  const std::vector<int32_t> fitted = rows_to_fit(rows, scores, options.max_fit_rows);
  std::vector<int32_t> all(rows.size()), unfitted;
  std::iota(all.begin(), all.end(), 0);
  std::set_difference(all.begin(), all.end(), fitted.begin(), fitted.end(), std::back_inserter(unfitted));
  RegionSoftmax softmax(kept, kernels);
  const FitTargets targets = make_targets(kept, split, fitted, unfitted, region, softmax, kernels);
  report.n_fit_queries = targets.n_fit;
  report.n_heldout_queries = targets.n() - targets.n_fit;
  report.had_nonfinite_input |= targets.n() < static_cast<int64_t>(split.queries.size());

  MatView<const float> values = softmax.values();
  Mat<float> values_of_fitted;
  if (!unfitted.empty()) {
    values_of_fitted = Mat<float>(static_cast<int64_t>(fitted.size()), values.cols);
    for (int64_t j = 0; j < values_of_fitted.rows; ++j)
      std::copy_n(values.row(fitted[static_cast<size_t>(j)]), values.cols, values_of_fitted.row(j));
    values = std::as_const(values_of_fitted).view();
  }
  HeadFitter fitter(targets, values, kMaxValueStep * region.longest_value, options, kernels, report);
  if (std::optional<Candidate> best = fitter.run(fit)) apply(std::move(*best), fitted, kept, options, head);
  return head;
}

CompactHead fit_head(const HeadProblem& problem, std::span<const int32_t> rows, std::span<const float> scores,
                     Fit fit, const SolveOptions& options, const kernels::KernelSet& kernels) {
  std::vector<int64_t> queries = queries_of_fit(problem, fit, options).queries;
  std::sort(queries.begin(), queries.end());
  const RegionSummary region = summarise_region(problem, std::move(queries), kernels);
  HeadStorage storage;
  return fit_kept_rows(gather_rows(problem, rows, storage), rows, scores, region, fit, options, kernels);
}

}  // namespace sh::compaction
