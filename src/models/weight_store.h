// SPDX-License-Identifier: MIT
// Where a model's weights lie: in its file, or repacked in memory of their own.
#pragma once

#include <cstdint>
#include <memory>

#include "base/result.h"
#include "base/thread_pool.h"
#include "gguf/gguf.h"
#include "kernels/kernel_set.h"
#include "ops/ops.h"

namespace sh::models {

/// A file and the memory that its matrices are repacked into. Copies share both and keep them alive.
class WeightStore {
 public:
  /// Matrices stay where the file has them.
  explicit WeightStore(const gguf::File& file);
  /// From here on place() gives the matrices whose format `kernels` multiplies packed a place of their own.
  /// Address space only: memory comes as pack() writes it. Errors: out_of_memory.
  Result<void> reserve_packed(const kernels::KernelSet& kernels);

  const gguf::File& file() const;
  /// The tensor as a weight. A packed one must not be read before pack().
  /// Needs: the tensor has the shape [n_in, n_out, n_stack].
  ops::Weight place(const gguf::TensorInfo& tensor, int64_t n_in, int64_t n_out, int64_t n_stack);
  /// Fills the packed matrices, the same bytes for any number of threads, and lets the file's pages go one matrix
  /// after the other, so that the process never holds much more than the file's size.
  void pack(ThreadPool& pool);

 private:
  struct State;
  std::shared_ptr<State> state_;
};

}  // namespace sh::models
