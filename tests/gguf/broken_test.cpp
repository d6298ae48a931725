// SPDX-License-Identifier: MIT
// Files that are broken in every way we know, one case each, with what the message must say; then every truncation
// of a real file and random damage, which may give any result but never a crash.
#include <fmt/format.h>
#include <gtest/gtest.h>

#include <cstring>
#include <functional>

#include "base/mapped_file.h"
#include "base/rng.h"
#include "gguf/gguf.h"

namespace sh::gguf {
namespace {

using Bytes = std::vector<std::byte>;

template <typename T>
void put(Bytes& out, T value) {
  const size_t at = out.size();
  out.resize(at + sizeof(T));
  std::memcpy(out.data() + at, &value, sizeof(T));
}
void put_string(Bytes& out, const std::string& text) {
  put<uint64_t>(out, text.size());
  for (const char c : text) put(out, c);
}

/// The fields of a small valid file, to be damaged one at a time.
struct RawFile {
  std::string magic = "GGUF";
  uint32_t version = 3;
  uint64_t n_tensors = 2;
  uint64_t n_keys = 1;
  Bytes keys = [] {
    Bytes out;
    put_string(out, "general.name");
    put<uint32_t>(out, 8);
    put_string(out, "x");
    return out;
  }();

  struct RawTensor {
    std::string name;
    uint32_t n_dims;
    std::vector<uint64_t> dims;
    uint32_t type;
    uint64_t offset;
  };
  std::vector<RawTensor> tensors = {{"a", 2, {8, 2}, 0, 0}, {"b", 1, {32}, 8, 64}};
  size_t n_data = 64 + 34;

  Bytes bytes() const {
    Bytes out;
    for (const char c : magic) put(out, c);
    put(out, version);
    put(out, n_tensors);
    put(out, n_keys);
    out.insert(out.end(), keys.begin(), keys.end());
    for (const RawTensor& tensor : tensors) {
      put_string(out, tensor.name);
      put(out, tensor.n_dims);
      for (const uint64_t dim : tensor.dims) put(out, dim);
      put(out, tensor.type);
      put(out, tensor.offset);
    }
    out.resize((out.size() + 31) / 32 * 32);
    out.resize(out.size() + n_data);
    return out;
  }
  /// Replaces the metadata by one key of a value type whose value bytes `write` appends.
  void set_key(const std::string& key, uint32_t type, const std::function<void(Bytes&)>& write) {
    keys.clear();
    n_keys = 1;
    add_key(key, type, write);
  }
  void add_key(const std::string& key, uint32_t type, const std::function<void(Bytes&)>& write) {
    put_string(keys, key);
    put(keys, type);
    write(keys);
  }
};

struct BrokenCase {
  const char* name;
  std::function<void(RawFile&)> damage;
  ErrorKind kind;
  const char* message;  // a part of it
};

constexpr uint64_t kHuge = uint64_t{1} << 62;
constexpr auto kCorrupt = ErrorKind::corrupt;
constexpr auto kUnsupported = ErrorKind::unsupported;

const BrokenCase kBroken[] = {
    {"magic", [](RawFile& f) { f.magic = "GGML"; }, kCorrupt, "expected the magic number 'GGUF', got 'GGML'"},
    {"unprintable_magic",
     [](RawFile& f) {
       f.magic =
           "\x7f"
           "ELF";
     },
     kCorrupt, "got '\\x7fELF'"},
    {"version_0", [](RawFile& f) { f.version = 0; }, kUnsupported, "GGUF version 0, but only version 3"},
    {"version_1", [](RawFile& f) { f.version = 1; }, kUnsupported, "GGUF version 1, but only version 3"},
    {"version_2", [](RawFile& f) { f.version = 2; }, kUnsupported, "GGUF version 2, but only version 3"},
    {"version_4", [](RawFile& f) { f.version = 4; }, kUnsupported, "GGUF version 4, but only version 3"},
    {"big_endian", [](RawFile& f) { f.version = 0x03000000; }, kUnsupported, "big-endian"},
    {"n_tensors_huge", [](RawFile& f) { f.n_tensors = kHuge; }, kCorrupt,
     "the number of tensors is 4611686018427387904"},
    {"n_tensors_beyond_entries", [](RawFile& f) { f.n_tensors = 5; }, kCorrupt, "byte "},
    {"n_keys_huge", [](RawFile& f) { f.n_keys = kHuge; }, kCorrupt,
     "the number of metadata keys is 4611686018427387904"},
    {"n_keys_one_too_many", [](RawFile& f) { f.n_keys = 2; }, kCorrupt, "byte "},
    {"key_empty", [](RawFile& f) { f.set_key("", 4, [](Bytes& b) { put<uint32_t>(b, 1); }); }, kCorrupt,
     "a key of 0 bytes"},
    {"key_too_long",
     [](RawFile& f) { f.set_key(std::string(65536, 'k'), 4, [](Bytes& b) { put<uint32_t>(b, 1); }); }, kCorrupt,
     "a key of 65536 bytes, expected 1 to 65535"},
    {"key_length_huge",
     [](RawFile& f) {
       f.keys.clear();
       put<uint64_t>(f.keys, kHuge);
       put<uint64_t>(f.keys, 0);
     },
     kCorrupt, "metadata key 0 of 1, the file is cut short: the key needs 4611686018427387904 bytes"},
    {"key_twice",
     [](RawFile& f) {
       f.n_keys = 2;
       f.add_key("general.name", 4, [](Bytes& b) { put<uint32_t>(b, 1); });
     },
     kCorrupt, "key 'general.name', the key appears twice"},
    {"value_type", [](RawFile& f) { f.set_key("k", 13, [](Bytes& b) { put<uint32_t>(b, 1); }); }, kCorrupt,
     "key 'k', the value type is 13, expected 0 to 12"},
    {"string_length_huge", [](RawFile& f) { f.set_key("k", 8, [](Bytes& b) { put(b, kHuge); }); }, kCorrupt,
     "key 'k', the file is cut short: the string needs 4611686018427387904 bytes"},
    {"bool_2", [](RawFile& f) { f.set_key("k", 7, [](Bytes& b) { put<uint8_t>(b, 2); }); }, kCorrupt,
     "a bool must be 0 or 1, got 2"},
    {"array_element_type",
     [](RawFile& f) {
       f.set_key("k", 9, [](Bytes& b) {
         put<uint32_t>(b, 99);
         put<uint64_t>(b, 0);
       });
     },
     kCorrupt, "the element type is 99"},
    {"array_of_arrays",
     [](RawFile& f) {
       f.set_key("k", 9, [](Bytes& b) {
         put<uint32_t>(b, 9);
         put<uint64_t>(b, 1);
       });
     },
     kUnsupported, "an array of arrays"},
    {"array_length_huge",
     [](RawFile& f) {
       f.set_key("k", 9, [](Bytes& b) {
         put<uint32_t>(b, 10);
         put<uint64_t>(b, (uint64_t{1} << 61) + 1);
       });
     },
     kCorrupt, "an array of 2305843009213693953 elements of at least 8 bytes"},
    {"string_array_length_huge",
     [](RawFile& f) {
       f.set_key("k", 9, [](Bytes& b) {
         put<uint32_t>(b, 8);
         put<uint64_t>(b, 1000000);
       });
     },
     kCorrupt, "an array of 1000000 elements of at least 8 bytes"},
    {"string_in_array_huge",
     [](RawFile& f) {
       f.set_key("k", 9, [](Bytes& b) {
         put<uint32_t>(b, 8);
         put<uint64_t>(b, 1);
         put(b, kHuge);
       });
     },
     kCorrupt, "a string of the array needs 4611686018427387904 bytes"},
    {"bool_array_2",
     [](RawFile& f) {
       f.set_key("k", 9, [](Bytes& b) {
         put<uint32_t>(b, 7);
         put<uint64_t>(b, 2);
         put<uint16_t>(b, 0x0201);
       });
     },
     kCorrupt, "a bool must be 0 or 1, got 2"},
    {"array_above_int64",
     [](RawFile& f) {
       f.set_key("k", 9, [](Bytes& b) {
         put<uint32_t>(b, 10);
         put<uint64_t>(b, 1);
         put<uint64_t>(b, uint64_t{1} << 63);
       });
     },
     kUnsupported, "element 0 of the array is 9223372036854775808, above 2^63 - 1"},
    {"alignment_0", [](RawFile& f) { f.set_key("general.alignment", 4, [](Bytes& b) { put<uint32_t>(b, 0); }); },
     kCorrupt, "general.alignment must be a power of two, got 0"},
    {"alignment_48", [](RawFile& f) { f.set_key("general.alignment", 4, [](Bytes& b) { put<uint32_t>(b, 48); }); },
     kCorrupt, "general.alignment must be a power of two, got 48"},
    {"alignment_negative",
     [](RawFile& f) { f.set_key("general.alignment", 5, [](Bytes& b) { put<int32_t>(b, -32); }); }, kCorrupt,
     "general.alignment must be a power of two, got -32"},
    {"alignment_string",
     [](RawFile& f) { f.set_key("general.alignment", 8, [](Bytes& b) { put_string(b, "32"); }); }, kCorrupt,
     "general.alignment must be a power of two, got a value of another type"},
    {"alignment_beyond_file",
     [](RawFile& f) { f.set_key("general.alignment", 4, [](Bytes& b) { put(b, uint32_t{1} << 31); }); }, kCorrupt,
     "the padding before the tensor data needs"},
    {"tensor_name_empty", [](RawFile& f) { f.tensors[1].name = ""; }, kCorrupt, "a tensor without a name"},
    {"tensor_name_twice", [](RawFile& f) { f.tensors[1].name = "a"; }, kCorrupt,
     "tensor 'a', the tensor name appears twice"},
    {"dims_0",
     [](RawFile& f) {
       f.tensors[0].n_dims = 0;
       f.tensors[0].dims = {};
     },
     kCorrupt, "tensor 'a', 0 dimensions, expected 1 to 4"},
    {"dims_5",
     [](RawFile& f) {
       f.tensors[0].n_dims = 5;
       f.tensors[0].dims = {1, 1, 1, 1, 1};
     },
     kCorrupt, "tensor 'a', 5 dimensions, expected 1 to 4"},
    {"dims_huge", [](RawFile& f) { f.tensors[0].n_dims = 0xFFFFFFFF; }, kCorrupt, "4294967295 dimensions"},
    {"dim_zero", [](RawFile& f) { f.tensors[0].dims[1] = 0; }, kCorrupt, "dimension 1 is 0, expected 1 to"},
    {"dim_negative", [](RawFile& f) { f.tensors[0].dims[0] = uint64_t{1} << 63; }, kCorrupt,
     "dimension 0 is 9223372036854775808"},
    {"dim_product",
     [](RawFile& f) {
       f.tensors[0].dims = {uint64_t{1} << 32, uint64_t{1} << 32};
     },
     kCorrupt, "the product of the dimensions does not fit"},
    {"bytes_overflow",
     [](RawFile& f) {
       f.tensors[0].dims = {uint64_t{1} << 31, uint64_t{1} << 31};
     },
     kCorrupt, "the size in bytes does not fit"},
    {"format_unknown", [](RawFile& f) { f.tensors[0].type = 16; }, kUnsupported,
     "tensor 'a', tensor format with id 16 is not supported; known formats: bf16"},
    {"format_removed", [](RawFile& f) { f.tensors[0].type = 4; }, kUnsupported, "tensor format with id 4"},
    {"block_divisibility", [](RawFile& f) { f.tensors[1].dims = {31}; }, kCorrupt,
     "tensor 'b', a row of 31 elements, but q8_0 needs a multiple of 32"},
    {"offset_unaligned", [](RawFile& f) { f.tensors[1].offset = 65; }, kCorrupt,
     "data offset 65 is not a multiple of the alignment 32"},
    {"offset_outside", [](RawFile& f) { f.tensors[1].offset = 1024; }, kCorrupt,
     "data offset 1024 and size 34 exceed the 98 bytes"},
    {"offset_wraps", [](RawFile& f) { f.tensors[1].offset = 0ull - 32; }, kCorrupt, "exceed the 98 bytes"},
    {"data_one_byte_short", [](RawFile& f) { f.n_data -= 1; }, kCorrupt,
     "data offset 64 and size 34 exceed the 97 bytes"},
    {"overlap", [](RawFile& f) { f.tensors[1].offset = 32; }, kCorrupt,
     "'a' (offset 0, 64 bytes) and 'b' (offset 32) overlap"},
    {"same_place", [](RawFile& f) { f.tensors[1].offset = 0; }, kCorrupt, "overlap"},
};

TEST(BrokenGguf, TheUndamagedFileParses) {
  const Bytes bytes = RawFile().bytes();
  const auto file = File::parse(bytes, "raw.gguf");
  ASSERT_TRUE(file.ok()) << file.error().message;
  EXPECT_EQ(file->tensors().size(), 2u);
  EXPECT_EQ(file->find_tensor("b")->describe(), "[32] q8_0");
}

TEST(BrokenGguf, EveryDamageIsNamed) {
  for (const BrokenCase& broken : kBroken) {
    SCOPED_TRACE(broken.name);
    RawFile raw;
    broken.damage(raw);
    const Bytes bytes = raw.bytes();
    const auto file = File::parse(bytes, "raw.gguf");
    ASSERT_FALSE(file.ok());
    EXPECT_EQ(file.error().kind, broken.kind) << file.error().message;
    EXPECT_NE(file.error().message.find(broken.message), std::string::npos) << file.error().message;
    EXPECT_EQ(file.error().message.find("'raw.gguf', byte "), 0u) << file.error().message;
  }
}

TEST(BrokenGguf, NamesInMessagesAreCutAndEscaped) {
  RawFile raw;
  raw.tensors[0].name = "\n\x1b[31m" + std::string(500, 'n');
  raw.tensors[0].n_dims = 9;
  const Bytes bytes = raw.bytes();
  const auto file = File::parse(bytes, "raw.gguf");
  ASSERT_FALSE(file.ok());
  EXPECT_NE(file.error().message.find("'\\x0a\\x1b[31mnnn"), std::string::npos) << file.error().message;
  EXPECT_LT(file.error().message.size(), 250u);
}

/// Uses everything that a parsed file offers.
int64_t touch(const File& file) {
  int64_t sum = 0;
  for (const auto& [key, value] : file.metadata()) {
    sum += file.find_int(key).ok() + file.find_float(key).ok() + file.find_bool(key).ok() +
           file.find_string(key).ok();
    sum += file.find_int_array(key).ok() + file.find_float_array(key).ok() + file.find_string_array(key).ok();
  }
  for (const TensorInfo& tensor : file.tensors()) {
    for (const std::byte b : tensor.data) sum += static_cast<int64_t>(b);
    sum += static_cast<int64_t>(tensor.describe().size()) + (file.find_tensor(tensor.name) == &tensor);
  }
  return sum;
}

/// Bytes up to the last one that means something: without padding after the last value or tensor.
size_t content_bytes(std::span<const std::byte> whole) {
  const auto file = File::parse(whole, "whole");
  EXPECT_TRUE(file.ok()) << file.error().message;
  size_t n = 0;
  for (const TensorInfo& tensor : file->tensors())
    n = std::max(n, static_cast<size_t>(tensor.data.data() + tensor.data.size() - whole.data()));
  if (n > 0) return n;
  for (n = whole.size(); n > 0 && whole[n - 1] == std::byte{0};) --n;
  return n;
}

void expect_every_truncation_refused(std::span<const std::byte> whole) {
  const size_t n_content = content_bytes(whole);
  ASSERT_GT(n_content, 100u);
  for (size_t n = 0; n < n_content; ++n) {
    const Bytes part(whole.begin(),
                     whole.begin() + static_cast<std::ptrdiff_t>(n));  // its own memory, for the sanitizer
    const auto cut = File::parse(part, "cut");
    ASSERT_FALSE(cut.ok()) << n << " of " << whole.size() << " bytes";
    ASSERT_EQ(cut.error().kind, ErrorKind::corrupt);
  }
  EXPECT_TRUE(File::parse(whole.first(n_content), "padding only").ok());
}

TEST(BrokenGguf, EveryTruncationIsAnError) {
  expect_every_truncation_refused(RawFile().bytes());
  const std::string vocabulary =
      read_file(std::string(SH_SOURCE_DIR) + "/tests/golden/tokenizer/tiny-spm-llama.gguf").value();
  expect_every_truncation_refused(std::as_bytes(std::span(vocabulary)));
}

TEST(BrokenGguf, RandomDamageNeverCrashes) {
  Rng rng(2024);
  const Bytes intact = RawFile().bytes();
  int n_parsed = 0, n_refused = 0;
  int64_t sum = 0;
  for (int repeat = 0; repeat < 20000; ++repeat) {
    Bytes bytes = intact;
    for (uint64_t flips = 1 + rng.next_below(4); flips > 0; --flips)
      bytes[rng.next_below(bytes.size())] ^= static_cast<std::byte>(1u << rng.next_below(8));
    const auto file = File::parse(bytes, "damaged");
    if (file.ok()) sum += touch(*file);
    file.ok() ? ++n_parsed : ++n_refused;
  }
  EXPECT_GT(n_parsed, 1000);
  EXPECT_GT(n_refused, 1000);
  EXPECT_GT(sum, 0);
}

TEST(BrokenGguf, RandomDamageOfARealFileNeverCrashes) {
  Rng rng(2025);
  const std::string text = read_file(std::string(SH_SOURCE_DIR) + "/tests/golden/llama.gguf").value();
  const auto whole = std::as_bytes(std::span(text));
  Bytes bytes(whole.begin(), whole.end());
  constexpr uint64_t kHeader = 8000;  // damage where it matters: the header and vocabulary
  int n_refused = 0;
  int64_t sum = 0;
  for (int repeat = 0; repeat < 3000; ++repeat) {
    const size_t at = rng.next_below(kHeader);
    const std::byte before = bytes[at];
    bytes[at] ^= static_cast<std::byte>(1 + rng.next_below(255));
    const auto file = File::parse(bytes, "damaged");
    if (file.ok())
      sum += touch(*file);
    else
      ++n_refused;
    bytes[at] = before;
  }
  EXPECT_GT(n_refused, 100);
  EXPECT_GT(sum, 0);
}

}  // namespace
}  // namespace sh::gguf
