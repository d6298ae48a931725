// SPDX-License-Identifier: MIT
#include "kernels/kernel_testing.h"

namespace sh::kernels {
namespace {

class Gemm : public EverySet {};
SH_FOR_EVERY_SET(Gemm);

struct Shape {
  int64_t m, n, k;
};
const std::vector<Shape> kShapes = {{1, 1, 1},     {3, 5, 0},     {0, 4, 3},     {4, 0, 3},
                                    {7, 15, 33},   {8, 16, 16},   {9, 17, 31},   {16, 48, 256},
                                    {17, 49, 257}, {33, 97, 300}, {65, 500, 70}, {50, 961, 19}};

/// Runs one of the three products with padded strides and compares every element with a sum in double.
void check(const KernelSet& set, void (*KernelSet::*product)(const GemmArgs&), bool a_is_turned, bool b_is_turned,
           const Shape& shape, float alpha, bool accumulate) {
  const auto [m, n, k] = shape;
  const int64_t a_stride = (a_is_turned ? m : k) + 3, b_stride = (b_is_turned ? k : n) + 5, c_stride = n + 2;
  const auto a = random_floats((a_is_turned ? k : m) * a_stride, 31),
             b = random_floats((b_is_turned ? n : k) * b_stride, 32);
  const auto before = random_floats(m * c_stride, 33);
  auto c = before;
  (set.*product)({.m = m,
                  .n = n,
                  .k = k,
                  .a = a.data(),
                  .a_stride = a_stride,
                  .b = b.data(),
                  .b_stride = b_stride,
                  .c = c.data(),
                  .c_stride = c_stride,
                  .alpha = alpha,
                  .accumulate = accumulate});
  for (int64_t i = 0; i < m; ++i)
    for (int64_t j = 0; j < c_stride; ++j) {
      const size_t at = static_cast<size_t>(i * c_stride + j);
      if (j >= n) {
        EXPECT_EQ(c[at], before[at]) << "padding";
        continue;
      }
      double exact = accumulate ? before[at] : 0.0, magnitude = std::fabs(exact);
      for (int64_t p = 0; p < k; ++p) {
        const double product_of =
            static_cast<double>(a[static_cast<size_t>(a_is_turned ? p * a_stride + i : i * a_stride + p)]) *
            b[static_cast<size_t>(b_is_turned ? j * b_stride + p : p * b_stride + j)];
        exact += alpha * product_of;
        magnitude += std::fabs(alpha * product_of);
      }
      // k + 2 roundings of partial sums.
      EXPECT_NEAR(c[at], exact, static_cast<double>(k + 3) * kEps * magnitude)
          << m << 'x' << n << 'x' << k << " at " << i << ',' << j;
    }
}

TEST_P(Gemm, AllThreeMatchSumsInDouble) {
  for (const Shape& shape : kShapes)
    for (bool accumulate : {false, true})
      for (float alpha : {1.0f, -0.5f}) {
        check(set(), &KernelSet::gemm_nt, false, true, shape, alpha, accumulate);
        check(set(), &KernelSet::gemm_nn, false, false, shape, alpha, accumulate);
        check(set(), &KernelSet::gemm_tn, true, false, shape, alpha, accumulate);
      }
}

TEST_P(Gemm, AnElementHasTheSameBitsInAnyProduct) {
  const int64_t k = 600, n = 70;
  const auto a = random_floats(20 * k, 41), b = random_floats(n * k, 42);
  std::vector<float> whole(static_cast<size_t>(20 * n)), part(3);
  set().gemm_nt({.m = 20,
                 .n = n,
                 .k = k,
                 .a = a.data(),
                 .a_stride = k,
                 .b = b.data(),
                 .b_stride = k,
                 .c = whole.data(),
                 .c_stride = n});
  set().gemm_nt({.m = 1,
                 .n = 3,
                 .k = k,
                 .a = a.data() + 13 * k,
                 .a_stride = k,
                 .b = b.data() + 50 * k,
                 .b_stride = k,
                 .c = part.data(),
                 .c_stride = 3});
  for (size_t j = 0; j < 3; ++j) EXPECT_EQ(part[j], whole[13 * static_cast<size_t>(n) + 50 + j]);
}

}  // namespace
}  // namespace sh::kernels
