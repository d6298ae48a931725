// SPDX-License-Identifier: MIT
// Binding of tensors: each is claimed by name with the shape that the hyperparameters imply, and every tensor of
// the file is claimed.
#pragma once

#include <cstdint>
#include <set>
#include <string>
#include <vector>

#include "base/result.h"
#include "gguf/gguf.h"
#include "models/weight_store.h"
#include "ops/ops.h"

namespace sh::models {

/// A norm weight, bias or table of divisors, copied to f32; empty when the file has none.
using Vector = std::vector<float>;
/// What an operation takes for it: null when empty.
inline const float* data_or_null(const Vector& v) {
  return v.empty() ? nullptr : v.data();
}

/// Claims tensors one by one.
/// Errors: corrupt, naming the tensor, the shape that was wanted and what the file has.
class TensorBinder {
 public:
  explicit TensorBinder(WeightStore& store) : store_(store) {}

  /// [n_in, n_out] in any format, to be multiplied.
  Result<ops::Weight> matrix(const std::string& name, int64_t n_in, int64_t n_out);
  /// [n_in, n_out] in any format, whose rows are looked up only: it stays in the file.
  Result<ops::Weight> table(const std::string& name, int64_t n_in, int64_t n_out);
  /// [n_in, n_out, n_stack] in any format.
  Result<ops::Weight> stack(const std::string& name, int64_t n_in, int64_t n_out, int64_t n_stack);
  /// [n] in f32, f16 or bf16.
  Result<Vector> vector(const std::string& name, int64_t n);
  // The same, empty when the file has no such tensor.
  Result<ops::Weight> optional_matrix(const std::string& name, int64_t n_in, int64_t n_out);
  Result<Vector> optional_vector(const std::string& name, int64_t n);

  bool has(const std::string& name) const { return store_.file().find_tensor(name) != nullptr; }
  /// Errors: unsupported, naming the tensors that nobody claimed: something in the file would be ignored.
  Result<void> finish() const;

 private:
  Result<const gguf::TensorInfo*> claim(const std::string& name, const std::vector<int64_t>& shape);
  WeightStore& store_;
  std::set<std::string> claimed_;
};

}  // namespace sh::models
