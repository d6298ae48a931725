// SPDX-License-Identifier: MIT
#pragma once

#include <cstdint>
#include <span>

#include "base/mat_view.h"
#include "compaction/ridge.h"
#include "compaction/targets.h"
#include "compaction/validate.h"
#include "kernels/kernel_set.h"

namespace sh::compaction {

/// Ridge regression of values on mixed outputs, shrunk to given values: minimises over V
///   Σ_i ‖ output_i(w, V) - exact_i ‖² + ridge · ‖V - V_0‖²   over the queries of the fit.
/// A query's row of the system holds its shares of attention, so queries that hardly look at the region weigh next
/// to nothing.
class ValueFit {
 public:
  /// `plain` is the approximation with these weights and V_0. All are borrowed.
  ValueFit(const FitTargets& targets, std::span<const float> weights, MatView<const float> values,
           const Approximation& plain, float max_step, const kernels::KernelSet& kernels);

  /// Solves for a ridge of `strength` times the mean eigenvalue, each row at most `max_step` from V_0.
  /// False if the system cannot be solved (see RidgeSystem::solve).
  /// Cost: k³/6 + k²·dv products for k = min(n_fit, t), and for the errors n·n_fit·dv with fewer queries of the
  /// fit
  ///       than rows, else n·t·dv.
  bool solve(double strength, int32_t& n_retries);
  /// Of all queries, with the values last solved for.
  std::vector<float> errors() const;
  /// What was last solved for, in the smaller of its two forms.
  struct Step {
    Mat<float> dual, direct;  // one of both: direct [t, dv] = sharesᵀ · dual for the queries of the fit
  };
  const Step& step() const { return step_; }
  /// [t, dv] with such a step. Cost: n_fit·t·dv products for a dual one, so not for every strength that is tried.
  Mat<float> values(const Step& step) const;

 private:
  bool may_exceed(const Mat<float>& y) const;
  void set_step(Mat<float> step);

  const FitTargets& targets_;
  MatView<const float> values_;
  const Approximation& plain_;
  const float max_step_;
  const kernels::KernelSet& kernels_;
  Mat<float> shares_;  // [n, t] of attention, of all queries
  RidgeSystem system_;
  Mat<float> cross_;  // [n, n_fit] products of shares, of a dual system
  Step step_;
};

}  // namespace sh::compaction
