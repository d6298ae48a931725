// SPDX-License-Identifier: MIT
// GGUF version 3: parse with every count, offset, type and alignment checked against the file's size before use; write.
// Source:  GGUF specification, version 3 (ggml-org/ggml, docs/gguf.md).
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "base/result.h"
#include "tensor/dtype.h"

namespace sh::gguf {

/// Integers of every width are held as int64_t (uint64_t only above INT64_MAX), both floats as double.
using Scalar = std::variant<bool, int64_t, uint64_t, double, std::string>;
struct Array {
  std::variant<std::vector<bool>, std::vector<int64_t>, std::vector<double>, std::vector<std::string>> items;
};
using Value = std::variant<bool, int64_t, uint64_t, double, std::string, Array>;

struct TensorInfo {
  std::string name;
  DType dtype;
  std::vector<int64_t> shape;        // innermost (contiguous) dimension first, 1 to 4 of them, as in the file
  std::span<const std::byte> data;   // inside the mapped file

  int64_t n_elements() const;
  /// "[256, 2048] q4_K"
  std::string describe() const;
};

/// A parsed model file: metadata and tensors, of all parts if it is split. Owns the mappings that `data` points into.
class File {
 public:
  /// Opens `path`; a name ending -00001-of-0000N.gguf opens the other parts too.
  /// Errors: not_found, io, corrupt (what, at which byte, expected, got), unsupported (version, big endian, tensor format).
  static Result<File> open(const std::string& path);
  /// Parses bytes that stay alive as long as the File. `name` is used in messages.
  static Result<File> parse(std::span<const std::byte> bytes, const std::string& name);

  const std::string& path() const;
  const std::map<std::string, Value>& metadata() const;
  std::span<const TensorInfo> tensors() const;
  const TensorInfo* find_tensor(std::string_view name) const;
  int64_t total_tensor_bytes() const;
  /// The tensor's pages leave the process until they are read again: for data that has been copied elsewhere.
  void release(const TensorInfo& tensor) const;

  // Typed access. find_*: nothing if the key is absent, an Error if it has another type. require_*: absent is an Error too.
  bool has(std::string_view key) const;
  Result<std::optional<int64_t>> find_int(std::string_view key) const;
  Result<std::optional<double>> find_float(std::string_view key) const;
  Result<std::optional<bool>> find_bool(std::string_view key) const;
  Result<std::optional<std::string>> find_string(std::string_view key) const;
  Result<int64_t> require_int(std::string_view key) const;
  Result<double> require_float(std::string_view key) const;
  Result<std::string> require_string(std::string_view key) const;
  /// Arrays; absent gives nothing. An integer array may hold any integer width (or bool).
  Result<std::optional<std::vector<int64_t>>> find_int_array(std::string_view key) const;
  Result<std::optional<std::vector<double>>> find_float_array(std::string_view key) const;
  Result<std::optional<std::vector<std::string>>> find_string_array(std::string_view key) const;

 private:
  struct Parts;
  std::shared_ptr<const Parts> parts_;  // shared: a File is copied into the model that keeps the mapping alive
};

/// Builds a file. Tensors are written in the order given, aligned to `general.alignment` (32 unless set).
class Writer {
 public:
  void set(const std::string& key, Value value);
  /// `data` must stay alive until write(). Needs: its size matches dtype and shape.
  void add_tensor(const std::string& name, DType dtype, std::vector<int64_t> shape, std::span<const std::byte> data);
  /// The bytes of the whole file.
  std::vector<std::byte> to_bytes() const;
  Result<void> write(const std::string& path) const;

 private:
  struct Tensor {
    std::string name;
    DType dtype;
    std::vector<int64_t> shape;
    std::span<const std::byte> data;
  };
  std::map<std::string, Value> metadata_;
  std::vector<Tensor> tensors_;
};

}  // namespace sh::gguf
