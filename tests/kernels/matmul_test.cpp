// SPDX-License-Identifier: MIT
#include <algorithm>
#include <cstring>
#include <map>

#include "kernels/kernel_testing.h"
#include "kernels/q8_row.h"
#include "tensor/dtype.h"
#include "tensor/packed.h"

namespace sh::kernels {
namespace {

/// The first n of a format's random weights. They are encoded once for all tests: the searches of some formats
/// take longer than the products, above all under an emulator.
const std::byte* random_weights(const TensorFormat& format, int64_t n) {
  static std::map<DType, std::vector<std::byte>> encoded;
  std::vector<std::byte>& bytes = encoded[format.dtype];
  const int64_t old_bytes = static_cast<int64_t>(bytes.size());
  const int64_t old_n = old_bytes / format.block_bytes * format.block_elements;
  if (n > old_n) {
    bytes.resize(static_cast<size_t>(row_bytes(format.dtype, n)));
    format.quantize(random_floats(n, 20, 0.5f).data() + old_n, n - old_n, bytes.data() + old_bytes);
  }
  return bytes.data();
}

/// A product to compute: random weights in a format, random activations in the form that the set wants.
struct Product {
  const KernelSet& set;
  const TensorFormat& format;
  int64_t n_rows, n_inner, n_cols;
  std::vector<float> x;                // [n_cols, n_inner]
  std::vector<std::byte> weights;      // [n_rows] rows
  std::vector<std::byte> activations;  // [n_cols] rows
  int64_t activation_row_bytes;

  Product(const KernelSet& set_, const TensorFormat& format_, int64_t n_rows_, int64_t n_inner_, int64_t n_cols_)
      : set(set_),
        format(format_),
        n_rows(n_rows_),
        n_inner(n_inner_),
        n_cols(n_cols_),
        x(random_floats(n_cols * n_inner, 21)) {
    weights.resize(static_cast<size_t>(n_rows * row_bytes(format.dtype, n_inner)));
    std::copy_n(random_weights(format, n_rows * n_inner), weights.size(), weights.begin());
    const bool is_float = set.weight_kernel(format.dtype).form == ActivationForm::f32;
    activation_row_bytes = is_float ? n_inner * static_cast<int64_t>(sizeof(float)) : set.q8_row_bytes(n_inner);
    activations.resize(static_cast<size_t>(n_cols * activation_row_bytes));
    for (int64_t c = 0; c < n_cols; ++c) {
      std::byte* row = activations.data() + c * activation_row_bytes;
      if (is_float)
        std::copy_n(reinterpret_cast<const std::byte*>(x.data() + c * n_inner), activation_row_bytes, row);
      else
        set.quantize_q8(x.data() + c * n_inner, n_inner, row);
    }
  }

  /// Columns [first, first + count) of rows [row_begin, row_end); what is not computed holds `untouched`.
  static constexpr float untouched = -777.0f;
  std::vector<float> run(int64_t row_begin, int64_t row_end, int64_t first, int64_t count) const {
    return run(set.weight_kernel(format.dtype).matmul, weights.data(), row_begin, row_end, first, count);
  }
  std::vector<float> run(void (*matmul)(const MatmulArgs&), const std::byte* from, int64_t row_begin,
                         int64_t row_end, int64_t first, int64_t count) const {
    const int64_t stride = n_rows + 3;
    std::vector<float> out(static_cast<size_t>(count * stride + 1), untouched);
    matmul({.weights = from,
            .weight_row_bytes = row_bytes(format.dtype, n_inner),
            .n_inner = n_inner,
            .row_begin = row_begin,
            .row_end = row_end,
            .activations = activations.data() + first * activation_row_bytes,
            .activation_row_bytes = activation_row_bytes,
            .n_cols = count,
            .out = out.data(),
            .out_stride = stride});
    return out;
  }
  std::vector<std::byte> packed() const {
    std::vector<std::byte> panels(static_cast<size_t>(packed_bytes(format.dtype, n_rows, n_inner)));
    const int64_t bytes = row_bytes(format.dtype, n_inner);
    for (int64_t row = 0; row < n_rows; row += kPackedRows)
      pack_panel(format.dtype, weights.data() + row * bytes, std::min(kPackedRows, n_rows - row), n_inner,
                 panels.data() + row * bytes);
    return panels;
  }

  /// Compares with sums in double of the decoded weights and activations.
  void expect_close(const std::vector<float>& out) const {
    std::vector<float> w(static_cast<size_t>(n_rows * n_inner)), decoded(static_cast<size_t>(n_inner));
    format.dequantize(weights.data(), n_rows * n_inner, w.data());
    for (int64_t c = 0; c < n_cols; ++c) {
      const float* column = x.data() + c * n_inner;
      if (set.weight_kernel(format.dtype).form == ActivationForm::q8) {
        const Q8Row q8 = Q8Row::at(activations.data() + c * activation_row_bytes, n_inner);
        for (int64_t i = 0; i < n_inner; ++i)
          decoded[static_cast<size_t>(i)] = q8.scale[i / kQ8Group] * static_cast<float>(q8.q[i]);
        column = decoded.data();
      }
      for (int64_t r = 0; r < n_rows; ++r) {
        double exact = 0, magnitude = 0;
        for (int64_t i = 0; i < n_inner; ++i) {
          const double product = static_cast<double>(w[static_cast<size_t>(r * n_inner + i)]) * column[i];
          exact += product;
          magnitude += std::fabs(product);
        }
        // Sums of n_inner terms (n eps of their magnitude, met only in theory). Codes and minimum are summed
        // apart, so that the parts of a group may be larger than its sum: at most 16 times for these formats and
        // inputs.
        const double bound = (static_cast<double>(n_inner) / 4 + 64) * kEps * magnitude;
        EXPECT_NEAR(out[static_cast<size_t>(c * (n_rows + 3) + r)], exact, bound)
            << set.name << ' ' << format.name << " row " << r << " column " << c << " n_inner " << n_inner;
      }
    }
  }
};

class Matmul : public EverySet {};
SH_FOR_EVERY_SET(Matmul);

TEST_P(Matmul, EveryFormatMatchesItsDecodedWeights) {
  for (const TensorFormat* format : tensor_formats()) {
    const int64_t step = std::max<int32_t>(format->block_elements, 1);
    for (int64_t n_blocks : {int64_t{1}, int64_t{3}, 1056 / step}) {
      const Product product(set(), *format, 37, n_blocks * step, 7);
      const auto out = product.run(0, 37, 0, 7);
      product.expect_close(out);
    }
  }
}

TEST_P(Matmul, FloatWeightsOfAnyInnerLength) {
  for (DType dtype : {DType::f32, DType::f16, DType::bf16})
    for (int64_t n_inner : edge_sizes())
      for (const int64_t n_columns : {3, 41}) {
        const Product product(set(), tensor_format(dtype), 5, n_inner, n_columns);
        product.expect_close(product.run(0, 5, 0, n_columns));
      }
}

TEST_P(Matmul, WritesOnlyTheRowsAsked) {
  for (DType dtype : {DType::f16, DType::q4_0, DType::q4_k}) {
    const Product product(set(), tensor_format(dtype), 70, 512, 3);
    const auto whole = product.run(0, 70, 0, 3);
    for (auto [begin, end] : {std::pair<int64_t, int64_t>{0, 0}, {0, 1}, {5, 22}, {31, 33}, {64, 70}}) {
      const auto part = product.run(begin, end, 0, 3);
      for (size_t i = 0; i < part.size(); ++i) {
        const int64_t row = static_cast<int64_t>(i) % 73;
        const bool is_asked = i + 1 < part.size() && row >= begin && row < end;
        EXPECT_EQ(part[i], is_asked ? whole[i] : Product::untouched)
            << "rows " << begin << " to " << end << " at " << i;
      }
    }
  }
}

TEST_P(Matmul, AColumnHasTheSameBitsWhateverElseIsInTheCall) {
  for (const TensorFormat* format : tensor_formats()) {
    const int64_t n_inner =
        2304;  // 9 superblocks: more than one chunk of every kernel, and no whole number of them
    const Product product(set(), *format, 35, n_inner, 44);
    const auto all = product.run(0, 35, 0, 44);
    const int64_t stride = 38;
    for (int64_t count : {1, 2, 3, 5, 8, 13, 41})
      for (int64_t first : {int64_t{0}, 44 - count}) {
        const auto some = product.run(0, 35, first, count);
        for (int64_t c = 0; c < count; ++c)
          EXPECT_EQ(0,
                    std::memcmp(some.data() + c * stride, all.data() + (first + c) * stride, 35 * sizeof(float)))
              << set().name << ' ' << format->name << ' ' << count << " columns from " << first;
      }
    const auto one_row = product.run(20, 21, 6, 1);
    EXPECT_EQ(one_row[20], all[6 * stride + 20]) << format->name;
  }
}

TEST_P(Matmul, PackedWeightsGiveTheSameBits) {
  int n_compared = 0;
  for (const TensorFormat* format : tensor_formats()) {
    const auto matmul_packed = set().weight_kernel(format->dtype).matmul_packed;
    if (matmul_packed == nullptr) continue;
    for (const int64_t n_inner : {int64_t{format->block_elements}, int64_t{2304}})
      for (const int64_t n_rows : {1, 31, 77}) {
        const Product product(set(), *format, n_rows, n_inner, 17);
        const std::vector<std::byte> panels = product.packed();
        for (const int64_t count : {1, 2, 4, 5, 8, 9, 17}) {
          const auto expected = product.run(0, n_rows, 0, count);
          const auto got = product.run(matmul_packed, panels.data(), 0, n_rows, 0, count);
          EXPECT_EQ(0, std::memcmp(expected.data(), got.data(), got.size() * sizeof(float)))
              << set().name << ' ' << format->name << ": " << n_rows << " x " << n_inner << " by " << count;
          ++n_compared;
        }
      }
  }
  const bool is_generic = &set() == &generic_set();
  EXPECT_EQ(n_compared, is_generic ? 0 : 13 * 2 * 3 * 7) << "every quantised format has a packed product";
}

TEST_P(Matmul, PackedProductsWriteOnlyTheRowsAsked) {
  for (DType dtype : {DType::q8_0, DType::q4_k, DType::q6_k}) {
    const auto matmul_packed = set().weight_kernel(dtype).matmul_packed;
    if (matmul_packed == nullptr) continue;
    const Product product(set(), tensor_format(dtype), 110, 512, 8);
    const std::vector<std::byte> panels = product.packed();
    const auto whole = product.run(0, 110, 0, 8);
    for (const int64_t count : {1, 3, 8})
      for (auto [begin, end] :
           {std::pair<int64_t, int64_t>{0, 0}, {32, 32}, {0, 5}, {32, 64}, {64, 101}, {96, 110}}) {
        const auto part = product.run(matmul_packed, panels.data(), begin, end, 0, count);
        for (size_t i = 0; i < part.size(); ++i) {
          const int64_t row = static_cast<int64_t>(i) % 113;
          const bool is_asked = i + 1 < part.size() && row >= begin && row < end;
          EXPECT_EQ(part[i], is_asked ? whole[i] : Product::untouched)
              << "rows " << begin << " to " << end << " at " << i;
        }
      }
  }
}

TEST_P(Matmul, NoColumnsAndNoRowsAreFine) {
  for (DType dtype : {DType::f32, DType::q8_0}) {
    const Product product(set(), tensor_format(dtype), 4, 64, 2);
    EXPECT_EQ(product.run(0, 4, 0, 0).front(), Product::untouched);
    EXPECT_EQ(product.run(2, 2, 0, 2).front(), Product::untouched);
  }
}

TEST_P(Matmul, ExtremeCodesDoNotSaturate) {
  // Every weight at the end of the range and every activation at ±127: the largest sums that a byte product forms.
  for (const TensorFormat* format : tensor_formats()) {
    if (format->block_elements == 1) continue;
    const int64_t n = 2 * format->block_elements;
    Product product(set(), *format, 33, n, 1);
    for (float sign : {1.0f, -1.0f}) {
      const std::vector<float> w(static_cast<size_t>(n), sign);
      const int64_t bytes = row_bytes(format->dtype, n);
      format->quantize(w.data(), n, product.weights.data());
      for (int64_t r = 1; r < 33; ++r)
        std::copy_n(product.weights.begin(), bytes, product.weights.begin() + r * bytes);
      for (size_t i = 0; i < product.x.size(); ++i) product.x[i] = 1.0f;
      set().quantize_q8(product.x.data(), n, product.activations.data());
      product.expect_close(product.run(0, 33, 0, 1));
    }
  }
}

}  // namespace
}  // namespace sh::kernels
