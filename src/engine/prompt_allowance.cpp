// SPDX-License-Identifier: MIT
#include "engine/prompt_allowance.h"

#include <algorithm>

namespace sh::engine {

namespace {

// Weight of the newest step: a load that comes or goes is followed within about three steps, and a step that was
// held up once does not throw the next ones far off.
constexpr double kNewest = 0.5;

}  // namespace

PromptAllowance::PromptAllowance(double goal_seconds, int64_t n_max)
    : goal_seconds_(goal_seconds), n_min_(std::min(kMinTokens, n_max)), n_max_(n_max) {}

int64_t PromptAllowance::n_tokens() const {
  if (goal_seconds_ <= 0) return n_max_;
  if (!seconds_per_token_) return n_min_;
  // Of a cost that includes what the step takes without prompt tokens: taken again and again, this ends where the
  // whole step lasts as long as the goal.
  return static_cast<int64_t>(
      std::clamp(goal_seconds_ / *seconds_per_token_, static_cast<double>(n_min_), static_cast<double>(n_max_)));
}

void PromptAllowance::note(int64_t n_prompt, double seconds) {
  if (n_prompt < n_min_) return;  // the end of a prompt: the step's time is the decodes'
  const double newest = seconds / static_cast<double>(n_prompt);
  seconds_per_token_ = seconds_per_token_ ? *seconds_per_token_ + kNewest * (newest - *seconds_per_token_) : newest;
}

}  // namespace sh::engine
