// SPDX-License-Identifier: MIT
#include "models/weight_store.h"

#include <cstring>
#include <filesystem>

#include "base/machine.h"
#include "models/model_fixture.h"
#include "tensor/packed.h"

namespace sh::models {
namespace {

/// A set that reads packed weights; the generic one does not.
const kernels::KernelSet* packing_set() {
  for (const kernels::KernelSet* set : supported_kernels())
    if (set->weight_kernel(DType::q8_0).matmul_packed != nullptr) return set;
  return nullptr;
}

std::vector<std::byte> random_weights(int64_t n, uint64_t seed) {
  Rng rng(seed);
  std::vector<std::byte> bytes(static_cast<size_t>(n));
  for (std::byte& b : bytes) b = static_cast<std::byte>(rng.next_below(256));
  return bytes;
}

/// A file with one stack of 3 matrices of 70 rows and one float matrix.
struct StackFile {
  static constexpr int64_t n_in = 64, n_out = 70, n_stack = 3;
  std::vector<std::byte> stack = random_weights(n_stack * n_out * row_bytes(DType::q8_0, n_in), 1);
  std::vector<std::byte> floats = random_weights(n_in * 8 * 4, 2);
  std::vector<std::byte> bytes;
  StackFile() {
    gguf::Writer writer;
    writer.add_tensor("stack", DType::q8_0, {n_in, n_out, n_stack}, stack);
    writer.add_tensor("floats", DType::f32, {n_in, 8}, floats);
    bytes = writer.to_bytes();
  }
  gguf::File parse() const { return gguf::File::parse(bytes, "stack").value(); }
};

TEST(WeightStore, PacksEveryMatrixOfAStackTheSameWithAnyThreads) {
  if (packing_set() == nullptr) return;  // a machine that has the generic set only
  const StackFile source;
  for (const int n_threads : {1, 4}) {
    WeightStore store(source.parse());
    ASSERT_TRUE(store.reserve_packed(*packing_set()).ok());
    const ops::Weight w = store.place(*store.file().find_tensor("stack"), 64, 70, 3);
    ThreadPool pool(n_threads);
    store.pack(pool);
    ASSERT_TRUE(w.is_packed);
    const int64_t bytes = row_bytes(DType::q8_0, 64);
    std::vector<std::byte> row(static_cast<size_t>(bytes)), expected(static_cast<size_t>(32 * bytes));
    for (int64_t e = 0; e < 3; ++e) {
      for (int64_t r = 0; r < 70; ++r) {
        unpack_row(DType::q8_0, w.expert(e), r, 64, row.data());
        ASSERT_EQ(0, std::memcmp(row.data(), source.stack.data() + (e * 70 + r) * bytes, row.size()))
            << n_threads << " threads, expert " << e << " row " << r;
      }
      // The lanes that no row fills are zeros, so that all bytes are known.
      pack_panel(DType::q8_0, source.stack.data() + (e * 70 + 64) * bytes, 6, 64, expected.data());
      EXPECT_EQ(0, std::memcmp(expected.data(), w.expert(e) + 64 * bytes, expected.size())) << n_threads;
    }
  }
}

TEST(WeightStore, ReadsInPlaceUnlessAsked) {
  const StackFile source;
  WeightStore store(source.parse());
  const gguf::TensorInfo& tensor = *store.file().find_tensor("stack");
  const ops::Weight w = store.place(tensor, 64, 70, 3);
  EXPECT_FALSE(w.is_packed);
  EXPECT_EQ(w.data, tensor.data.data());
}

TEST(WeightStore, LeavesWhatNoKernelReadsPackedInTheFile) {
  const StackFile source;
  for (const kernels::KernelSet* set : supported_kernels()) {
    WeightStore store(source.parse());
    ASSERT_TRUE(store.reserve_packed(*set).ok());
    EXPECT_FALSE(store.place(*store.file().find_tensor("floats"), 64, 8, 1).is_packed) << set->name;
    EXPECT_EQ(store.place(*store.file().find_tensor("stack"), 64, 70, 3).is_packed,
              set->weight_kernel(DType::q8_0).matmul_packed != nullptr)
        << set->name;
  }
}

TEST(WeightStore, HoldsTheFileOnceNotTwice) {
  if (packing_set() == nullptr) return;  // nothing is packed then
  constexpr int64_t kIn = 4096, kOut = 8192, kMiB = 1 << 20;
  const std::string path = (std::filesystem::temp_directory_path() / "shorthand_weight_store_test.gguf").string();
  {
    const std::vector<std::byte> weights = random_weights(kOut * row_bytes(DType::q8_0, kIn), 3);
    gguf::Writer writer;
    writer.add_tensor("w", DType::q8_0, {kIn, kOut}, weights);
    ASSERT_TRUE(writer.write(path).ok());
  }
  const int64_t n_bytes = kOut * row_bytes(DType::q8_0, kIn);  // 34 MiB
  ThreadPool pool(2);
  const int64_t before = resident_bytes();
  WeightStore store(gguf::File::open(path).value());
  ASSERT_TRUE(store.reserve_packed(*packing_set()).ok());
  const ops::Weight w = store.place(*store.file().find_tensor("w"), kIn, kOut, 1);
  store.pack(pool);
  const int64_t grown = resident_bytes() - before;
  EXPECT_GT(grown, n_bytes - kMiB) << "the packed weights are memory";
#ifdef __SANITIZE_ADDRESS__
  constexpr int64_t kBeside = 12 * kMiB;  // with the sanitizer's own
#else
  constexpr int64_t kBeside = 8 * kMiB;
#endif
  EXPECT_LT(grown, n_bytes + kBeside) << "the file's pages went back";
  // They come again when they are read.
  std::vector<std::byte> row(static_cast<size_t>(w.row_bytes()));
  unpack_row(DType::q8_0, w.data, 5, kIn, row.data());
  const std::byte* in_file = store.file().find_tensor("w")->data.data() + 5 * w.row_bytes();
  EXPECT_EQ(0, std::memcmp(row.data(), in_file, row.size()));
  std::filesystem::remove(path);
}

class PackedModel : public testing::TestWithParam<const char*> {};

TEST_P(PackedModel, GivesTheBitsOfTheModelInPlace) {
  const gguf::File file = open_golden(GetParam());
  for (const kernels::KernelSet* set : supported_kernels()) {
    Runner in_place(file, set, 2, DType::f32, false), packed(file, set, 2, DType::f32, true);
    const std::vector<int32_t> ids = random_ids(21, 1, in_place.model->info().n_vocab);
    kv::SequenceCache a = in_place.new_sequence(), b = packed.new_sequence();
    EXPECT_EQ(in_place.feed(a, ids).data, packed.feed(b, ids).data) << set->name;
    EXPECT_EQ(in_place.feed(a, {ids[3]}).data, packed.feed(b, {ids[3]}).data) << set->name << ", one token";
  }
}

INSTANTIATE_TEST_SUITE_P(Files, PackedModel,
                         testing::Values("llama-q.Q8_0.gguf", "llama-q.Q4_0.gguf", "llama-q.Q4_K_M.gguf",
                                         "llama-q.IQ4_XS.gguf", "llama-moe.gguf", "qwen3.F16.gguf"),
                         [](const auto& file) {
                           std::string name = file.param;
                           std::replace_if(
                               name.begin(), name.end(), [](char c) { return c == '-' || c == '.'; }, '_');
                           return name;
                         });

}  // namespace
}  // namespace sh::models
