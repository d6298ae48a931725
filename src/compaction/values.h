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
  /// `plain` is the approximation with these weights and V_0.
  ValueFit(const FitTargets& targets, std::span<const float> weights, MatView<const float> values,
           const Approximation& plain, const kernels::KernelSet& kernels);

  /// V for a ridge of `strength` times the mean eigenvalue, each row at most `max_step` from V_0. Empty if the
  /// system cannot be solved (see RidgeSystem::solve).
  Mat<float> solve(double strength, float max_step, int32_t& n_retries) const;

 private:
  MatView<const float> values_;
  const kernels::KernelSet& kernels_;
  RidgeSystem system_;
};

}  // namespace sh::compaction
