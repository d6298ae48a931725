// SPDX-License-Identifier: MIT
#include "ops/product.h"

namespace sh::ops {

Forms forms_of(const OpContext& ctx, std::initializer_list<const Weight*> readers) {
  Forms forms;
  for (const Weight* reader : readers) {
    const bool is_q8 = ctx.kernels->weight_kernel(reader->dtype).form == kernels::ActivationForm::q8;
    (is_q8 ? forms.q8 : forms.f32) = true;
  }
  return forms;
}

Activations make_rows(const OpContext& ctx, ActivationBuffer& buffer, int64_t n, int64_t n_in, Forms forms) {
  Activations rows{.n = n, .n_in = n_in};
  if (forms.f32) {
    rows.x = buffer.x.grow(static_cast<size_t>(n * n_in));
    rows.stride = n_in;
  }
  if (forms.q8) {
    rows.q8_row_bytes = ctx.kernels->q8_row_bytes(n_in);
    rows.q8 = buffer.q8.grow(static_cast<size_t>(n * rows.q8_row_bytes));
  }
  return rows;
}

void multiply_part(const OpContext& ctx, const ProductPart& part, const Activations& x, float* out,
                   int64_t out_stride, const float* bias) {
  const Weight& w = *part.weight;
  const kernels::WeightKernel kernel = ctx.kernels->weight_kernel(w.dtype);
  const bool is_q8 = kernel.form == kernels::ActivationForm::q8;
  const int64_t activation_bytes = is_q8 ? x.q8_row_bytes : x.stride * static_cast<int64_t>(sizeof(float));
  const std::byte* activations = is_q8 ? x.q8 : reinterpret_cast<const std::byte*>(x.x);
  SH_CHECK(activations != nullptr, "activations that were not made for this weight");
  const int64_t step = is_q8 ? kQ8TokensPerTile : kFloatTokensPerTile;
  const auto product = w.is_packed ? kernel.matmul_packed : kernel.matmul;
  SH_CHECK(product != nullptr, "packed weights for a kernel set that does not read them");
  const int64_t n_rows = part.row_end - part.row_begin;
  for (int64_t tile = 0; tile < part.n; tile += step) {
    const int64_t n_cols = std::min(step, part.n - tile);
    float* tile_out = out + tile * out_stride;
    product({.weights = w.expert(part.expert) + part.row_begin * w.row_bytes(),
             .weight_row_bytes = w.row_bytes(),
             .n_inner = w.n_in,
             .row_begin = 0,
             .row_end = n_rows,
             .activations = activations + (part.first + tile) * activation_bytes,
             .activation_row_bytes = activation_bytes,
             .n_cols = n_cols,
             .out = tile_out,
             .out_stride = out_stride});
    if (bias == nullptr) continue;
    for (int64_t c = 0; c < n_cols; ++c) {
      float* y = tile_out + c * out_stride;
      ctx.kernels->add(y, bias + part.row_begin, y, n_rows);
    }
  }
}

int64_t gated_scratch_floats(int64_t n_rows, int64_t n) {
  return 2 * n_rows * std::min(n, kQ8TokensPerTile);
}

void gated_part(const OpContext& ctx, const ProductPart& part, const GatedWeights& w, const Activations& x,
                ActivationBuffer& buffer, const Activations& rows, float* scratch) {
  const int64_t n_rows = part.row_end - part.row_begin;
  for (int64_t first = part.first, end = first + part.n; first < end; first += kQ8TokensPerTile) {
    ProductPart tile = part;
    tile.first = first;
    tile.n = std::min(kQ8TokensPerTile, end - first);
    float *gate = scratch, *up = scratch + tile.n * n_rows;
    multiply_part(ctx, tile, x, gate, n_rows, w.gate_bias);
    tile.weight = w.up;
    multiply_part(ctx, tile, x, up, n_rows, w.up_bias);
    for (int64_t c = 0; c < tile.n; ++c, gate += n_rows, up += n_rows) {
      float* y = rows.x == nullptr ? gate : buffer.x.data() + (first + c) * rows.stride + part.row_begin;
      ctx.kernels->swiglu(gate, up, y, n_rows);
      if (rows.q8 != nullptr)
        ctx.kernels->quantize_q8_part(y, part.row_begin, part.row_end, rows.n_in,
                                      buffer.q8.data() + (first + c) * rows.q8_row_bytes);
    }
  }
}

}  // namespace sh::ops
