// SPDX-License-Identifier: MIT
#include "models/weights.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

namespace sh::models {

namespace {

/// GGUF writers drop or keep outer dimensions of 1 as they like.
std::vector<int64_t> without_trailing_ones(std::vector<int64_t> shape) {
  while (shape.size() > 1 && shape.back() == 1) shape.pop_back();
  return shape;
}

}  // namespace

Result<const gguf::TensorInfo*> TensorBinder::claim(const std::string& name, const std::vector<int64_t>& shape) {
  const gguf::TensorInfo* tensor = store_.file().find_tensor(name);
  if (tensor == nullptr)
    return Error{ErrorKind::corrupt,
                 fmt::format("tensor {} is missing; expected shape [{}]", name, fmt::join(shape, ", "))};
  if (without_trailing_ones(tensor->shape) != without_trailing_ones(shape))
    return Error{ErrorKind::corrupt, fmt::format("tensor {}: expected shape [{}], got {}", name,
                                                 fmt::join(shape, ", "), tensor->describe())};
  // Kernels read elements of up to 4 bytes in place; every writer aligns to 32.
  if (reinterpret_cast<uintptr_t>(tensor->data.data()) % alignof(float) != 0)
    return Error{ErrorKind::corrupt,
                 fmt::format("tensor {}: its data is not aligned to {} bytes", name, alignof(float))};
  claimed_.insert(name);
  return tensor;
}

Result<ops::Weight> TensorBinder::stack(const std::string& name, int64_t n_in, int64_t n_out, int64_t n_stack) {
  SH_ASSIGN(const gguf::TensorInfo* tensor, claim(name, {n_in, n_out, n_stack}));
  return store_.place(*tensor, n_in, n_out, n_stack);
}

Result<ops::Weight> TensorBinder::matrix(const std::string& name, int64_t n_in, int64_t n_out) {
  SH_ASSIGN(const gguf::TensorInfo* tensor, claim(name, {n_in, n_out}));
  return store_.place(*tensor, n_in, n_out, 1);
}

Result<ops::Weight> TensorBinder::table(const std::string& name, int64_t n_in, int64_t n_out) {
  SH_ASSIGN(const gguf::TensorInfo* tensor, claim(name, {n_in, n_out}));
  return ops::Weight{.dtype = tensor->dtype, .data = tensor->data.data(), .n_in = n_in, .n_out = n_out};
}

Result<Vector> TensorBinder::vector(const std::string& name, int64_t n) {
  SH_ASSIGN(const gguf::TensorInfo* tensor, claim(name, {n}));
  if (tensor->dtype != DType::f32 && tensor->dtype != DType::f16 && tensor->dtype != DType::bf16)
    return Error{ErrorKind::unsupported,
                 fmt::format("tensor {}: expected f32, f16 or bf16, got {}", name, tensor->describe())};
  Vector values(static_cast<size_t>(n));
  tensor_format(tensor->dtype).dequantize(tensor->data.data(), n, values.data());
  return values;
}

Result<ops::Weight> TensorBinder::optional_matrix(const std::string& name, int64_t n_in, int64_t n_out) {
  if (!has(name)) return ops::Weight{};
  return matrix(name, n_in, n_out);
}

Result<Vector> TensorBinder::optional_vector(const std::string& name, int64_t n) {
  if (!has(name)) return Vector{};
  return vector(name, n);
}

Result<void> TensorBinder::finish() const {
  constexpr size_t kShown = 8;
  std::string names;
  size_t n_unclaimed = 0;
  for (const gguf::TensorInfo& tensor : store_.file().tensors()) {
    if (claimed_.contains(tensor.name)) continue;
    if (++n_unclaimed <= kShown)
      names += fmt::format("{}{} {}", names.empty() ? "" : ", ", tensor.name, tensor.describe());
  }
  if (n_unclaimed == 0) return {};
  return Error{ErrorKind::unsupported,
               fmt::format("the architecture does not use {} tensor(s) of the file: {}{}; running without them "
                           "would give wrong answers",
                           n_unclaimed, names, n_unclaimed > kShown ? ", ..." : "")};
}

}  // namespace sh::models
