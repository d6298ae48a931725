// SPDX-License-Identifier: MIT
#include <set>

#include "ops/ops_fixture.h"

namespace sh::ops {
namespace {

constexpr int64_t kEmbd = 64, kFf = 96, kExperts = 5, kUsed = 2;

struct Experts {
  explicit Experts(DType dtype)
      : gate(dtype, kEmbd, kFf, 1, kExperts),
        up(dtype, kEmbd, kFf, 2, kExperts),
        down(dtype, kFf, kEmbd, 3, kExperts) {}
  OwnedWeight gate, up, down;
};

struct Routing {
  explicit Routing(int64_t n, uint64_t seed) : ids(n, kUsed), weights(n, kUsed) {
    const Mat<float> logits = random_mat(n, kExperts, seed);
    route_softmax(logits.view(), true, ids.view(), weights.view());
  }
  Mat<int32_t> ids;
  Mat<float> weights;
};

Mat<float> run(const kernels::KernelSet* set, int n_threads, const Experts& e, const Mat<float>& x,
               const Routing& routing) {
  Context c(set, n_threads);
  Mat<float> y(x.rows, kEmbd);
  moe(c.ctx, {.gate = &e.gate.weight,
              .up = &e.up.weight,
              .down = &e.down.weight,
              .x = activations_of(c.ctx, x.view(), {&e.gate.weight, &e.up.weight}),
              .expert_ids = routing.ids.view(),
              .expert_weights = routing.weights.view(),
              .y = y.view()});
  return y;
}

double dot_row(const Mat<float>& w, int64_t row, const double* x) {
  double sum = 0.0;
  for (int64_t i = 0; i < w.cols; ++i) sum += w(row, i) * x[i];
  return sum;
}

Mat<float> moe_reference(const Experts& e, const Mat<float>& x, const Routing& routing) {
  Mat<float> y(x.rows, kEmbd);
  for (int64_t t = 0; t < x.rows; ++t) {
    const std::vector<double> in(x.row(t), x.row(t) + kEmbd);
    for (int64_t slot = 0; slot < kUsed; ++slot) {
      const int64_t expert = routing.ids(t, slot);
      std::vector<double> hidden;
      for (int64_t r = 0; r < kFf; ++r) {
        const double gate = dot_row(e.gate.values, expert * kFf + r, in.data());
        hidden.push_back(gate / (1.0 + std::exp(-gate)) * dot_row(e.up.values, expert * kFf + r, in.data()));
      }
      for (int64_t r = 0; r < kEmbd; ++r)
        y(t, r) += static_cast<float>(routing.weights(t, slot) *
                                      dot_row(e.down.values, expert * kEmbd + r, hidden.data()));
    }
  }
  return y;
}

TEST(Moe, EqualsTheReference) {
  for (const kernels::KernelSet* set : supported_kernels())
    for (const DType dtype : {DType::f32, DType::q8_0}) {
      const Experts e(dtype);
      const Mat<float> x = random_mat(33, kEmbd, 4);
      const Routing routing(33, 5);
      const bool is_q8 = set->weight_kernel(dtype).form == kernels::ActivationForm::q8;
      // 8-bit activations: about 1 % of a product's size, twice in a row.
      EXPECT_LT(max_gap(run(set, 2, e, x, routing), moe_reference(e, x, routing)), is_q8 ? 0.08 : 1e-5)
          << set->name;
    }
}

TEST(Moe, ThreadsAndCompanionsChangeNoBit) {
  for (const kernels::KernelSet* set : supported_kernels())
    for (const DType dtype : {DType::f32, DType::q8_0}) {
      const Experts e(dtype);
      const Mat<float> x = random_mat(41, kEmbd, 6);
      const Routing routing(41, 7);
      const Mat<float> expected = run(set, 1, e, x, routing);
      EXPECT_EQ(run(set, 3, e, x, routing).data, expected.data) << set->name;
      for (int64_t t = 0; t < x.rows; ++t) {
        Mat<float> row(1, kEmbd);
        std::copy(x.row(t), x.row(t) + kEmbd, row.row(0));
        Routing own(1, 0);
        std::copy(routing.ids.row(t), routing.ids.row(t) + kUsed, own.ids.row(0));
        std::copy(routing.weights.row(t), routing.weights.row(t) + kUsed, own.weights.row(0));
        const Mat<float> alone = run(set, 3, e, row, own);
        ASSERT_TRUE(std::equal(alone.data.begin(), alone.data.end(), expected.row(t)))
            << set->name << " token " << t;
      }
    }
}

TEST(Moe, PackedStacksGiveTheSameBits) {
  for (const kernels::KernelSet* set : supported_kernels()) {
    if (!reads_packed(*set, DType::q8_0)) continue;
    // 40 rows an expert: its last panel is not full, and the next expert begins with a panel of its own.
    constexpr int64_t kRows = 40;
    const OwnedWeight gate(DType::q8_0, kEmbd, kFf, 11, kExperts), up(DType::q8_0, kEmbd, kFf, 12, kExperts),
        down(DType::q8_0, kFf, kRows, 13, kExperts);
    const PackedWeight packed_gate(gate.weight), packed_up(up.weight), packed_down(down.weight);
    const Mat<float> x = random_mat(19, kEmbd, 14);
    const Routing routing(19, 15);
    Mat<float> expected(19, kRows), y(19, kRows);
    Context c(set, 3);
    MoeArgs args{.gate = &gate.weight,
                 .up = &up.weight,
                 .down = &down.weight,
                 .x = activations_of(c.ctx, x.view(), {&gate.weight, &up.weight}),
                 .expert_ids = routing.ids.view(),
                 .expert_weights = routing.weights.view(),
                 .y = expected.view()};
    moe(c.ctx, args);
    args.gate = &packed_gate.weight;
    args.up = &packed_up.weight;
    args.down = &packed_down.weight;
    args.y = y.view();
    moe(c.ctx, args);
    EXPECT_EQ(expected.data, y.data) << set->name;
  }
}

TEST(Moe, OutputMayBeTheInput) {
  const Experts e(DType::f32);
  const Mat<float> x = random_mat(7, kEmbd, 8);
  const Routing routing(7, 9);
  Context c;
  Mat<float> both = x;
  moe(c.ctx, {.gate = &e.gate.weight,
              .up = &e.up.weight,
              .down = &e.down.weight,
              .x = activations_of(c.ctx, both.view(), {&e.gate.weight, &e.up.weight}),
              .expert_ids = routing.ids.view(),
              .expert_weights = routing.weights.view(),
              .y = both.view()});
  EXPECT_EQ(both.data, run(c.ctx.kernels, 2, e, x, routing).data);
}

TEST(Route, LargestFirstTiesToTheLowestIndex) {
  Mat<float> logits(1, 4), weights(1, 3);
  logits.data = {1.0f, 2.0f, 2.0f, 0.0f};
  Mat<int32_t> ids(1, 3);
  route_softmax(logits.view(), false, ids.view(), weights.view());
  EXPECT_EQ(ids.data, (std::vector<int32_t>{1, 2, 0}));
  const double sum = std::exp(1.0) + 2.0 * std::exp(2.0) + 1.0;
  EXPECT_NEAR(weights(0, 0), std::exp(2.0) / sum, 1e-6);
  EXPECT_NEAR(weights(0, 2), std::exp(1.0) / sum, 1e-6);
  route_softmax(logits.view(), true, ids.view(), weights.view());
  EXPECT_NEAR(weights(0, 0) + weights(0, 1) + weights(0, 2), 1.0, 1e-6);
}

TEST(Route, ExtremeAndNanLogitsStillChooseDifferentExperts) {
  for (const std::vector<float>& row :
       {std::vector<float>{1e30f, -1e30f, 3.0f, 0.0f}, std::vector<float>{NAN, NAN, NAN, NAN},
        std::vector<float>{-INFINITY, -INFINITY, -INFINITY, -INFINITY}}) {
    Mat<float> logits(1, 4), weights(1, 4);
    logits.data = row;
    Mat<int32_t> ids(1, 4);
    route_softmax(logits.view(), true, ids.view(), weights.view());
    EXPECT_EQ(std::set<int32_t>(ids.data.begin(), ids.data.end()), (std::set<int32_t>{0, 1, 2, 3}));
  }
}

}  // namespace
}  // namespace sh::ops
