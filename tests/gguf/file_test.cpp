// SPDX-License-Identifier: MIT
#include <fmt/format.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <filesystem>
#include <functional>
#include <limits>

#include "base/mapped_file.h"
#include "gguf/gguf.h"

namespace sh::gguf {
namespace {

namespace fs = std::filesystem;
const std::string kRoot = SH_SOURCE_DIR;

std::vector<std::string> model_files() {
  std::vector<std::string> paths = {kRoot + "/models/scribe.gguf"};
  for (const auto& entry : fs::recursive_directory_iterator(kRoot + "/tests/golden"))
    if (entry.path().extension() == ".gguf") paths.push_back(entry.path().string());
  std::sort(paths.begin(), paths.end());
  return paths;
}

bool same_value(const Value& a, const Value& b) {
  if (const Array* array = std::get_if<Array>(&a)) {
    const Array* other = std::get_if<Array>(&b);
    return other != nullptr && array->items == other->items;
  }
  if (a.index() != b.index()) return false;
  return std::visit(
      [&](const auto& held) {
        using T = std::decay_t<decltype(held)>;
        if constexpr (std::is_same_v<T, Array>)
          return false;
        else
          return held == std::get<T>(b);
      },
      a);
}

/// Every key and tensor of `a` is the same in `b`.
void expect_same(const File& a, const File& b) {
  ASSERT_EQ(a.metadata().size(), b.metadata().size());
  for (const auto& [key, value] : a.metadata()) {
    ASSERT_TRUE(b.has(key)) << key;
    EXPECT_TRUE(same_value(value, b.metadata().at(key))) << key;
  }
  ASSERT_EQ(a.tensors().size(), b.tensors().size());
  for (const TensorInfo& tensor : a.tensors()) {
    const TensorInfo* other = b.find_tensor(tensor.name);
    ASSERT_NE(other, nullptr) << tensor.name;
    EXPECT_EQ(tensor.dtype, other->dtype);
    EXPECT_EQ(tensor.shape, other->shape);
    EXPECT_TRUE(std::ranges::equal(tensor.data, other->data)) << tensor.name;
  }
  EXPECT_EQ(a.total_tensor_bytes(), b.total_tensor_bytes());
}

TEST(GgufFile, EveryModelInTheRepositoryParses) {
  const auto paths = model_files();
  ASSERT_GT(paths.size(), 30u);
  for (const std::string& path : paths) {
    SCOPED_TRACE(path);
    const auto file = File::open(path);
    ASSERT_TRUE(file.ok()) << file.error().message;
    EXPECT_FALSE(file->require_string("general.architecture")->empty());
    EXPECT_EQ(file->path(), path);
    for (const TensorInfo& tensor : file->tensors()) {
      EXPECT_EQ(file->find_tensor(tensor.name), &tensor);
      EXPECT_EQ(static_cast<int64_t>(tensor.data.size()),
                row_bytes(tensor.dtype, tensor.shape[0]) * (tensor.n_elements() / tensor.shape[0]));
    }
  }
}

TEST(GgufFile, WritingAndParsingGivesTheSame) {
  for (const std::string& path : model_files()) {
    SCOPED_TRACE(path);
    const auto file = File::open(path);
    ASSERT_TRUE(file.ok()) << file.error().message;
    Writer writer;
    for (const auto& [key, value] : file->metadata()) writer.set(key, value);
    for (const TensorInfo& tensor : file->tensors())
      writer.add_tensor(tensor.name, tensor.dtype, tensor.shape, tensor.data);
    const auto bytes = writer.to_bytes();
    const auto again = File::parse(bytes, "again");
    ASSERT_TRUE(again.ok()) << again.error().message;
    expect_same(*file, *again);
  }
}

/// A directory of this test alone, removed afterwards.
class Directory {
 public:
  Directory() : path_(fs::path(testing::TempDir()) / fmt::format("gguf_test_{}_{}", ::getpid(), ++count_)) {
    fs::create_directories(path_);
  }
  ~Directory() { fs::remove_all(path_); }
  std::string file(const std::string& name) const { return (path_ / name).string(); }

 private:
  static inline int count_ = 0;
  fs::path path_;
};

std::vector<std::byte> floats(std::initializer_list<float> values) {
  std::vector<std::byte> bytes(values.size() * sizeof(float));
  std::memcpy(bytes.data(), std::data(values), bytes.size());
  return bytes;
}

void expect_error(const Result<File>& file, ErrorKind kind, const std::string& fragment) {
  ASSERT_FALSE(file.ok());
  EXPECT_EQ(file.error().kind, kind) << file.error().message;
  EXPECT_NE(file.error().message.find(fragment), std::string::npos) << file.error().message;
}

TEST(GgufFile, ValuesOfEveryKindSurvive) {
  const std::map<std::string, Value> values = {
      {"bool", true},
      {"zero", int64_t{0}},
      {"u32", int64_t{4294967295}},
      {"i32", int64_t{-2147483648}},
      {"i64", int64_t{-9223372036854775807}},
      {"large", int64_t{1} << 40},
      {"u64", uint64_t{1} << 63},
      {"f32", 0.5},
      {"f64", 0.1},
      {"infinity", std::numeric_limits<double>::infinity()},
      {"text", std::string("nul \0 and ünïcode", 20)},
      {"empty", std::string()},
      {"bools", Array{std::vector<bool>{true, false, true}}},
      {"ints", Array{std::vector<int64_t>{1, -2, 3}}},
      {"longs", Array{std::vector<int64_t>{1, int64_t{1} << 50}}},
      {"floats", Array{std::vector<double>{1.5, -2.25}}},
      {"doubles", Array{std::vector<double>{0.1, 2}}},
      {"strings", Array{std::vector<std::string>{"", "a", "bc"}}},
      {"no_strings", Array{std::vector<std::string>{}}},
  };
  Writer writer;
  for (const auto& [key, value] : values) writer.set(key, value);
  const auto bytes = writer.to_bytes();
  const auto file = File::parse(bytes, "values");
  ASSERT_TRUE(file.ok()) << file.error().message;
  ASSERT_EQ(file->metadata().size(), values.size());
  for (const auto& [key, value] : values) EXPECT_TRUE(same_value(file->metadata().at(key), value)) << key;
}

TEST(GgufFile, TypedAccess) {
  Writer writer;
  writer.set("int", int64_t{7});
  writer.set("huge", uint64_t{1} << 63);
  writer.set("float", 0.25);
  writer.set("flag", true);
  writer.set("text", std::string("hello"));
  writer.set("ints", Array{std::vector<int64_t>{1, 2}});
  writer.set("flags", Array{std::vector<bool>{true, false}});
  writer.set("floats", Array{std::vector<double>{1.5}});
  writer.set("texts", Array{std::vector<std::string>{"a"}});
  writer.set("nothing", Array{std::vector<std::string>{}});
  const auto bytes = writer.to_bytes();
  const auto parsed = File::parse(bytes, "typed.gguf");
  ASSERT_TRUE(parsed.ok());
  const File& file = *parsed;
  EXPECT_EQ(file.require_int("int").value(), 7);
  EXPECT_EQ(file.require_float("float").value(), 0.25);
  EXPECT_EQ(file.require_string("text").value(), "hello");
  EXPECT_EQ(file.find_bool("flag").value(), true);
  EXPECT_EQ(file.find_int_array("ints").value(), (std::vector<int64_t>{1, 2}));
  EXPECT_EQ(file.find_int_array("flags").value(), (std::vector<int64_t>{1, 0}));
  EXPECT_EQ(file.find_float_array("floats").value(), std::vector<double>{1.5});
  EXPECT_EQ(file.find_string_array("texts").value(), std::vector<std::string>{"a"});
  EXPECT_EQ(file.find_int_array("nothing").value(), std::vector<int64_t>());
  EXPECT_TRUE(file.has("int"));
  EXPECT_FALSE(file.has("absent"));
  EXPECT_EQ(file.find_int("absent").value(), std::nullopt);
  EXPECT_EQ(file.find_string_array("absent").value(), std::nullopt);

  const auto message = [](const auto& result) { return result.ok() ? "no error" : result.error().message; };
  EXPECT_EQ(message(file.require_int("absent")), "'typed.gguf': key 'absent' is missing, expected an integer");
  EXPECT_EQ(message(file.find_int("text")), "'typed.gguf': key 'text': expected an integer, got a string");
  EXPECT_EQ(message(file.find_int("huge")),
            "'typed.gguf': key 'huge': expected an integer, got an integer above 2^63 - 1");
  EXPECT_EQ(message(file.require_float("int")), "'typed.gguf': key 'int': expected a float, got an integer");
  EXPECT_EQ(message(file.find_bool("int")), "'typed.gguf': key 'int': expected a bool, got an integer");
  EXPECT_EQ(message(file.require_string("texts")),
            "'typed.gguf': key 'texts': expected a string, got an array of strings");
  EXPECT_EQ(message(file.find_int_array("int")),
            "'typed.gguf': key 'int': expected an array of integers, got an integer");
  EXPECT_EQ(message(file.find_float_array("ints")),
            "'typed.gguf': key 'ints': expected an array of floats, got an array of integers");
  EXPECT_EQ(file.find_tensor("absent"), nullptr);
}

TEST(GgufFile, TensorDataIsAlignedAsTheMetadataSay) {
  for (const int64_t alignment : {1, 8, 64, 4096}) {
    Writer writer;
    writer.set("general.alignment", alignment);
    const auto a = floats({1, 2, 3}), b = floats({4, 5});
    writer.add_tensor("a", DType::f32, {3}, a);
    writer.add_tensor("b", DType::f32, {1, 2}, b);
    const auto bytes = writer.to_bytes();
    const auto file = File::parse(bytes, "aligned");
    ASSERT_TRUE(file.ok()) << file.error().message;
    for (const TensorInfo& tensor : file->tensors()) EXPECT_EQ((tensor.data.data() - bytes.data()) % alignment, 0);
    EXPECT_TRUE(std::ranges::equal(file->find_tensor("b")->data, b));
    EXPECT_EQ(file->total_tensor_bytes(), 20);
  }
}

TEST(GgufFile, WriteOpenAndCopy) {
  const Directory directory;
  const auto data = floats({1, 2, 3, 4});
  Writer writer;
  writer.set("general.architecture", std::string("toy"));
  writer.add_tensor("w", DType::f32, {2, 2}, data);
  ASSERT_TRUE(writer.write(directory.file("toy.gguf")).ok());
  std::optional<File> copy;
  {
    auto file = File::open(directory.file("toy.gguf"));
    ASSERT_TRUE(file.ok()) << file.error().message;
    copy = *file;
  }
  // The mapping lives as long as any copy.
  EXPECT_TRUE(std::ranges::equal(copy->find_tensor("w")->data, data));
}

TEST(GgufFile, AFileThatIsNotThereIsNotFound) {
  expect_error(File::open("/no/such/model.gguf"), ErrorKind::not_found, "/no/such/model.gguf");
}

/// Writes a model of three parts, one tensor each; `change` may spoil a part's metadata.
void write_split(const Directory& directory, const std::function<void(int part, Writer&)>& change = {}) {
  static const auto data = floats({1, 2, 3, 4});
  for (int part = 0; part < 3; ++part) {
    Writer writer;
    if (part == 0) writer.set("general.architecture", std::string("toy"));
    writer.set("split.no", int64_t{part});
    writer.set("split.count", int64_t{3});
    writer.set("split.tensors.count", int64_t{3});
    writer.add_tensor(fmt::format("w{}", part), DType::f32, {4 - part},
                      std::span(data).first(16 - 4 * static_cast<size_t>(part)));
    if (change) change(part, writer);
    ASSERT_TRUE(writer.write(directory.file(fmt::format("m-{:05}-of-00003.gguf", part + 1))).ok());
  }
}

TEST(SplitGguf, AllPartsAreOpened) {
  const Directory directory;
  write_split(directory);
  const auto file = File::open(directory.file("m-00001-of-00003.gguf"));
  ASSERT_TRUE(file.ok()) << file.error().message;
  EXPECT_EQ(file->require_string("general.architecture").value(), "toy");
  ASSERT_EQ(file->tensors().size(), 3u);
  EXPECT_EQ(file->tensors()[2].name, "w2");
  EXPECT_EQ(file->total_tensor_bytes(), 16 + 12 + 8);
  EXPECT_TRUE(std::ranges::equal(file->find_tensor("w2")->data, floats({1, 2})));
}

TEST(SplitGguf, OnePartThatNamesItselfSoIsWhole) {
  const Directory directory;
  Writer writer;
  writer.set("split.no", int64_t{0});
  writer.set("split.count", int64_t{1});
  ASSERT_TRUE(writer.write(directory.file("m-00001-of-00001.gguf")).ok());
  EXPECT_TRUE(File::open(directory.file("m-00001-of-00001.gguf")).ok());
}

TEST(SplitGguf, WhatIsMissingOrWrongIsNamed) {
  const Directory directory;
  const std::string first = directory.file("m-00001-of-00003.gguf");

  write_split(directory);
  expect_error(File::open(directory.file("m-00002-of-00003.gguf")), ErrorKind::invalid_argument,
               "is part 2 of 3; open the first part, '" + first + "'");
  fs::rename(first, directory.file("renamed.gguf"));
  expect_error(File::open(directory.file("renamed.gguf")), ErrorKind::invalid_argument,
               "must end in -00001-of-00003.gguf");
  fs::rename(directory.file("renamed.gguf"), directory.file("m-00001-of-00002.gguf"));
  expect_error(File::open(directory.file("m-00001-of-00002.gguf")), ErrorKind::corrupt,
               "the name says 2 parts, key 'split.count' says 3");

  write_split(directory);
  fs::remove(directory.file("m-00003-of-00003.gguf"));
  expect_error(File::open(first), ErrorKind::not_found, "part 3 of 3 of the split model is missing");
  expect_error(File::open(first), ErrorKind::not_found, "m-00003-of-00003.gguf");

  const auto data = floats({1, 2, 3, 4});
  const auto spoil = [&](int spoilt_part, const std::function<void(Writer&)>& change) {
    write_split(directory, [&](int part, Writer& writer) {
      if (part == spoilt_part) change(writer);
    });
    return File::open(first);
  };
  expect_error(spoil(0, [](Writer& w) { w.set("split.no", int64_t{1}); }), ErrorKind::corrupt,
               "'split.no': expected 0, got 1");
  expect_error(spoil(1, [](Writer& w) { w.set("split.no", int64_t{2}); }), ErrorKind::corrupt,
               "'split.no': expected 1, got 2");
  expect_error(spoil(2, [](Writer& w) { w.set("split.count", int64_t{4}); }), ErrorKind::corrupt,
               "'split.count': expected 3, got 4");
  expect_error(spoil(0, [](Writer& w) { w.set("split.tensors.count", int64_t{9}); }), ErrorKind::corrupt,
               "'split.tensors.count' says 9, but the parts hold 3 tensors");
  expect_error(spoil(0, [](Writer& w) { w.set("split.count", std::string("3")); }), ErrorKind::corrupt,
               "the name says 3 parts, key 'split.count' says nothing");
  expect_error(spoil(2, [&](Writer& w) { w.add_tensor("w0", DType::f32, {4}, data); }), ErrorKind::corrupt,
               "'split.tensors.count' says 3, but the parts hold 4 tensors");
  expect_error(spoil(2,
                     [&](Writer& w) {
                       w = Writer();
                       w.set("split.no", int64_t{2});
                       w.set("split.count", int64_t{3});
                       w.add_tensor("w0", DType::f32, {4}, data);
                     }),
               ErrorKind::corrupt, "tensor 'w0' is in two parts");
}

}  // namespace
}  // namespace sh::gguf
