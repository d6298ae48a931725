// SPDX-License-Identifier: MIT
#include "gguf/parse.h"

#include <fmt/format.h>

#include <algorithm>
#include <bit>
#include <cstring>
#include <limits>
#include <set>

#include "gguf/wire.h"

namespace sh::gguf {

std::string quoted(std::string_view name) {
  std::string text = "'";
  for (const char c : name.substr(0, 80)) {
    if (c >= 0x20 && c < 0x7F)
      text += c;
    else
      text += fmt::format("\\x{:02x}", static_cast<unsigned char>(c));
  }
  return text + (name.size() > 80 ? "…'" : "'");
}

namespace {
constexpr uint64_t kInt64Max = static_cast<uint64_t>(std::numeric_limits<int64_t>::max());

// Fewest bytes that an entry can take, to bound the counts of the header.
constexpr uint64_t kMinKeyValueBytes = 8 + 1 + 4 + 1;            // key length, key, type, value
constexpr uint64_t kMinTensorInfoBytes = 8 + 1 + 4 + 8 + 4 + 8;  // name length, name, rank, dim, format, offset

/// Bytes of one value of a type, zero for strings and arrays, which carry their own length.
size_t fixed_size(Wire type) {
  switch (type) {
    case Wire::u8:
    case Wire::i8:
    case Wire::boolean:
      return 1;
    case Wire::u16:
    case Wire::i16:
      return 2;
    case Wire::u32:
    case Wire::i32:
    case Wire::f32:
      return 4;
    case Wire::u64:
    case Wire::i64:
    case Wire::f64:
      return 8;
    case Wire::string:
    case Wire::array:
      return 0;
  }
  return 0;
}

template <typename T>
T load(const std::byte* from) {
  T value;
  std::memcpy(&value, from, sizeof(T));
  return value;
}

/// The bytes not read yet, and what to say when they do not suffice.
class Cursor {
 public:
  Cursor(std::span<const std::byte> bytes, const std::string& file_name) : bytes_(bytes), file_name_(file_name) {}

  size_t at() const { return at_; }
  size_t left() const { return bytes_.size() - at_; }
  /// What is being read, named in messages: " key 'general.name',".
  void set_subject(std::string subject) { subject_ = std::move(subject); }

  Error error(ErrorKind kind, std::string_view what) const {
    return {kind, fmt::format("'{}', byte {}:{} {}", file_name_, at_, subject_, what)};
  }
  Error corrupt(std::string_view what) const { return error(ErrorKind::corrupt, what); }

  Result<const std::byte*> take(uint64_t n_bytes, const char* what) {
    if (n_bytes > left())
      return corrupt(fmt::format("the file is cut short: {} needs {} bytes, {} are left", what, n_bytes, left()));
    const std::byte* start = bytes_.data() + at_;
    at_ += n_bytes;
    return start;
  }
  template <typename T>
  Result<T> number(const char* what) {
    SH_ASSIGN(const std::byte* start, take(sizeof(T), what));
    return load<T>(start);
  }
  Result<std::string> string(const char* what) {
    SH_ASSIGN(const uint64_t n_bytes, number<uint64_t>(what));
    SH_ASSIGN(const std::byte* start, take(n_bytes, what));
    return std::string(reinterpret_cast<const char*>(start), n_bytes);
  }

 private:
  std::span<const std::byte> bytes_;
  const std::string& file_name_;
  size_t at_ = 0;
  std::string subject_;
};

Result<uint64_t> header_count(Cursor& in, const char* what, uint64_t min_bytes) {
  SH_ASSIGN(const uint64_t count, in.number<uint64_t>(what));
  if (count > in.left() / min_bytes)
    return in.corrupt(fmt::format("{} is {}, but the {} bytes left hold at most {}", what, count, in.left(),
                                  in.left() / min_bytes));
  return count;
}

struct Header {
  uint64_t n_tensors, n_key_values;
};

Result<Header> read_header(Cursor& in) {
  SH_ASSIGN(const std::byte* magic, in.take(4, "the magic number"));
  if (std::memcmp(magic, kMagic, 4) != 0) {
    const std::string_view found(reinterpret_cast<const char*>(magic), 4);
    return in.corrupt(fmt::format("not a GGUF file: expected the magic number 'GGUF', got {}", quoted(found)));
  }
  SH_ASSIGN(const uint32_t version, in.number<uint32_t>("the version"));
  if (version == __builtin_bswap32(kVersion))
    return in.error(ErrorKind::unsupported, "a big-endian GGUF file; only little-endian ones are read");
  if (version != kVersion)
    return in.error(ErrorKind::unsupported,
                    fmt::format("GGUF version {}, but only version {} is read; convert the "
                                "model again with a current converter",
                                version, kVersion));
  SH_ASSIGN(const uint64_t n_tensors, header_count(in, "the number of tensors", kMinTensorInfoBytes));
  SH_ASSIGN(const uint64_t n_key_values, header_count(in, "the number of metadata keys", kMinKeyValueBytes));
  return Header{n_tensors, n_key_values};
}

Result<Wire> read_wire_type(Cursor& in, const char* what) {
  SH_ASSIGN(const uint32_t type, in.number<uint32_t>(what));
  if (type >= kWireTypes) return in.corrupt(fmt::format("{} is {}, expected 0 to {}", what, type, kWireTypes - 1));
  return static_cast<Wire>(type);
}

int64_t integer_at(const std::byte* from, Wire type) {
  switch (type) {
    case Wire::u8:
      return load<uint8_t>(from);
    case Wire::i8:
      return load<int8_t>(from);
    case Wire::u16:
      return load<uint16_t>(from);
    case Wire::i16:
      return load<int16_t>(from);
    case Wire::u32:
      return load<uint32_t>(from);
    case Wire::i32:
      return load<int32_t>(from);
    default:
      return load<int64_t>(from);
  }
}

Result<bool> bool_at(const Cursor& in, const std::byte* from) {
  const uint8_t byte = load<uint8_t>(from);
  if (byte > 1) return in.corrupt(fmt::format("a bool must be 0 or 1, got {}", byte));
  return byte == 1;
}

Result<Array> read_array(Cursor& in) {
  SH_ASSIGN(const Wire type, read_wire_type(in, "the element type"));
  if (type == Wire::array)
    return in.error(ErrorKind::unsupported, "an array of arrays; only flat arrays are read");
  SH_ASSIGN(const uint64_t n, in.number<uint64_t>("the array length"));
  const uint64_t min_bytes = type == Wire::string ? 8 : fixed_size(type);
  if (n > in.left() / min_bytes)
    return in.corrupt(fmt::format("an array of {} elements of at least {} bytes, but {} bytes are left", n,
                                  min_bytes, in.left()));
  if (type == Wire::string) {
    std::vector<std::string> items;
    items.reserve(n);
    for (uint64_t i = 0; i < n; ++i) {
      SH_ASSIGN(items.emplace_back(), in.string("a string of the array"));
    }
    return Array{std::move(items)};
  }
  const size_t size = fixed_size(type);
  SH_ASSIGN(const std::byte* start, in.take(n * size, "the array"));
  if (type == Wire::boolean) {
    std::vector<bool> items(n);
    for (uint64_t i = 0; i < n; ++i) {
      SH_ASSIGN(items[i], bool_at(in, start + i));
    }
    return Array{std::move(items)};
  }
  if (type == Wire::f32 || type == Wire::f64) {
    std::vector<double> items(n);
    for (uint64_t i = 0; i < n; ++i)
      items[i] = type == Wire::f32 ? static_cast<double>(load<float>(start + i * 4)) : load<double>(start + i * 8);
    return Array{std::move(items)};
  }
  std::vector<int64_t> items(n);
  for (uint64_t i = 0; i < n; ++i) {
    items[i] = integer_at(start + i * size, type);
    if (type == Wire::u64 && items[i] < 0)
      return in.error(ErrorKind::unsupported, fmt::format("element {} of the array is {}, above 2^63 - 1", i,
                                                          static_cast<uint64_t>(items[i])));
  }
  return Array{std::move(items)};
}

Result<Value> read_value(Cursor& in, Wire type) {
  if (type == Wire::array) {
    SH_ASSIGN(Array array, read_array(in));
    return Value(std::move(array));
  }
  if (type == Wire::string) {
    SH_ASSIGN(std::string text, in.string("the string"));
    return Value(std::move(text));
  }
  SH_ASSIGN(const std::byte* start, in.take(fixed_size(type), "the value"));
  if (type == Wire::boolean) {
    SH_ASSIGN(const bool value, bool_at(in, start));
    return Value(value);
  }
  if (type == Wire::f32) return Value(static_cast<double>(load<float>(start)));
  if (type == Wire::f64) return Value(load<double>(start));
  const int64_t value = integer_at(start, type);
  if (type == Wire::u64 && value < 0) return Value(static_cast<uint64_t>(value));
  return Value(value);
}

Result<std::map<std::string, Value>> read_metadata(Cursor& in, uint64_t n_key_values) {
  std::map<std::string, Value> metadata;
  for (uint64_t i = 0; i < n_key_values; ++i) {
    in.set_subject(fmt::format(" metadata key {} of {},", i, n_key_values));
    SH_ASSIGN(std::string key, in.string("the key"));
    if (key.empty() || key.size() > kMaxKeyBytes)
      return in.corrupt(fmt::format("a key of {} bytes, expected 1 to {}", key.size(), kMaxKeyBytes));
    in.set_subject(fmt::format(" key {},", quoted(key)));
    SH_ASSIGN(const Wire type, read_wire_type(in, "the value type"));
    SH_ASSIGN(Value value, read_value(in, type));
    if (!metadata.emplace(std::move(key), std::move(value)).second) return in.corrupt("the key appears twice");
  }
  in.set_subject("");
  return metadata;
}

/// A tensor's entry in the header; its place is checked once the start of the data is known.
struct TensorEntry {
  TensorInfo info;
  uint64_t offset;
  uint64_t n_bytes;
};

Result<uint64_t> tensor_bytes(const Cursor& in, const TensorInfo& info) {
  int64_t n_elements = 1;
  for (const int64_t dim : info.shape)
    if (__builtin_mul_overflow(n_elements, dim, &n_elements))
      return in.corrupt("the product of the dimensions does not fit 63 bits");
  const TensorFormat& format = tensor_format(info.dtype);
  if (info.shape[0] % format.block_elements != 0)
    return in.corrupt(fmt::format("a row of {} elements, but {} needs a multiple of {}", info.shape[0],
                                  format.name, format.block_elements));
  int64_t n_bytes;
  if (__builtin_mul_overflow(n_elements / format.block_elements, int64_t{format.block_bytes}, &n_bytes))
    return in.corrupt("the size in bytes does not fit 63 bits");
  return static_cast<uint64_t>(n_bytes);
}

Result<TensorEntry> read_tensor_entry(Cursor& in) {
  TensorEntry entry{};
  SH_ASSIGN(entry.info.name, in.string("the tensor name"));
  if (entry.info.name.empty()) return in.corrupt("a tensor without a name");
  in.set_subject(fmt::format(" tensor {},", quoted(entry.info.name)));
  SH_ASSIGN(const uint32_t n_dims, in.number<uint32_t>("the number of dimensions"));
  if (n_dims < 1 || n_dims > kMaxDims)
    return in.corrupt(fmt::format("{} dimensions, expected 1 to {}", n_dims, kMaxDims));
  for (uint32_t i = 0; i < n_dims; ++i) {
    SH_ASSIGN(const uint64_t dim, in.number<uint64_t>("a dimension"));
    if (dim == 0 || dim > kInt64Max)
      return in.corrupt(fmt::format("dimension {} is {}, expected 1 to 2^63 - 1", i, dim));
    entry.info.shape.push_back(static_cast<int64_t>(dim));
  }
  SH_ASSIGN(const uint32_t type_id, in.number<uint32_t>("the tensor format"));
  const Result<DType> dtype = dtype_from_gguf(type_id);
  if (!dtype) return in.error(dtype.error().kind, dtype.error().message);
  entry.info.dtype = *dtype;
  SH_ASSIGN(entry.n_bytes, tensor_bytes(in, entry.info));
  SH_ASSIGN(entry.offset, in.number<uint64_t>("the data offset"));
  return entry;
}

Result<std::vector<TensorEntry>> read_tensor_entries(Cursor& in, uint64_t n_tensors) {
  if (n_tensors > in.left() / kMinTensorInfoBytes)
    return in.corrupt(fmt::format("the number of tensors is {}, but the {} bytes left hold at most {}", n_tensors,
                                  in.left(), in.left() / kMinTensorInfoBytes));
  std::vector<TensorEntry> entries;
  entries.reserve(n_tensors);
  std::set<std::string_view> names;
  for (uint64_t i = 0; i < n_tensors; ++i) {
    in.set_subject(fmt::format(" tensor {} of {},", i, n_tensors));
    SH_ASSIGN(TensorEntry entry, read_tensor_entry(in));
    entries.push_back(std::move(entry));
    // The names stay where they are: entries never outgrows its reserve.
    if (!names.insert(entries.back().info.name).second) return in.corrupt("the tensor name appears twice");
  }
  in.set_subject("");
  return entries;
}

Result<uint64_t> read_alignment(const Cursor& in, const std::map<std::string, Value>& metadata) {
  const auto found = metadata.find(kAlignmentKey);
  if (found == metadata.end()) return kDefaultAlignment;
  const int64_t* value = std::get_if<int64_t>(&found->second);
  if (value == nullptr || *value <= 0 || !std::has_single_bit(static_cast<uint64_t>(*value)))
    return in.corrupt(fmt::format("{} must be a power of two, got {}", kAlignmentKey,
                                  value == nullptr ? "a value of another type" : std::to_string(*value)));
  return static_cast<uint64_t>(*value);
}

Result<void> check_no_overlap(const Cursor& in, std::vector<TensorEntry>& entries) {
  std::vector<const TensorEntry*> by_offset;
  by_offset.reserve(entries.size());
  for (const TensorEntry& entry : entries) by_offset.push_back(&entry);
  std::sort(by_offset.begin(), by_offset.end(),
            [](const TensorEntry* a, const TensorEntry* b) { return a->offset < b->offset; });
  for (size_t i = 1; i < by_offset.size(); ++i) {
    const TensorEntry &a = *by_offset[i - 1], &b = *by_offset[i];
    if (b.offset - a.offset < a.n_bytes)
      return in.corrupt(fmt::format("the data of tensors {} (offset {}, {} bytes) and {} (offset {}) overlap",
                                    quoted(a.info.name), a.offset, a.n_bytes, quoted(b.info.name), b.offset));
  }
  return {};
}

/// Checks where each tensor's data lies and points it there.
Result<void> place_tensors(Cursor& in, std::vector<TensorEntry>& entries, uint64_t alignment) {
  if (entries.empty()) return {};
  const uint64_t n_padding = (alignment - in.at() % alignment) % alignment;
  SH_ASSIGN(const std::byte* padding, in.take(n_padding, "the padding before the tensor data"));
  const std::byte* data = padding + n_padding;
  const uint64_t n_data = in.left();
  for (TensorEntry& entry : entries) {
    in.set_subject(fmt::format(" tensor {},", quoted(entry.info.name)));
    if (entry.offset % alignment != 0)
      return in.corrupt(
          fmt::format("data offset {} is not a multiple of the alignment {}", entry.offset, alignment));
    if (entry.offset > n_data || entry.n_bytes > n_data - entry.offset)
      return in.corrupt(
          fmt::format("data offset {} and size {} exceed the {} bytes of tensor data; the file is cut "
                      "short or damaged",
                      entry.offset, entry.n_bytes, n_data));
    entry.info.data = {data + entry.offset, entry.n_bytes};
  }
  in.set_subject("");
  return check_no_overlap(in, entries);
}
}  // namespace

Result<ParsedPart> parse_part(std::span<const std::byte> bytes, const std::string& file_name) {
  Cursor in(bytes, file_name);
  SH_ASSIGN(const Header header, read_header(in));
  ParsedPart part;
  SH_ASSIGN(part.metadata, read_metadata(in, header.n_key_values));
  SH_ASSIGN(std::vector<TensorEntry> entries, read_tensor_entries(in, header.n_tensors));
  SH_ASSIGN(const uint64_t alignment, read_alignment(in, part.metadata));
  SH_RETURN_IF_ERROR(place_tensors(in, entries, alignment));
  part.tensors.reserve(entries.size());
  for (TensorEntry& entry : entries) part.tensors.push_back(std::move(entry.info));
  return part;
}

}  // namespace sh::gguf
