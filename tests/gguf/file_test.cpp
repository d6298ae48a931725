// SPDX-License-Identifier: MIT
#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
#include <filesystem>

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

}  // namespace
}  // namespace sh::gguf
