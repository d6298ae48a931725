// SPDX-License-Identifier: MIT
#include "ops/ops_fixture.h"

namespace sh::ops {
namespace {

TEST(Norm, RowsAndHeads) {
  const OwnedWeight reader(DType::f32, 96, 1, 5);
  for (const kernels::KernelSet* set : supported_kernels()) {
    Context c(set, 3);
    const Mat<float> x = random_mat(530, 96, 1), weight = random_mat(1, 96, 2);
    const Activations normed = activations_of(c.ctx, Normed{x.view(), weight.row(0), 1e-5f}, {&reader.weight});
    EXPECT_EQ(normed.q8, nullptr);
    const MatView<const float> y(normed.x, normed.n, normed.n_in, normed.stride);
    Mat<float> heads = x;
    rms_norm_heads(c.ctx, heads.view(), 32, weight.row(0), 1e-5f);
    for (int64_t t = 0; t < x.rows; ++t) {
      double square = 0.0;
      for (int64_t i = 0; i < 96; ++i) square += double{x(t, i)} * x(t, i);
      for (int64_t i = 0; i < 96; ++i) {
        EXPECT_NEAR(y(t, i), x(t, i) / std::sqrt(square / 96 + 1e-5) * weight(0, i), 1e-5);
        double head_square = 0.0;
        for (int64_t j = i / 32 * 32; j < i / 32 * 32 + 32; ++j) head_square += double{x(t, j)} * x(t, j);
        EXPECT_NEAR(heads(t, i), x(t, i) / std::sqrt(head_square / 32 + 1e-5) * weight(0, i % 32), 1e-5);
      }
    }
  }
}

TEST(Elementwise, Add) {
  for (const kernels::KernelSet* set : supported_kernels()) {
    Context c(set, 3);
    const Mat<float> a = random_mat(200, 131, 3), b = random_mat(200, 131, 4);
    Mat<float> sum = b;
    add(c.ctx, a.view(), sum.view());
    for (size_t i = 0; i < a.data.size(); ++i) ASSERT_EQ(sum.data[i], a.data[i] + b.data[i]);
  }
}

}  // namespace
}  // namespace sh::ops
