// SPDX-License-Identifier: MIT
#include "sampling/sampler.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <random>

namespace sh::sampling {

namespace {

constexpr float kMinusInfinity = -std::numeric_limits<float>::infinity();

Error wrong_value(const char* field, double value, const char* expected) {
  return {ErrorKind::invalid_argument, fmt::format("{} is {}, expected {}", field, value, expected)};
}

}  // namespace

Result<void> validate(const SamplingParams& params) {
  const std::pair<const char*, float> finite[] = {{"temperature", params.temperature},
                                                  {"presence_penalty", params.presence_penalty},
                                                  {"frequency_penalty", params.frequency_penalty}};
  for (const auto& [field, value] : finite) {
    if (!std::isfinite(value)) return wrong_value(field, value, "a finite number");
  }
  const std::pair<const char*, float> shares[] = {
      {"top_p", params.top_p}, {"min_p", params.min_p}, {"typical_p", params.typical_p}};
  for (const auto& [field, value] : shares) {
    if (!(value >= 0 && value <= 1)) return wrong_value(field, value, "a number from 0 to 1");
  }
  if (!std::isfinite(params.repeat_penalty) || params.repeat_penalty <= 0) {
    return wrong_value("repeat_penalty", params.repeat_penalty, "a number above 0 (1 is no penalty)");
  }
  if (params.repeat_last_n < -1) {
    return wrong_value("repeat_last_n", params.repeat_last_n, "-1 (all tokens), 0 (none) or a number of tokens");
  }
  if (params.min_keep < 0) return wrong_value("min_keep", params.min_keep, "0 or a number of tokens");
  for (const auto& [id, bias] : params.logit_bias) {
    if (id < 0) return wrong_value("logit_bias: token id", id, "an id of the vocabulary");
    if (std::isnan(bias) || bias == std::numeric_limits<float>::infinity()) {
      return wrong_value(fmt::format("logit_bias of token {}", id).c_str(), bias,
                         "a finite number, or minus infinity");
    }
  }
  return {};
}

Sampler::Sampler(SamplingParams params, uint32_t seed, uint64_t stream)
    : params_(std::move(params)),
      seed_(seed),
      stream_(stream),
      rng_(seed, stream),
      has_penalties_(params_.repeat_last_n != 0 && (params_.repeat_penalty != 1 || params_.presence_penalty != 0 ||
                                                    params_.frequency_penalty != 0)) {}

Result<Sampler> Sampler::create(SamplingParams params, uint64_t stream) {
  SH_RETURN_IF_ERROR(validate(params));
  const uint32_t seed = params.seed == kRandomSeed ? static_cast<uint32_t>(std::random_device()()) : params.seed;
  return Sampler(std::move(params), seed, stream);
}

int32_t Sampler::sample(std::span<const float> logits) {
  SH_CHECK(!logits.empty(), "sampling needs logits");
  clean_logits(logits, logits_);
  apply_bias();
  if (has_penalties_) apply_penalties();
  if (params_.temperature <= 0) return pick_largest();
  const auto min_keep = static_cast<size_t>(params_.min_keep);
  if (params_.top_k > 0) {
    candidates_.assign_top_k(logits_, std::max(static_cast<size_t>(params_.top_k), min_keep));
  } else {
    candidates_.assign(logits_);
  }
  if (candidates_.is_empty()) return pick_largest();
  candidates_.keep_typical(params_.typical_p, min_keep);
  candidates_.keep_top_p(params_.top_p, min_keep);
  candidates_.keep_min_p(params_.min_p, min_keep);
  candidates_.apply_temperature(params_.temperature);
  return candidates_.all()[candidates_.draw(rng_.next_unit())].id;
}

void Sampler::apply_bias() {
  const auto has = [&](int32_t id) { return id >= 0 && static_cast<size_t>(id) < logits_.size(); };
  for (const auto& [id, bias] : params_.logit_bias) {
    if (!has(id)) continue;
    float& logit = logits_[static_cast<size_t>(id)];
    logit = std::min(logit + bias, std::numeric_limits<float>::max());
  }
  for (const int32_t id : params_.banned) {
    if (has(id)) logits_[static_cast<size_t>(id)] = kMinusInfinity;
  }
}

/// Source:  Keskar et al., "CTRL", arXiv 1909.05858 (repetition); presence and frequency as in the OpenAI API.
void Sampler::apply_penalties() {
  for (const auto& [id, count] : counts_) {
    if (id < 0 || static_cast<size_t>(id) >= logits_.size()) continue;
    float& logit = logits_[static_cast<size_t>(id)];
    logit = logit > 0 ? logit / params_.repeat_penalty : logit * params_.repeat_penalty;
    logit -= static_cast<float>(count) * params_.frequency_penalty + params_.presence_penalty;
    if (std::isnan(logit)) logit = kMinusInfinity;
    logit = std::min(logit, std::numeric_limits<float>::max());
  }
}

int32_t Sampler::pick_largest() {
  candidates_.assign_top_k(logits_, 1);
  if (!candidates_.is_empty()) {
    candidates_.draw(0);
    return candidates_.all()[0].id;
  }
  for (int32_t id = 0; static_cast<size_t>(id) < logits_.size(); ++id) {
    if (std::find(params_.banned.begin(), params_.banned.end(), id) == params_.banned.end()) return id;
  }
  return 0;
}

void Sampler::accept(int32_t id) {
  if (!has_penalties_) return;
  recent_.push_back(id);
  ++counts_[id];
  if (params_.repeat_last_n < 0 || recent_.size() <= static_cast<size_t>(params_.repeat_last_n)) return;
  const auto oldest = counts_.find(recent_.front());
  if (--oldest->second == 0) counts_.erase(oldest);
  recent_.pop_front();
}

void Sampler::reset() {
  recent_.clear();
  counts_.clear();
  rng_ = Rng(seed_, stream_);
}

}  // namespace sh::sampling
