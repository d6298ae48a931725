// SPDX-License-Identifier: MIT
#include "base/env.h"
#include "kernels/kernel_testing.h"
#include "tensor/dtype.h"

namespace sh::kernels {
namespace {

TEST(ChooseKernels, TheBestSupportedSetIsChosenByDefault) {
  const KernelSet* best = supported_sets().front();
  for (const KernelSet* set : supported_sets())
    if (set->rank > best->rank) best = set;
  EXPECT_EQ(choose_kernels("").value(), best);
}

TEST(ChooseKernels, AForcedNameIsTheOneThatRuns) {
  for (const KernelSet* set : supported_sets()) {
    EXPECT_EQ(choose_kernels(set->name).value(), set);
    EXPECT_NE(describe_choice(*set, set->name).find("forced by SHORTHAND_KERNELS"), std::string::npos);
    EXPECT_EQ(describe_choice(*set, set->name).find(set->name), 0u);
  }
}

TEST(ChooseKernels, TheEnvironmentForcesIt) {
  const std::string forced = env::kernels().value_or("");
  const Result<const KernelSet*> chosen = choose_kernels(forced);
  ASSERT_TRUE(chosen.ok());
  if (!forced.empty()) {
    EXPECT_EQ(chosen.value()->name, forced);
  }
  setenv("SHORTHAND_KERNELS", "generic", 1);
  EXPECT_EQ(choose_kernels(env::kernels().value_or("")).value(), &generic_set());
  if (forced.empty())
    unsetenv("SHORTHAND_KERNELS");
  else
    setenv("SHORTHAND_KERNELS", forced.c_str(), 1);
}

TEST(ChooseKernels, AnUnknownNameIsAnErrorThatNamesTheChoices) {
  const Result<const KernelSet*> chosen = choose_kernels("sse9");
  ASSERT_FALSE(chosen.ok());
  EXPECT_EQ(chosen.error().kind, ErrorKind::not_found);
  EXPECT_NE(chosen.error().message.find("sse9"), std::string::npos);
  EXPECT_NE(chosen.error().message.find("generic"), std::string::npos);
}

TEST(ChooseKernels, ASetThatTheCpuLacksIsAnErrorThatSaysWhatItNeeds) {
  for (const KernelSet* set : kernel_sets()) {
    if (set->supported()) continue;
    const Result<const KernelSet*> chosen = choose_kernels(set->name);
    ASSERT_FALSE(chosen.ok());
    EXPECT_EQ(chosen.error().kind, ErrorKind::unsupported);
    EXPECT_NE(chosen.error().message.find(set->needs), std::string::npos);
  }
}

TEST(ChooseKernels, DescribeSaysWhyNoBetterSetRuns) {
  const std::string text = describe_choice(generic_set(), "");
  for (const KernelSet* set : kernel_sets())
    if (set->rank > 0) {
      EXPECT_NE(text.find(std::string("not ") + set->name), std::string::npos) << text;
    }
}

TEST(KernelSets, RanksFallAndEverySetIsWhole) {
  const auto sets = kernel_sets();
  for (size_t i = 1; i < sets.size(); ++i) EXPECT_GT(sets[i - 1]->rank, sets[i]->rank);
  for (const KernelSet* set : supported_sets())
    for (const TensorFormat* format : tensor_formats()) {
      const WeightKernel kernel = set->weight_kernel(format->dtype);
      EXPECT_NE(kernel.matmul, nullptr);
      EXPECT_EQ(kernel.form, generic_set().weight_kernel(format->dtype).form) << format->name;
    }
}

TEST(KvTypes, AreTheFormatsOfSmallBlocks) {
  for (DType dtype : {DType::f32, DType::f16, DType::bf16, DType::q8_0, DType::q4_0, DType::q4_1, DType::q5_0,
                      DType::q5_1, DType::iq4_nl})
    EXPECT_TRUE(is_kv_dtype(dtype));
  for (DType dtype : {DType::q4_k, DType::q6_k, DType::iq4_xs, DType::mxfp4}) EXPECT_FALSE(is_kv_dtype(dtype));
}

}  // namespace
}  // namespace sh::kernels
