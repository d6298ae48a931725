// SPDX-License-Identifier: MIT
#include "compaction/omp.h"

#include <algorithm>
#include <limits>

#include "base/cancel.h"
#include "base/check.h"
#include "base/clock.h"
#include "compaction/nnls.h"
#include "compaction/omp_dictionary.h"
#include "compaction/region.h"
#include "compaction/score.h"

namespace sh::compaction {
namespace {

// A batch takes no two columns that are more alike: the second would gain nothing once the first has a weight.
constexpr double kMaxCosine = 0.999;
// A column whose part outside the span of those picked is smaller (as a share of its square) is taken as
// dependent. Entries of the Gram matrix are rounded to 6e-8, so less than 1e-6 is noise.
constexpr double kMinPivot = 1e-6;
// A correlation below this share of the column's correlation with the whole target is rounding of f32 sums.
constexpr double kMinCorrelation = 2e-6;
constexpr int32_t kMaxDropRounds = 3;
constexpr int32_t kMaxReturns = 100;  // of picks that had lost their weight, in one refit
// Weights between picks decide only what is picked next; those after the last pick decide what is dropped.
constexpr double kLooseTolerance = 1e-5, kTightTolerance = 1e-8;
constexpr int32_t kMaxLooseSweeps = 50;
constexpr double kProductsPerCheck = 4e6;  // between two looks at the clock: some milliseconds
constexpr int64_t kRowsPerFlush = 64;      // of f32 sums into double

// In four sums of fixed order: fast without leave to reorder.
double dot(const double* a, const double* b, int64_t n) {
  double sum[4] = {0, 0, 0, 0};
  int64_t i = 0;
  for (; i + 4 <= n; i += 4)
    for (int64_t lane = 0; lane < 4; ++lane) sum[lane] += a[i + lane] * b[i + lane];
  for (; i < n; ++i) sum[0] += a[i] * b[i];
  return (sum[0] + sum[1]) + (sum[2] + sum[3]);
}

class Stopper {
 public:
  Stopper(double deadline_seconds, const std::atomic<bool>* cancel)
      : deadline_seconds_(deadline_seconds), cancel_(cancel) {}
  bool should_stop() {
    if (is_cancelled(cancel_)) is_stopped_ = true;
    if (!is_stopped_ && deadline_seconds_ > 0 && watch_.seconds() >= deadline_seconds_)
      is_stopped_ = hit_deadline_ = true;
    return is_stopped_;
  }
  bool is_stopped() const { return is_stopped_; }
  bool hit_deadline() const { return hit_deadline_; }

 private:
  Stopwatch watch_;
  double deadline_seconds_;
  const std::atomic<bool>* cancel_;
  bool is_stopped_ = false, hit_deadline_ = false;
};

// L Lᵀ = G of some columns and z = L⁻¹ b; columns are added at the end and taken out anywhere.
class ChangingCholesky {
 public:
  void clear() {
    factor_.clear();
    z_.clear();
  }
  // `column` [n] holds the new column's products with the earlier ones. False, and nothing changes, if it depends
  // on them.
  bool append(std::span<const double> column, double diagonal, double rhs) {
    const int64_t n = size();
    const size_t start = factor_.size();
    factor_.resize(start + column.size() + 1);
    double* y = factor_.data() + start;
    for (int64_t i = 0; i < n; ++i) y[i] = (column[static_cast<size_t>(i)] - dot(row(i), y, i)) / row(i)[i];
    const double pivot = diagonal - dot(y, y, n);
    if (!(pivot > kMinPivot * diagonal)) {
      factor_.resize(start);
      return false;
    }
    y[n] = std::sqrt(pivot);
    z_.push_back((rhs - dot(y, z_.data(), n)) / y[n]);
    return true;
  }
  // Takes out column `p`: each row below loses an entry on the diagonal side, by rotations of neighbouring
  // columns.
  void remove(int64_t p) {
    const int64_t n = size();
    std::vector<double> cosine(static_cast<size_t>(n)), sine(static_cast<size_t>(n));
    const auto rotate = [&](const double* from, double* to, int64_t end) {
      double carried = from[p];
      for (int64_t k = p; k < end; ++k) {
        const double c = cosine[static_cast<size_t>(k)], s = sine[static_cast<size_t>(k)], next = from[k + 1];
        to[k] = c * carried + s * next;
        carried = c * next - s * carried;
      }
      return carried;
    };
    for (int64_t r = p + 1; r < n; ++r) {
      const double* from = row(r);
      double* to = factor_.data() + (r - 1) * r / 2;
      const double diagonal = from[r];
      std::copy_n(from, p, to);
      const double carried = rotate(from, to, r - 1), length = std::hypot(carried, diagonal);
      cosine[static_cast<size_t>(r - 1)] = carried / length;
      sine[static_cast<size_t>(r - 1)] = diagonal / length;
      to[r - 1] = length;
    }
    rotate(z_.data(), z_.data(), n - 1);
    z_.pop_back();
    factor_.resize(static_cast<size_t>((n - 1) * n / 2));
  }
  // w = L⁻ᵀ z: the weights of least squares without a box.
  void solve(std::span<double> w) const {
    std::copy(z_.begin(), z_.end(), w.begin());
    for (int64_t i = size() - 1; i >= 0; --i) {
      const double weight = w[static_cast<size_t>(i)] /= row(i)[i];
      for (int64_t j = 0; j < i; ++j) w[static_cast<size_t>(j)] -= weight * row(i)[j];
    }
  }

 private:
  int64_t size() const { return static_cast<int64_t>(z_.size()); }
  const double* row(int64_t i) const { return factor_.data() + i * (i + 1) / 2; }

  std::vector<double> factor_;  // lower triangle, packed by rows
  std::vector<double> z_;
};

enum class State : uint8_t { open, skipped, picked, closed };  // skipped: for this batch; closed: for good

class Pursuit {
 public:
  Pursuit(const MassDictionary& dictionary, int64_t n_rows, const OmpOptions& omp, const SolveOptions& options,
          Stopper& stopper, const kernels::KernelSet& kernels)
      : dictionary_(dictionary),
        omp_(omp),
        options_(options),
        stopper_(stopper),
        kernels_(kernels),
        max_rows_(std::min(n_rows, dictionary.gram.rows)),
        correlation_(dictionary.rhs),
        state_(dictionary.rhs.size(), State::open) {}

  void run();
  const std::vector<int32_t>& picks() const { return picks_; }  // candidates
  const std::vector<double>& residual() const { return residual_; }
  bool is_open(size_t candidate) const { return state_[candidate] != State::closed; }
  int32_t n_dropped() const { return n_dropped_; }
  int32_t n_refits() const { return n_refits_; }

 private:
  int64_t n_picked() const { return static_cast<int64_t>(picks_.size()); }
  void fill_up();
  int64_t pick_step();
  int32_t best_open() const;
  bool resembles_batch(int32_t candidate) const;
  bool append(int32_t candidate);
  bool support(int64_t pick);
  void pursue(int64_t first);
  void refit(double tolerance, int32_t max_sweeps);
  bool solve_from_below();
  bool move_towards(std::span<const double> wanted, bool& has_arrived);
  int64_t best_unsupported() const;
  void solve_in_box(double tolerance, int32_t max_sweeps);
  void update_correlation();
  double relative_residual() const;
  int64_t drop();

  const MassDictionary& dictionary_;
  const OmpOptions& omp_;
  const SolveOptions& options_;
  Stopper& stopper_;
  const kernels::KernelSet& kernels_;
  const int64_t max_rows_;
  std::vector<double> correlation_;  // [c] b - G[:, S] w
  std::vector<State> state_;         // [c]
  std::vector<int32_t> picks_;       // S
  std::vector<double> weights_;      // [S] w
  std::vector<double> residual_;     // [S]
  double last_residual_ = 1;
  ChangingCholesky factor_;       // of the support,
  std::vector<int64_t> support_;  // the picks that have a weight, in the order of the factor
  bool is_boxed_ = false;         // some weight has met max_weight
  int64_t batch_begin_ = 0;       // the first pick since the last refit
  int32_t n_dropped_ = 0, n_refits_ = 0;
};

// The first of those that correlate most, or -1 if none has anything to gain.
int32_t Pursuit::best_open() const {
  int32_t best = -1;
  double highest = 0;
  for (size_t j = 0; j < correlation_.size(); ++j)
    if (state_[j] == State::open && correlation_[j] > highest &&
        correlation_[j] > kMinCorrelation * dictionary_.rhs[j]) {
      highest = correlation_[j];
      best = static_cast<int32_t>(j);
    }
  return best;
}

bool Pursuit::resembles_batch(int32_t candidate) const {
  const Mat<float>& gram = dictionary_.gram;
  for (size_t i = static_cast<size_t>(batch_begin_); i < picks_.size(); ++i) {
    const int32_t other = picks_[i];
    const double scale = std::sqrt(static_cast<double>(gram(candidate, candidate)) * gram(other, other));
    if (gram(candidate, other) > kMaxCosine * scale) return true;
  }
  return false;
}

// Lets a pick have a weight. False if it depends on those that do.
bool Pursuit::support(int64_t pick) {
  const int32_t candidate = picks_[static_cast<size_t>(pick)];
  const float* row = dictionary_.gram.row(candidate);
  std::vector<double> column;
  column.reserve(support_.size());
  for (const int64_t other : support_) column.push_back(row[picks_[static_cast<size_t>(other)]]);
  if (!factor_.append(column, row[candidate], dictionary_.rhs[static_cast<size_t>(candidate)])) return false;
  support_.push_back(pick);
  return true;
}

bool Pursuit::append(int32_t candidate) {
  picks_.push_back(candidate);
  if (!support(n_picked() - 1)) {
    picks_.pop_back();
    return false;
  }
  weights_.push_back(0);
  return true;
}

int64_t Pursuit::pick_step() {
  const int64_t first = n_picked(), n_wanted = std::max(omp_.keys_per_step, 1);
  while (n_picked() < std::min(first + n_wanted, max_rows_) && !stopper_.should_stop()) {
    const int32_t best = best_open();
    if (best < 0) break;
    State& state = state_[static_cast<size_t>(best)];
    if (resembles_batch(best))
      state = State::skipped;
    else
      state = append(best) ? State::picked : State::closed;
    if (state == State::picked) residual_.push_back(last_residual_);
  }
  return n_picked() - first;
}

// Gives each new row the weight that is best while all others stay: matching pursuit.
void Pursuit::pursue(int64_t first) {
  for (int64_t i = first; i < n_picked(); ++i) {
    const int32_t candidate = picks_[static_cast<size_t>(i)];
    const float* row = dictionary_.gram.row(candidate);
    const double wanted = correlation_[static_cast<size_t>(candidate)] / row[candidate];
    const double weight = std::clamp<double>(wanted, 0, omp_.max_weight);
    weights_[static_cast<size_t>(i)] = weight;
    for (size_t j = 0; j < correlation_.size(); ++j) correlation_[j] -= weight * row[j];
  }
}

// Moves the supported weights towards `wanted` until one meets a bound. One that meets 0 loses its support; false
// if one meets max_weight.
bool Pursuit::move_towards(std::span<const double> wanted, bool& has_arrived) {
  double step = 1;
  size_t blocking = support_.size();
  for (size_t i = 0; i < support_.size(); ++i) {
    const double weight = weights_[static_cast<size_t>(support_[i])];
    const double bound = wanted[i] < 0 ? 0.0 : omp_.max_weight;
    if (wanted[i] >= 0 && wanted[i] <= omp_.max_weight) continue;
    const double possible = std::clamp((bound - weight) / (wanted[i] - weight), 0.0, 1.0);
    if (blocking < support_.size() && possible >= step) continue;
    step = possible;
    blocking = i;
  }
  has_arrived = blocking == support_.size();
  for (size_t i = 0; i < support_.size(); ++i) {
    double& weight = weights_[static_cast<size_t>(support_[i])];
    weight =
        has_arrived ? wanted[i] : std::clamp<double>(weight + step * (wanted[i] - weight), 0, omp_.max_weight);
  }
  if (has_arrived) return true;
  if (wanted[blocking] > 0) return false;
  weights_[static_cast<size_t>(support_[blocking])] = 0;
  factor_.remove(static_cast<int64_t>(blocking));
  support_.erase(support_.begin() + static_cast<int64_t>(blocking));
  return true;
}

// The pick without support that has most to gain from a weight, or -1.
int64_t Pursuit::best_unsupported() const {
  std::vector<uint8_t> is_supported(picks_.size(), 0);
  for (const int64_t pick : support_) is_supported[static_cast<size_t>(pick)] = 1;
  int64_t best = -1;
  double highest = 0;
  for (size_t i = 0; i < picks_.size(); ++i) {
    if (is_supported[i] != 0) continue;
    const float* row = dictionary_.gram.row(picks_[i]);
    const double rhs = dictionary_.rhs[static_cast<size_t>(picks_[i])];
    double correlation = rhs;
    for (const int64_t pick : support_)
      correlation -= weights_[static_cast<size_t>(pick)] * row[picks_[static_cast<size_t>(pick)]];
    if (correlation > std::max(highest, kMinCorrelation * rhs)) {
      highest = correlation;
      best = static_cast<int64_t>(i);
    }
  }
  return best;
}

// Least squares with weights of at least 0, by active sets from the weights as they are: exact, and the residual
// never grows. False if a weight met max_weight.
// Source: Lawson, Hanson, "Solving Least Squares Problems", 1974, chapter 23.
bool Pursuit::solve_from_below() {
  std::vector<double> wanted;
  // Each return of a pick lowers the residual, so that no support comes twice; up to rounding, hence the bound.
  for (int32_t n_returns = 0; n_returns <= kMaxReturns;) {
    if (stopper_.should_stop()) return true;
    wanted.resize(support_.size());
    factor_.solve(wanted);
    bool has_arrived = false;
    if (!move_towards(wanted, has_arrived)) return false;
    if (!has_arrived) continue;
    const int64_t returning = best_unsupported();
    if (returning < 0 || !support(returning)) return true;
    ++n_returns;
  }
  return true;
}

// The same with both bounds, once a weight has met max_weight: rare, so that all is set up anew.
void Pursuit::solve_in_box(double tolerance, int32_t max_sweeps) {
  const int64_t n = n_picked();
  Mat<double> gram(n, n);
  std::vector<double> rhs;
  for (int64_t i = 0; i < n; ++i) {
    const int32_t candidate = picks_[static_cast<size_t>(i)];
    for (int64_t j = 0; j < n; ++j) gram(i, j) = dictionary_.gram(candidate, picks_[static_cast<size_t>(j)]);
    rhs.push_back(dictionary_.rhs[static_cast<size_t>(candidate)]);
  }
  const BoxLeastSquares problem{.gram = gram.view(), .rhs = rhs, .lower = 0, .upper = omp_.max_weight};
  const double affordable = kProductsPerCheck / static_cast<double>(std::max<int64_t>(n * n, 1));
  const int32_t n_per_check = static_cast<int32_t>(std::clamp<double>(affordable, 1, max_sweeps));
  for (int32_t n_done = 0; n_done < max_sweeps && !stopper_.should_stop(); n_done += n_per_check)
    if (solve_box_least_squares(problem, tolerance, n_per_check, weights_).kkt_residual <= tolerance) break;
}

void Pursuit::update_correlation() {
  const size_t c = correlation_.size();
  std::vector<float> sums(c);
  correlation_ = dictionary_.rhs;
  for (size_t begin = 0; begin < picks_.size() && !stopper_.should_stop(); begin += kRowsPerFlush) {
    std::fill(sums.begin(), sums.end(), 0.0f);
    const size_t end = std::min(begin + kRowsPerFlush, picks_.size());
    for (size_t i = begin; i < end; ++i)
      if (weights_[i] > 0)
        kernels_.axpy(static_cast<float>(weights_[i]), dictionary_.gram.row(picks_[i]), sums.data(),
                      static_cast<int64_t>(c));
    for (size_t j = 0; j < c; ++j) correlation_[j] -= sums[j];
  }
}

// ‖target − P_S w‖² = ‖target‖² − b·w − w·(b − G w).
double Pursuit::relative_residual() const {
  double square = dictionary_.target_square;
  for (size_t i = 0; i < picks_.size(); ++i) {
    const size_t candidate = static_cast<size_t>(picks_[i]);
    square -= weights_[i] * (dictionary_.rhs[candidate] + correlation_[candidate]);
  }
  return std::sqrt(std::max(square, 0.0) / dictionary_.target_square);
}

void Pursuit::refit(double tolerance, int32_t max_sweeps) {
  if (!is_boxed_) is_boxed_ = !solve_from_below();
  if (is_boxed_) solve_in_box(tolerance, max_sweeps);
  update_correlation();
  if (!stopper_.should_stop())  // else correlations are not complete, and the last residual still holds
    last_residual_ = std::min(last_residual_, relative_residual());  // it may grow by rounding
  if (!residual_.empty()) residual_.back() = last_residual_;
  ++n_refits_;
  batch_begin_ = n_picked();
  for (State& state : state_)
    if (state == State::skipped) state = State::open;
}

// Picks until all rows are there or nothing more can be gained, and solves at the end.
void Pursuit::fill_up() {
  bool is_exhausted = false;
  while (n_picked() < max_rows_ && !is_exhausted && !stopper_.should_stop()) {
    for (int32_t step = 0; step < std::max(omp_.steps_per_refit, 1); ++step) {
      const int64_t n_new = pick_step();
      is_exhausted = n_new == 0 && step == 0;
      if (n_new == 0 || n_picked() == max_rows_) break;
      if (step + 1 < omp_.steps_per_refit) pursue(n_picked() - n_new);
    }
    if (!is_exhausted) refit(kLooseTolerance, kMaxLooseSweeps);
  }
  if (is_boxed_) refit(kTightTolerance, options_.max_nnls_sweeps);
}

// Closes rows that weigh next to nothing; how many there were.
int64_t Pursuit::drop() {
  const std::vector<int32_t> picks = std::move(picks_);
  const std::vector<double> weights = std::move(weights_), residual = std::move(residual_);
  picks_.clear();
  weights_.clear();
  residual_.clear();
  support_.clear();
  factor_.clear();
  for (size_t i = 0; i < picks.size(); ++i) {
    State& state = state_[static_cast<size_t>(picks[i])];
    if (weights[i] <= omp_.min_weight || !append(picks[i])) {
      state = State::closed;
      continue;
    }
    weights_.back() = weights[i];
    residual_.push_back(residual[i]);
  }
  batch_begin_ = n_picked();
  return static_cast<int64_t>(picks.size()) - n_picked();
}

void Pursuit::run() {
  fill_up();
  for (int32_t round = 0; round < kMaxDropRounds && !stopper_.should_stop(); ++round) {
    if (std::none_of(weights_.begin(), weights_.end(), [&](double w) { return w <= omp_.min_weight; })) break;
    n_dropped_ += static_cast<int32_t>(drop());
    last_residual_ = 1;
    refit(kLooseTolerance, kMaxLooseSweeps);
    fill_up();
  }
  // A drop may have raised it.
  for (size_t i = residual_.size(); i-- > 1;) residual_[i - 1] = std::max(residual_[i - 1], residual_[i]);
}

// Adds the best scored rows that are not picked yet; those in `closed` [T] only when nothing else is left.
void fill_by_score(std::span<const float> scores, std::span<const uint8_t> is_closed, size_t n_rows,
                   OmpSelection& selection) {
  std::vector<uint8_t> is_picked(scores.size(), 0);
  for (const int32_t row : selection.picks) is_picked[static_cast<size_t>(row)] = 1;
  std::vector<int32_t> rows;
  for (size_t row = 0; row < scores.size(); ++row)
    if (is_picked[row] == 0 && scores[row] > -std::numeric_limits<float>::infinity())
      rows.push_back(static_cast<int32_t>(row));
  const size_t n_missing = std::min(n_rows - selection.picks.size(), rows.size());
  std::stable_sort(rows.begin(), rows.end(), [&](int32_t a, int32_t b) {
    const size_t i = static_cast<size_t>(a), j = static_cast<size_t>(b);
    return is_closed[i] != is_closed[j] ? is_closed[i] < is_closed[j] : scores[i] > scores[j];
  });
  selection.picks.insert(selection.picks.end(), rows.begin(), rows.begin() + static_cast<int64_t>(n_missing));
  selection.n_by_score = static_cast<int32_t>(n_missing);
}

}  // namespace

OmpSelection select_omp(const HeadProblem& problem, std::span<const float> scores, int64_t n_rows,
                        Weighting weighting, const OmpOptions& omp, const SolveOptions& options,
                        const std::atomic<bool>* cancel, const kernels::KernelSet& kernels) {
  SH_CHECK(static_cast<int64_t>(scores.size()) == problem.keys.rows, "one score a row");
  Stopper stopper(omp.deadline_seconds, cancel);
  std::vector<float> usable_scores(scores.begin(), scores.end());
  const std::vector<uint8_t> is_finite = finite_rows(problem);
  int64_t n_usable = 0;
  for (size_t row = 0; row < scores.size(); ++row) {
    if (is_finite[row] == 0) usable_scores[row] = -std::numeric_limits<float>::infinity();
    n_usable += usable_scores[row] > -std::numeric_limits<float>::infinity() ? 1 : 0;
  }
  OmpSelection selection;
  n_rows = std::clamp<int64_t>(n_rows, 0, n_usable);
  if (n_rows == 0) return selection;

  // No more columns than queries are independent: that many rows are pursued at most.
  const int64_t n_pursued = std::min(n_rows, std::max<int64_t>(problem.queries.rows, 1));
  const int64_t n_candidates =
      std::min<int64_t>(n_pursued * std::max(omp.candidates_per_row, 1), std::max(omp.max_candidates, 1));
  const std::vector<int32_t> candidates = top_rows(usable_scores, n_candidates);
  std::vector<uint8_t> is_closed(scores.size(), 0);
  const MassDictionary dictionary = make_mass_dictionary(
      problem, candidates, weighting, options, [&] { return stopper.should_stop(); }, kernels);
  double residual = stopper.is_stopped() ? 1 : 0;  // nothing known, nothing to restore
  if (dictionary.target_square > 0) {
    Pursuit pursuit(dictionary, n_rows, omp, options, stopper, kernels);
    pursuit.run();
    for (const int32_t candidate : pursuit.picks())
      selection.picks.push_back(candidates[static_cast<size_t>(candidate)]);
    for (size_t j = 0; j < candidates.size(); ++j)
      is_closed[static_cast<size_t>(candidates[j])] = pursuit.is_open(j) ? 0 : 1;
    selection.residual = pursuit.residual();
    selection.n_dropped = pursuit.n_dropped();
    selection.n_refits = pursuit.n_refits();
    residual = selection.residual.empty() ? 1 : selection.residual.back();
  }
  fill_by_score(usable_scores, is_closed, static_cast<size_t>(n_rows), selection);
  selection.residual.resize(selection.picks.size(), residual);
  selection.hit_deadline = stopper.hit_deadline();
  return selection;
}

}  // namespace sh::compaction
