// SPDX-License-Identifier: MIT
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "base/mat_view.h"
#include "compaction/problem.h"

namespace sh::compaction {

/// What a problem borrows, where its source has to make it; one a worker, used again from head to head.
struct HeadStorage {
  Mat<float> keys, values, queries, out;
  std::vector<float> bias, lse;
  std::vector<int32_t> pos, query_pos, asker;
  std::unique_ptr<RowReader> reader;
};

/// Gives one head's problem at a time, so that a solve holds as many decoded heads as it has threads, not all.
class ProblemSource {
 public:
  virtual ~ProblemSource() = default;
  virtual int64_t n_heads() const = 0;
  virtual int64_t n_rows(int64_t head) const = 0;  // of the region
  virtual int64_t n_fixed_rows(int64_t head) const = 0;
  /// Valid until `storage` is used again.
  /// Threads: several at once, each with storage of its own.
  virtual HeadProblem load(int64_t head, HeadStorage& storage) const = 0;
  /// The same problem for passes over stretches of its rows, perhaps with a reader in place of keys and values.
  virtual HeadProblem load_to_stream(int64_t head, HeadStorage& storage) const { return load(head, storage); }
  /// The same problem with some of its region rows only (increasing), which is all that is read.
  virtual HeadProblem load_rows(int64_t head, std::span<const int32_t> rows, HeadStorage& storage) const = 0;
};

/// The problem with some of its region rows only, copied into `storage`.
HeadProblem gather_rows(const HeadProblem& problem, std::span<const int32_t> rows, HeadStorage& storage);

/// Problems that lie ready.
class ProblemList final : public ProblemSource {
 public:
  explicit ProblemList(std::span<const HeadProblem> problems) : problems_(problems) {}
  int64_t n_heads() const override { return static_cast<int64_t>(problems_.size()); }
  int64_t n_rows(int64_t head) const override { return problems_[static_cast<size_t>(head)].keys.rows; }
  int64_t n_fixed_rows(int64_t head) const override { return problems_[static_cast<size_t>(head)].n_fixed_rows; }
  HeadProblem load(int64_t head, HeadStorage&) const override { return problems_[static_cast<size_t>(head)]; }
  HeadProblem load_rows(int64_t head, std::span<const int32_t> rows, HeadStorage& storage) const override {
    return gather_rows(problems_[static_cast<size_t>(head)], rows, storage);
  }

 private:
  std::span<const HeadProblem> problems_;
};

}  // namespace sh::compaction
