// SPDX-License-Identifier: MIT
#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <limits>

#include "base/check.h"
#include "base/mapped_file.h"
#include "gguf/gguf.h"
#include "gguf/wire.h"

namespace sh::gguf {

namespace {
uint64_t align_up(uint64_t n, uint64_t alignment) {
  return (n + alignment - 1) / alignment * alignment;
}

class Output {
 public:
  template <typename T>
  void number(T value) {
    append(&value, sizeof value);
  }
  void string(const std::string& text) {
    number<uint64_t>(text.size());
    append(text.data(), text.size());
  }
  void append(const void* data, size_t n_bytes) {
    if (n_bytes == 0) return;
    const size_t at = bytes_.size();
    bytes_.resize(at + n_bytes);
    std::memcpy(bytes_.data() + at, data, n_bytes);
  }
  void pad_to(uint64_t alignment) { bytes_.resize(align_up(bytes_.size(), alignment)); }
  void reserve_more(size_t n_bytes) { bytes_.reserve(bytes_.size() + n_bytes); }
  std::vector<std::byte> take() { return std::move(bytes_); }

 private:
  std::vector<std::byte> bytes_;
};

template <typename T>
bool fits(int64_t value) {
  return value >= std::numeric_limits<T>::min() && value <= std::numeric_limits<T>::max();
}
bool fits_f32(double value) {
  return std::isnan(value) || static_cast<double>(static_cast<float>(value)) == value;
}

/// The type that readers expect: u32 where it holds the value, as nearly all keys are defined, u16 for a split's
/// numbers.
Wire wire_of_int(const std::string& key, int64_t value) {
  if ((key == "split.no" || key == "split.count") && fits<uint16_t>(value)) return Wire::u16;
  if (key == "split.tensors.count" && fits<int32_t>(value)) return Wire::i32;
  if (fits<uint32_t>(value)) return Wire::u32;
  return fits<int32_t>(value) ? Wire::i32 : Wire::i64;
}

void write_int(Output& out, Wire type, int64_t value) {
  if (type == Wire::u16) return out.number(static_cast<uint16_t>(value));
  if (type == Wire::u32 || type == Wire::i32) return out.number(static_cast<uint32_t>(value));
  out.number(value);
}

void write_array_head(Output& out, Wire type, size_t n) {
  out.number(type);
  out.number<uint64_t>(n);
}

void write_items(Output& out, const std::vector<bool>& items) {
  write_array_head(out, Wire::boolean, items.size());
  for (const bool item : items) out.number<uint8_t>(item);
}
void write_items(Output& out, const std::vector<int64_t>& items) {
  const Wire type = std::all_of(items.begin(), items.end(), fits<int32_t>) ? Wire::i32 : Wire::i64;
  write_array_head(out, type, items.size());
  for (const int64_t item : items) write_int(out, type, item);
}
void write_items(Output& out, const std::vector<double>& items) {
  const bool narrow = std::all_of(items.begin(), items.end(), fits_f32);
  write_array_head(out, narrow ? Wire::f32 : Wire::f64, items.size());
  for (const double item : items) narrow ? out.number(static_cast<float>(item)) : out.number(item);
}
void write_items(Output& out, const std::vector<std::string>& items) {
  write_array_head(out, Wire::string, items.size());
  for (const std::string& item : items) out.string(item);
}

void write_value(Output& out, const std::string& key, const Value& value) {
  if (const bool* flag = std::get_if<bool>(&value)) {
    out.number(Wire::boolean);
    out.number<uint8_t>(*flag);
  } else if (const int64_t* integer = std::get_if<int64_t>(&value)) {
    const Wire type = wire_of_int(key, *integer);
    out.number(type);
    write_int(out, type, *integer);
  } else if (const uint64_t* large = std::get_if<uint64_t>(&value)) {
    out.number(Wire::u64);
    out.number(*large);
  } else if (const double* real = std::get_if<double>(&value)) {
    const bool narrow = fits_f32(*real);
    out.number(narrow ? Wire::f32 : Wire::f64);
    narrow ? out.number(static_cast<float>(*real)) : out.number(*real);
  } else if (const std::string* text = std::get_if<std::string>(&value)) {
    out.number(Wire::string);
    out.string(*text);
  } else {
    out.number(Wire::array);
    std::visit([&](const auto& items) { write_items(out, items); }, std::get<Array>(value).items);
  }
}

}  // namespace

void Writer::set(const std::string& key, Value value) {
  SH_CHECK(!key.empty() && key.size() <= kMaxKeyBytes, "a metadata key has 1 to 65535 bytes");
  metadata_[key] = std::move(value);
}

void Writer::add_tensor(const std::string& name, DType dtype, std::vector<int64_t> shape,
                        std::span<const std::byte> data) {
  SH_CHECK(!name.empty() && !shape.empty() && shape.size() <= kMaxDims,
           "a tensor has a name and 1 to 4 dimensions");
  int64_t n_rows = 1;
  for (size_t i = 1; i < shape.size(); ++i) n_rows *= shape[i];
  SH_CHECK(static_cast<int64_t>(data.size()) == row_bytes(dtype, shape[0]) * n_rows,
           "the data of a tensor must fit its format and shape");
  tensors_.push_back({name, dtype, std::move(shape), data});
}

std::vector<std::byte> Writer::to_bytes() const {
  uint64_t alignment = kDefaultAlignment;
  if (const auto found = metadata_.find(kAlignmentKey); found != metadata_.end()) {
    const int64_t* value = std::get_if<int64_t>(&found->second);
    SH_CHECK(value != nullptr && *value > 0 && std::has_single_bit(static_cast<uint64_t>(*value)),
             "general.alignment must be a power of two");
    alignment = static_cast<uint64_t>(*value);
  }
  Output out;
  out.append(kMagic, 4);
  out.number(kVersion);
  out.number<uint64_t>(tensors_.size());
  out.number<uint64_t>(metadata_.size());
  for (const auto& [key, value] : metadata_) {
    out.string(key);
    write_value(out, key, value);
  }
  uint64_t offset = 0;
  for (const Tensor& tensor : tensors_) {
    out.string(tensor.name);
    out.number(static_cast<uint32_t>(tensor.shape.size()));
    for (const int64_t dim : tensor.shape) out.number(dim);
    out.number(static_cast<uint32_t>(tensor.dtype));
    out.number(offset);
    offset = align_up(offset + tensor.data.size(), alignment);
  }
  out.pad_to(alignment);
  out.reserve_more(offset);
  for (const Tensor& tensor : tensors_) {
    out.append(tensor.data.data(), tensor.data.size());
    out.pad_to(alignment);
  }
  return out.take();
}

Result<void> Writer::write(const std::string& path) const {
  return write_file(path, to_bytes());
}

}  // namespace sh::gguf
