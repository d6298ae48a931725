// SPDX-License-Identifier: MIT
#include "sampling/candidates.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "base/check.h"

namespace sh::sampling {

namespace {
constexpr float kMinusInfinity = -std::numeric_limits<float>::infinity();
// First part that a cut by probability sorts; most distributions need no more.
constexpr size_t kFirstSorted = 64;

bool is_better(const Candidate& a, const Candidate& b) {
  return a.logit > b.logit || (a.logit == b.logit && a.id < b.id);
}
}  // namespace

void Candidates::assign(std::span<const float> logits) {
  items_.clear();
  n_sorted_ = 0;
  for (size_t id = 0; id < logits.size(); ++id) {
    if (logits[id] > kMinusInfinity) items_.push_back({static_cast<int32_t>(id), logits[id], 0});
  }
}

void Candidates::assign_top_k(std::span<const float> logits, size_t k) {
  items_.clear();
  for (size_t id = 0; id < logits.size(); ++id) {
    const Candidate candidate{static_cast<int32_t>(id), logits[id], 0};
    if (candidate.logit == kMinusInfinity) continue;
    if (items_.size() < k) {
      items_.push_back(candidate);
      std::push_heap(items_.begin(), items_.end(), is_better);
    } else if (is_better(candidate, items_.front())) {  // the front of the heap is the worst
      std::pop_heap(items_.begin(), items_.end(), is_better);
      items_.back() = candidate;
      std::push_heap(items_.begin(), items_.end(), is_better);
    }
  }
  std::sort_heap(items_.begin(), items_.end(), is_better);
  n_sorted_ = items_.size();
}

void Candidates::sort_first(size_t n) {
  n = std::min(n, items_.size());
  if (n <= n_sorted_) return;
  const auto from = items_.begin() + static_cast<std::ptrdiff_t>(n_sorted_);
  const auto to = items_.begin() + static_cast<std::ptrdiff_t>(n);
  if (to != items_.end()) std::nth_element(from, to, items_.end(), is_better);
  std::sort(from, to, is_better);
  n_sorted_ = n;
}

void Candidates::keep_first(size_t n) {
  items_.resize(std::min(n, items_.size()));
  n_sorted_ = std::min(n_sorted_, items_.size());
}

float Candidates::largest_logit() const {
  if (n_sorted_ > 0) return items_[0].logit;
  float largest = kMinusInfinity;
  for (const Candidate& c : items_) largest = std::max(largest, c.logit);
  return largest;
}

void Candidates::softmax() {
  const float largest = largest_logit();
  double sum = 0;
  for (Candidate& c : items_) {
    c.p = std::exp(c.logit - largest);
    sum += c.p;
  }
  const auto scale = static_cast<float>(1 / sum);
  for (Candidate& c : items_) c.p *= scale;
}

void Candidates::keep_top_p(float top_p, size_t min_keep) {
  if (top_p >= 1 || is_empty()) return;
  softmax();
  double sum = 0;
  for (size_t i = 0; i < items_.size(); ++i) {
    if (i >= n_sorted_) sort_first(std::max(kFirstSorted, 4 * i));
    sum += items_[i].p;
    if (sum >= top_p && i + 1 >= min_keep) {
      keep_first(i + 1);
      return;
    }
  }
}

void Candidates::keep_min_p(float min_p, size_t min_keep) {
  if (min_p <= 0 || is_empty()) return;
  const float threshold = largest_logit() + std::log(min_p);
  const auto stays = [&](const Candidate& c) { return c.logit >= threshold; };
  const auto n_stay = static_cast<size_t>(std::count_if(items_.begin(), items_.end(), stays));
  if (n_stay < min_keep) {
    sort_first(min_keep);
    keep_first(min_keep);
    return;
  }
  // The sorted prefix keeps its order: what stays of it is its front.
  std::erase_if(items_, [&](const Candidate& c) { return !stays(c); });
  n_sorted_ = std::min(n_sorted_, n_stay);
}

void Candidates::keep_typical(float typical_p, size_t min_keep) {
  if (typical_p >= 1 || is_empty()) return;
  softmax();
  const auto surprise = [](const Candidate& c) { return -std::log(static_cast<double>(c.p)); };
  double entropy = 0;
  for (const Candidate& c : items_) entropy += c.p > 0 ? c.p * surprise(c) : 0;
  std::sort(items_.begin(), items_.end(), [&](const Candidate& a, const Candidate& b) {
    const double distance_a = std::abs(surprise(a) - entropy);
    const double distance_b = std::abs(surprise(b) - entropy);
    return distance_a < distance_b || (distance_a == distance_b && a.id < b.id);
  });
  double sum = 0;
  size_t n_kept = 0;
  while (n_kept < items_.size() && (sum <= typical_p || n_kept < min_keep)) sum += items_[n_kept++].p;
  n_sorted_ = 0;
  keep_first(n_kept);
}

void Candidates::apply_temperature(float temperature) {
  // Relative to the largest, so that no temperature overflows: the largest becomes 0 and the others fall.
  const float largest = largest_logit();
  for (Candidate& c : items_) {
    c.logit = std::max((c.logit - largest) / temperature, std::numeric_limits<float>::lowest());
  }
}

size_t Candidates::draw(double unit) {
  SH_CHECK(!is_empty(), "nothing to draw from");
  softmax();
  double sum = 0;
  for (const Candidate& c : items_) sum += c.p;
  double rest = unit * sum;
  size_t last = 0;
  for (size_t i = 0; i < items_.size(); ++i) {
    if (items_[i].p <= 0) continue;
    last = i;
    rest -= items_[i].p;
    if (rest < 0) break;
  }
  return last;
}

}  // namespace sh::sampling
