// SPDX-License-Identifier: MIT
#include "kernels/q8_row.h"
#include "ops/ops_fixture.h"

namespace sh::ops {
namespace {

Mat<float> linear_reference(const OwnedWeight& w, const Mat<float>& x, const float* bias) {
  Mat<float> y(x.rows, w.weight.n_out);
  for (int64_t t = 0; t < x.rows; ++t)
    for (int64_t r = 0; r < w.weight.n_out; ++r) {
      double sum = bias == nullptr ? 0.0 : bias[r];
      for (int64_t k = 0; k < x.cols; ++k) sum += double{w.values(r, k)} * x(t, k);
      y(t, r) = static_cast<float>(sum);
    }
  return y;
}

/// f32 sums differ by their order; 8-bit activations by half a step of a group's largest value (3 / 127 / 2) on
/// every product, which adds up to some 0.012 (deviation) for unit inputs and unit-norm rows: 6 deviations.
double tolerance(const kernels::KernelSet& set, DType dtype) {
  return set.weight_kernel(dtype).form == kernels::ActivationForm::q8 ? 0.08 : 1e-5;
}

TEST(Linear, EqualsTheReferenceForEveryFormat) {
  for (const kernels::KernelSet* set : supported_kernels())
    for (const TensorFormat* format : tensor_formats()) {
      Context c(set);
      const OwnedWeight w(format->dtype, 512, 77, 1);
      const Mat<float> x = random_mat(5, 512, 2), bias = random_mat(1, 77, 3);
      for (const float* b : {static_cast<const float*>(nullptr), bias.row(0)}) {
        Mat<float> y(5, 77);
        linear(c.ctx, w.weight, x.view(), y.view(), b);
        EXPECT_LT(max_gap(y, linear_reference(w, x, b)), tolerance(*set, format->dtype))
            << set->name << " " << format->name;
      }
    }
}

TEST(Linear, ThreadsAndCompanionsChangeNoBit) {
  for (const kernels::KernelSet* set : supported_kernels())
    for (const DType dtype : {DType::f32, DType::f16, DType::q8_0, DType::q4_k}) {
      const OwnedWeight w(dtype, 256, 301, 4);
      const Mat<float> x = random_mat(67, 256, 5), bias = random_mat(1, 301, 6);
      Context one(set, 1), three(set, 3);
      Mat<float> expected(67, 301), y(67, 301);
      linear(one.ctx, w.weight, x.view(), expected.view(), bias.row(0));
      linear(three.ctx, w.weight, x.view(), y.view(), bias.row(0));
      EXPECT_EQ(expected.data, y.data) << set->name;
      for (int64_t t = 0; t < x.rows; ++t) {
        Mat<float> row(1, 301);
        linear(three.ctx, w.weight, x.view().slice(t, 1), row.view(), bias.row(0));
        ASSERT_TRUE(std::equal(row.data.begin(), row.data.end(), expected.row(t))) << set->name << " token " << t;
      }
    }
}

TEST(Linear, ManyProductsOfMixedFormatsEqualSingles) {
  for (const kernels::KernelSet* set : supported_kernels()) {
    Context c(set, 3);
    const OwnedWeight q(DType::q4_k, 256, 128, 7), k(DType::f16, 256, 64, 8), v(DType::q6_k, 256, 33, 9);
    const Mat<float> x = random_mat(9, 256, 10), bias = random_mat(1, 64, 11);
    Mat<float> many[3] = {{9, 128}, {9, 64}, {9, 33}}, single[3] = {{9, 128}, {9, 64}, {9, 33}};
    const LinearOut outs[] = {{&q.weight, many[0].view(), nullptr},
                              {&k.weight, many[1].view(), bias.row(0)},
                              {&v.weight, many[2].view(), nullptr}};
    linear_many(c.ctx, activations_of(c.ctx, x.view(), {&q.weight, &k.weight, &v.weight}), outs);
    linear(c.ctx, q.weight, x.view(), single[0].view());
    linear(c.ctx, k.weight, x.view(), single[1].view(), bias.row(0));
    linear(c.ctx, v.weight, x.view(), single[2].view());
    for (int i = 0; i < 3; ++i) EXPECT_EQ(many[i].data, single[i].data) << set->name << " " << i;
  }
}

/// What a row is by the kernels alone, one step after the other.
struct Row {
  std::vector<float> x;
  std::vector<std::byte> q8;
};
Row coded(const kernels::KernelSet& set, std::vector<float> x) {
  const auto n = std::ssize(x);
  Row row{std::move(x), std::vector<std::byte>(static_cast<size_t>(set.q8_row_bytes(n)))};
  set.quantize_q8(row.x.data(), n, row.q8.data());
  return row;
}
void expect_row(const Activations& rows, int64_t t, const Row& expected, const std::string& what) {
  if (rows.x != nullptr) {
    EXPECT_TRUE(std::equal(expected.x.begin(), expected.x.end(), rows.x + t * rows.stride)) << what;
  }
  // A row ends before its bytes do: what is behind the last sum is never read.
  const auto n_bytes = static_cast<size_t>(kernels::Q8Row::n_used_bytes(rows.n_in));
  if (rows.q8 != nullptr) {
    EXPECT_EQ(std::memcmp(expected.q8.data(), rows.q8 + t * rows.q8_row_bytes, n_bytes), 0) << what;
  }
}

TEST(Activations, NormedAndGatedRowsHaveTheBitsOfSingleSteps) {
  // 416 hidden elements: the last task is not full. 600 tokens: more than one tile.
  constexpr int64_t kIn = 64, kHidden = 416;
  const OwnedWeight reads_floats(DType::f32, kIn, 32, 31), reads_codes(DType::q8_0, kIn, 32, 32);
  const OwnedWeight down_floats(DType::f16, kHidden, 32, 33), down_codes(DType::q4_0, kHidden, 32, 34);
  const Mat<float> norm = random_mat(1, kIn, 35), bias = random_mat(2, kHidden, 36);
  for (const kernels::KernelSet* set : supported_kernels())
    for (const DType dtype : {DType::f16, DType::q8_0})
      for (const int64_t n : {1, 3, 600}) {
        const std::string what =
            std::string(set->name) + " " + tensor_format(dtype).name + " " + std::to_string(n);
        const OwnedWeight gate(dtype, kIn, kHidden, 37), up(DType::q8_0, kIn, kHidden, 38);
        const Mat<float> x = random_mat(n, kIn, 39);
        const Normed input{x.view(), norm.row(0), 1e-5f};
        Context c(set, 3), steps(set, 1);

        Mat<float> normed(n, kIn), gated(n, kHidden), upped(n, kHidden);
        for (int64_t t = 0; t < n; ++t) set->rms_norm(x.row(t), norm.row(0), 1e-5f, normed.row(t), kIn);
        linear(steps.ctx, gate.weight, normed.view(), gated.view(), bias.row(0));
        linear(steps.ctx, up.weight, normed.view(), upped.view(), bias.row(1));

        for (const auto& [floats, codes] :
             {std::pair{true, false}, std::pair{false, true}, std::pair{true, true}}) {
          const Activations both = activations_of(c.ctx, input,
                                                  {floats ? &reads_floats.weight : &reads_codes.weight,
                                                   codes ? &reads_codes.weight : &reads_floats.weight});
          EXPECT_EQ(both.x != nullptr, floats);
          EXPECT_EQ(both.q8 != nullptr, codes);
          for (int64_t t = 0; t < n; ++t)
            expect_row(both, t, coded(*set, {normed.row(t), normed.row(t) + kIn}), what);

          const Activations in = activations_of(c.ctx, input, {&gate.weight, &up.weight});
          const Activations hidden = gated_linear(c.ctx, in, {&gate.weight, &up.weight, bias.row(0), bias.row(1)},
                                                  {floats ? &down_floats.weight : &down_codes.weight,
                                                   codes ? &down_codes.weight : &down_floats.weight});
          EXPECT_EQ(hidden.x != nullptr, floats);
          EXPECT_EQ(hidden.q8 != nullptr, codes);
          for (int64_t t = 0; t < n; ++t) {
            std::vector<float> y(kHidden);
            set->swiglu(gated.row(t), upped.row(t), y.data(), kHidden);
            expect_row(hidden, t, coded(*set, std::move(y)), what);
          }
        }
      }
}

TEST(Linear, PackedWeightsGiveTheSameBits) {
  for (const kernels::KernelSet* set : supported_kernels())
    for (const DType dtype : {DType::q8_0, DType::q4_0, DType::q4_k}) {
      if (!reads_packed(*set, dtype)) continue;
      // 2100 rows: tasks of several panels, and a last panel that is not full.
      const OwnedWeight w(dtype, 256, 2100, 21);
      const PackedWeight packed(w.weight);
      for (const int64_t n : {1, 3, 33}) {
        const Mat<float> x = random_mat(n, 256, 22), bias = random_mat(1, 2100, 23);
        Context one(set, 1), three(set, 3);
        Mat<float> expected(n, 2100), y(n, 2100);
        linear(one.ctx, w.weight, x.view(), expected.view(), bias.row(0));
        for (Context* c : {&one, &three}) {
          linear(c->ctx, packed.weight, x.view(), y.view(), bias.row(0));
          EXPECT_EQ(expected.data, y.data) << set->name << " " << tensor_format(dtype).name << " " << n;
        }
      }
    }
}

TEST(Linear, ReadsAndWritesStridedViews) {
  Context c;
  const OwnedWeight w(DType::f32, 32, 8, 12);
  Mat<float> x = random_mat(3, 40, 13), out(3, 20), expected(3, 8);
  std::fill(out.data.begin(), out.data.end(), 5.0f);
  Mat<float> dense(3, 32);
  for (int64_t t = 0; t < 3; ++t) std::copy(x.row(t), x.row(t) + 32, dense.row(t));
  linear(c.ctx, w.weight, dense.view(), expected.view());
  linear(c.ctx, w.weight, MatView<const float>(x.data.data(), 3, 32, 40),
         MatView<float>(out.data.data(), 3, 8, 20));
  for (int64_t t = 0; t < 3; ++t)
    for (int64_t r = 0; r < 20; ++r) EXPECT_EQ(out(t, r), r < 8 ? expected(t, r) : 5.0f);
}

TEST(Linear, NoTokensIsNoWork) {
  Context c;
  const OwnedWeight w(DType::q8_0, 32, 8, 14);
  Mat<float> x(0, 32), y(0, 8);
  linear(c.ctx, w.weight, x.view(), y.view());
  EXPECT_TRUE(y.data.empty());
}

TEST(Embed, GivesRowsOfTheTable) {
  for (const DType dtype : {DType::f32, DType::f16, DType::q4_0, DType::q6_k}) {
    Context c;
    const OwnedWeight table(dtype, 256, 11, 15);
    const std::vector<int32_t> ids = {10, 0, 3, 3};
    Mat<float> y(4, 256);
    embed(c.ctx, table.weight, ids, y.view());
    for (int64_t t = 0; t < 4; ++t)
      EXPECT_TRUE(std::equal(y.row(t), y.row(t) + 256, table.values.row(ids[static_cast<size_t>(t)]))) << t;
    if (!can_pack(dtype)) continue;
    const PackedWeight packed(table.weight);
    Mat<float> again(4, 256);
    embed(c.ctx, packed.weight, ids, again.view());
    EXPECT_EQ(again.data, y.data) << tensor_format(dtype).name;
  }
}

}  // namespace
}  // namespace sh::ops
