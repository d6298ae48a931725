// SPDX-License-Identifier: MIT
#include "base/rng.h"

#include <cmath>
#include <numbers>

namespace sh {

double Rng::next_normal() {
  const double u = 1.0 - next_unit();  // in (0, 1]: its logarithm is finite
  const double v = next_unit();
  return std::sqrt(-2.0 * std::log(u)) * std::cos(2.0 * std::numbers::pi * v);
}

}  // namespace sh
