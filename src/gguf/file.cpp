// SPDX-License-Identifier: MIT
#include <fmt/format.h>

#include <unordered_map>

#include "base/mapped_file.h"
#include "gguf/gguf.h"
#include "gguf/parse.h"
#include "gguf/split.h"

namespace sh::gguf {

struct File::Parts {
  std::string path;
  std::vector<MappedFile> mappings;  // empty after parse()
  std::map<std::string, Value> metadata;
  std::vector<TensorInfo> tensors;
  std::unordered_map<std::string_view, const TensorInfo*> by_name;  // into tensors, which does not grow any more
  int64_t n_tensor_bytes = 0;

  /// Errors: corrupt if two parts hold a tensor of the same name.
  Result<void> index_tensors() {
    by_name.reserve(tensors.size());
    for (const TensorInfo& tensor : tensors) {
      if (!by_name.emplace(tensor.name, &tensor).second)
        return Error{ErrorKind::corrupt,
                     fmt::format("'{}': tensor {} is in two parts of the split model", path, quoted(tensor.name))};
      n_tensor_bytes += static_cast<int64_t>(tensor.data.size());
    }
    return {};
  }
};

namespace {
constexpr char kSplitNo[] = "split.no";
constexpr char kSplitCount[] = "split.count";
constexpr char kSplitTensors[] = "split.tensors.count";

std::optional<int64_t> integer_of(const std::map<std::string, Value>& metadata, const char* key) {
  const auto found = metadata.find(key);
  if (found == metadata.end()) return std::nullopt;
  const int64_t* value = std::get_if<int64_t>(&found->second);
  return value == nullptr ? std::nullopt : std::optional(*value);
}

Result<void> expect_integer(const std::string& path, const std::map<std::string, Value>& metadata, const char* key,
                            int64_t expected) {
  const std::optional<int64_t> value = integer_of(metadata, key);
  if (value == expected) return {};
  return Error{ErrorKind::corrupt, fmt::format("'{}': key '{}': expected {}, got {}", path, key, expected,
                                               value ? std::to_string(*value) : "no integer")};
}

/// How many files the model has, from its name and its metadata, which must agree.
Result<int> count_parts(const std::string& path, const std::map<std::string, Value>& metadata) {
  const std::optional<SplitName> name = parse_split_name(path);
  const std::optional<int64_t> count = integer_of(metadata, kSplitCount);
  if (count.value_or(1) <= 1 && (!name || name->n_parts == 1)) return 1;
  if (!name)
    return Error{ErrorKind::invalid_argument,
                 fmt::format("'{}' is one part of a model split into {} files; its name must end in "
                             "-00001-of-{:05}.gguf so that the others can be found",
                             path, *count, *count)};
  if (count != name->n_parts)
    return Error{ErrorKind::corrupt,
                 fmt::format("'{}': the name says {} parts, key '{}' says {}", path, name->n_parts, kSplitCount,
                             count ? std::to_string(*count) : "nothing")};
  if (name->part != 1)
    return Error{ErrorKind::invalid_argument,
                 fmt::format("'{}' is part {} of {}; open the first part, '{}'", path, name->part, name->n_parts,
                             split_path(name->prefix, 1, name->n_parts))};
  return name->n_parts;
}

template <typename T>
const char* type_name() {
  if constexpr (std::is_same_v<T, bool>) return "a bool";
  if constexpr (std::is_same_v<T, int64_t>) return "an integer";
  if constexpr (std::is_same_v<T, uint64_t>) return "an integer above 2^63 - 1";
  if constexpr (std::is_same_v<T, double>) return "a float";
  if constexpr (std::is_same_v<T, std::string>) return "a string";
  if constexpr (std::is_same_v<T, std::vector<bool>>) return "an array of bools";
  if constexpr (std::is_same_v<T, std::vector<int64_t>>) return "an array of integers";
  if constexpr (std::is_same_v<T, std::vector<double>>) return "an array of floats";
  if constexpr (std::is_same_v<T, std::vector<std::string>>) return "an array of strings";
}

const char* type_name_of(const Value& value) {
  return std::visit(
      [](const auto& held) {
        using T = std::decay_t<decltype(held)>;
        if constexpr (std::is_same_v<T, Array>)
          return std::visit([](const auto& items) { return type_name<std::decay_t<decltype(items)>>(); },
                            held.items);
        else
          return type_name<T>();
      },
      value);
}

template <typename T>
Error wrong_type(const std::string& path, std::string_view key, const Value& value) {
  return {ErrorKind::corrupt, fmt::format("'{}': key {}: expected {}, got {}", path, quoted(key), type_name<T>(),
                                          type_name_of(value))};
}

const Value* find(const std::map<std::string, Value>& metadata, std::string_view key) {
  const auto found = metadata.find(std::string(key));
  return found == metadata.end() ? nullptr : &found->second;
}

template <typename T>
Result<std::optional<T>> find_scalar(const File& file, std::string_view key) {
  const Value* value = find(file.metadata(), key);
  if (value == nullptr) return std::optional<T>();
  const T* held = std::get_if<T>(value);
  if (held == nullptr) return wrong_type<T>(file.path(), key, *value);
  return std::optional<T>(*held);
}

/// An empty array has no elements of a wrong type.
bool is_empty(const Array& array) {
  return std::visit([](const auto& items) { return items.empty(); }, array.items);
}

template <typename T>
Result<std::optional<std::vector<T>>> find_array(const File& file, std::string_view key) {
  using Items = std::vector<T>;
  const Value* value = find(file.metadata(), key);
  if (value == nullptr) return std::optional<Items>();
  const Array* array = std::get_if<Array>(value);
  if (array == nullptr) return wrong_type<Items>(file.path(), key, *value);
  if (is_empty(*array)) return std::optional<Items>(Items());
  const Items* items = std::get_if<Items>(&array->items);
  if (items == nullptr) return wrong_type<Items>(file.path(), key, *value);
  return std::optional<Items>(*items);
}

template <typename T>
Result<T> required(const File& file, std::string_view key, Result<std::optional<T>> found) {
  if (!found) return found.error();
  if (!found->has_value())
    return Error{ErrorKind::not_found,
                 fmt::format("'{}': key {} is missing, expected {}", file.path(), quoted(key), type_name<T>())};
  return std::move(**found);
}
}  // namespace

int64_t TensorInfo::n_elements() const {
  int64_t n = 1;
  for (const int64_t dim : shape) n *= dim;
  return n;
}

std::string TensorInfo::describe() const {
  std::string text = "[";
  for (const int64_t dim : shape) text += (text.size() > 1 ? ", " : "") + std::to_string(dim);
  return text + "] " + tensor_format(dtype).name;
}

Result<File> File::open(const std::string& path) {
  auto parts = std::make_shared<Parts>();
  parts->path = path;
  SH_ASSIGN(MappedFile first, MappedFile::open(path));
  SH_ASSIGN(ParsedPart parsed, parse_part(first.bytes(), path));
  SH_ASSIGN(const int n_parts, count_parts(path, parsed.metadata));
  parts->mappings.push_back(std::move(first));
  parts->metadata = std::move(parsed.metadata);
  parts->tensors = std::move(parsed.tensors);
  if (n_parts > 1) {
    const std::string prefix = parse_split_name(path)->prefix;
    SH_RETURN_IF_ERROR(expect_integer(path, parts->metadata, kSplitNo, 0));
    for (int part = 2; part <= n_parts; ++part) {
      const std::string part_path = split_path(prefix, part, n_parts);
      Result<MappedFile> mapping = MappedFile::open(part_path);
      if (!mapping)
        return Error{mapping.error().kind, fmt::format("part {} of {} of the split model is missing: {}", part,
                                                       n_parts, mapping.error().message)};
      SH_ASSIGN(ParsedPart next, parse_part(mapping->bytes(), part_path));
      SH_RETURN_IF_ERROR(expect_integer(part_path, next.metadata, kSplitNo, part - 1));
      SH_RETURN_IF_ERROR(expect_integer(part_path, next.metadata, kSplitCount, n_parts));
      parts->mappings.push_back(std::move(*mapping));
      parts->tensors.insert(parts->tensors.end(), std::make_move_iterator(next.tensors.begin()),
                            std::make_move_iterator(next.tensors.end()));
    }
    const std::optional<int64_t> n_tensors = integer_of(parts->metadata, kSplitTensors);
    if (n_tensors != static_cast<int64_t>(parts->tensors.size()))
      return Error{ErrorKind::corrupt,
                   fmt::format("'{}': key '{}' says {}, but the parts hold {} tensors", path, kSplitTensors,
                               n_tensors ? std::to_string(*n_tensors) : "nothing", parts->tensors.size())};
  }
  SH_RETURN_IF_ERROR(parts->index_tensors());
  File file;
  file.parts_ = std::move(parts);
  return file;
}

Result<File> File::parse(std::span<const std::byte> bytes, const std::string& name) {
  auto parts = std::make_shared<Parts>();
  parts->path = name;
  SH_ASSIGN(ParsedPart parsed, parse_part(bytes, name));
  parts->metadata = std::move(parsed.metadata);
  parts->tensors = std::move(parsed.tensors);
  SH_RETURN_IF_ERROR(parts->index_tensors());
  File file;
  file.parts_ = std::move(parts);
  return file;
}

const std::string& File::path() const {
  return parts_->path;
}
const std::map<std::string, Value>& File::metadata() const {
  return parts_->metadata;
}
std::span<const TensorInfo> File::tensors() const {
  return parts_->tensors;
}
int64_t File::total_tensor_bytes() const {
  return parts_->n_tensor_bytes;
}

void File::release(const TensorInfo& tensor) const {
  for (const MappedFile& mapping : parts_->mappings) mapping.release(tensor.data);
}

const TensorInfo* File::find_tensor(std::string_view name) const {
  const auto found = parts_->by_name.find(name);
  return found == parts_->by_name.end() ? nullptr : found->second;
}

bool File::has(std::string_view key) const {
  return find(metadata(), key) != nullptr;
}

Result<std::optional<int64_t>> File::find_int(std::string_view key) const {
  return find_scalar<int64_t>(*this, key);
}
Result<std::optional<double>> File::find_float(std::string_view key) const {
  return find_scalar<double>(*this, key);
}
Result<std::optional<bool>> File::find_bool(std::string_view key) const {
  return find_scalar<bool>(*this, key);
}
Result<std::optional<std::string>> File::find_string(std::string_view key) const {
  return find_scalar<std::string>(*this, key);
}

Result<int64_t> File::require_int(std::string_view key) const {
  return required<int64_t>(*this, key, find_int(key));
}
Result<double> File::require_float(std::string_view key) const {
  return required<double>(*this, key, find_float(key));
}
Result<std::string> File::require_string(std::string_view key) const {
  return required<std::string>(*this, key, find_string(key));
}

Result<std::optional<std::vector<int64_t>>> File::find_int_array(std::string_view key) const {
  const Value* value = find(metadata(), key);
  const Array* array = value == nullptr ? nullptr : std::get_if<Array>(value);
  const auto* bools = array == nullptr ? nullptr : std::get_if<std::vector<bool>>(&array->items);
  if (bools != nullptr) return std::optional(std::vector<int64_t>(bools->begin(), bools->end()));
  return find_array<int64_t>(*this, key);
}
Result<std::optional<std::vector<double>>> File::find_float_array(std::string_view key) const {
  return find_array<double>(*this, key);
}
Result<std::optional<std::vector<std::string>>> File::find_string_array(std::string_view key) const {
  return find_array<std::string>(*this, key);
}

}  // namespace sh::gguf
