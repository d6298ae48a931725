// SPDX-License-Identifier: MIT
// The set for any CPU: plain loops over the reference codecs. Slow, short, and what the tests hold the other sets
// against.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include "base/check.h"
#include "kernels/kernel_set.h"
#include "kernels/q8_row.h"

namespace sh::kernels {
namespace {

constexpr int64_t kChunk = 256;  // a multiple of every format's block
constexpr float kMinusInf = -std::numeric_limits<float>::infinity();

bool supported() {
  return true;
}

float dot(const float* a, const float* b, int64_t n) {
  float sum = 0.0f;
  for (int64_t i = 0; i < n; ++i) sum += a[i] * b[i];
  return sum;
}

/// Decodes a chunk of W once and multiplies it with every column. The order of a sum is that of k, chunk by chunk.
template <DType kType, bool kQuantised>
void matmul(const MatmulArgs& args) {
  const TensorFormat& format = tensor_format(kType);
  float weights[kChunk];
  float activations[kChunk];
  for (int64_t r = args.row_begin; r < args.row_end; ++r) {
    const std::byte* row = args.weights + r * args.weight_row_bytes;
    for (int64_t c = 0; c < args.n_cols; ++c) args.out[c * args.out_stride + r] = 0.0f;
    for (int64_t k = 0; k < args.n_inner; k += kChunk) {
      const int64_t n = std::min(kChunk, args.n_inner - k);
      format.dequantize(row + k / format.block_elements * format.block_bytes, n, weights);
      for (int64_t c = 0; c < args.n_cols; ++c) {
        const std::byte* column = args.activations + c * args.activation_row_bytes;
        const float* x = reinterpret_cast<const float*>(column) + k;
        if constexpr (kQuantised) {
          const Q8Row q8 = Q8Row::at(column, args.n_inner);
          for (int64_t i = 0; i < n; ++i)
            activations[i] = q8.scale[(k + i) / kQ8Group] * static_cast<float>(q8.q[k + i]);
          x = activations;
        }
        args.out[c * args.out_stride + r] += dot(weights, x, n);
      }
    }
  }
}

template <DType kType>
constexpr WeightKernel float_kernel{ActivationForm::f32, matmul<kType, false>};
template <DType kType>
constexpr WeightKernel quantised_kernel{ActivationForm::q8, matmul<kType, true>};

WeightKernel weight_kernel(DType dtype) {
  switch (dtype) {
    case DType::f32:
      return float_kernel<DType::f32>;
    case DType::f16:
      return float_kernel<DType::f16>;
    case DType::bf16:
      return float_kernel<DType::bf16>;
    case DType::q4_0:
      return quantised_kernel<DType::q4_0>;
    case DType::q4_1:
      return quantised_kernel<DType::q4_1>;
    case DType::q5_0:
      return quantised_kernel<DType::q5_0>;
    case DType::q5_1:
      return quantised_kernel<DType::q5_1>;
    case DType::q8_0:
      return quantised_kernel<DType::q8_0>;
    case DType::q2_k:
      return quantised_kernel<DType::q2_k>;
    case DType::q3_k:
      return quantised_kernel<DType::q3_k>;
    case DType::q4_k:
      return quantised_kernel<DType::q4_k>;
    case DType::q5_k:
      return quantised_kernel<DType::q5_k>;
    case DType::q6_k:
      return quantised_kernel<DType::q6_k>;
    case DType::iq4_nl:
      return quantised_kernel<DType::iq4_nl>;
    case DType::iq4_xs:
      return quantised_kernel<DType::iq4_xs>;
    case DType::mxfp4:
      return quantised_kernel<DType::mxfp4>;
  }
  SH_CHECK(false, "a DType that no file can hold");
}

/// Scale amax / 127, values rounded to nearest even. A group of zeros, or of numbers too small to divide by, gets
/// scale 0.
void quantize_q8_part(const float* x, int64_t begin, int64_t end, int64_t n, std::byte* out) {
  const Q8RowOut row = Q8RowOut::at(out, n);
  const float* in = x;
  for (int64_t g = begin / kQ8Group; g < end / kQ8Group; ++g, in += kQ8Group) {
    float amax = 0.0f;
    for (int64_t i = 0; i < kQ8Group; ++i) amax = std::max(amax, std::fabs(in[i]));
    const float inverse = amax > kQ8MinAmax ? 127.0f / amax : 0.0f;
    row.scale[g] = amax > kQ8MinAmax ? amax / 127.0f : 0.0f;
    for (int64_t i = 0; i < kQ8Group; ++i) {
      const float rounded = std::nearbyint(in[i] * inverse);
      row.q[g * kQ8Group + i] = rounded >= -127.0f && rounded <= 127.0f ? static_cast<int8_t>(rounded) : int8_t{0};
    }
    row.finish_group(g);
  }
}

void add(const float* a, const float* b, float* out, int64_t n) {
  for (int64_t i = 0; i < n; ++i) out[i] = a[i] + b[i];
}

void axpy(float alpha, const float* x, float* y, int64_t n) {
  for (int64_t i = 0; i < n; ++i) y[i] += alpha * x[i];
}

void rms_norm(const float* x, const float* weight, float eps, float* y, int64_t n) {
  double squares = 0.0;
  for (int64_t i = 0; i < n; ++i) squares += static_cast<double>(x[i]) * x[i];
  const float factor =
      static_cast<float>(1.0 / std::sqrt(squares / static_cast<double>(std::max<int64_t>(n, 1)) + eps));
  for (int64_t i = 0; i < n; ++i) y[i] = x[i] * factor * (weight != nullptr ? weight[i] : 1.0f);
}

void swiglu(const float* gate, const float* up, float* y, int64_t n) {
  for (int64_t i = 0; i < n; ++i) y[i] = gate[i] / (1.0f + std::exp(-gate[i])) * up[i];
}

float exp_sum(float* x, float shift, int64_t n) {
  double sum = 0.0;
  for (int64_t i = 0; i < n; ++i) {
    x[i] = x[i] == kMinusInf ? 0.0f : std::exp(x[i] - shift);
    sum += x[i];
  }
  return static_cast<float>(sum);
}

float max_of(const float* x, int64_t n) {
  float best = kMinusInf;
  for (int64_t i = 0; i < n; ++i) best = std::max(best, x[i]);
  return best;
}

/// Rotates the pair (*a, *b).
void rotate(float* a, float* b, float cos, float sin) {
  const float x = *a;
  const float y = *b;
  *a = x * cos - y * sin;
  *b = x * sin + y * cos;
}

void rope_adjacent(float* x, const float* cos, const float* sin, int64_t n_pairs) {
  for (int64_t i = 0; i < n_pairs; ++i) rotate(x + 2 * i, x + 2 * i + 1, cos[i], sin[i]);
}

void rope_halves(float* x, const float* cos, const float* sin, int64_t n_pairs) {
  for (int64_t i = 0; i < n_pairs; ++i) rotate(x + i, x + n_pairs + i, cos[i], sin[i]);
}

/// Element (i, p) of op(A) is a[i * a_row + p * a_inner]; the same for op(B).
void gemm(const GemmArgs& args, int64_t a_row, int64_t a_inner, int64_t b_column, int64_t b_inner) {
  for (int64_t i = 0; i < args.m; ++i)
    for (int64_t j = 0; j < args.n; ++j) {
      float sum = 0.0f;
      for (int64_t p = 0; p < args.k; ++p)
        sum += args.a[i * a_row + p * a_inner] * args.b[j * b_column + p * b_inner];
      float& c = args.c[i * args.c_stride + j];
      c = (args.accumulate ? c : 0.0f) + args.alpha * sum;
    }
}

void gemm_nt(const GemmArgs& args) {
  gemm(args, args.a_stride, 1, args.b_stride, 1);
}
void gemm_nn(const GemmArgs& args) {
  gemm(args, args.a_stride, 1, 1, args.b_stride);
}
void gemm_tn(const GemmArgs& args) {
  gemm(args, 1, args.a_stride, 1, args.b_stride);
}

void encode_row(DType dtype, const float* x, int64_t n, std::byte* out) {
  tensor_format(dtype).quantize(x, n, out);
}
void decode_row(DType dtype, const std::byte* row, int64_t n, float* out) {
  tensor_format(dtype).dequantize(row, n, out);
}

struct QueryState {
  float max;
  float sum;
};

bool is_visible(const AttendTile& tile, const KvBlockView& block, int32_t row, int32_t query) {
  const int32_t pos = block.pos != nullptr ? block.pos[row] : block.first_pos + row;
  const int32_t query_pos = tile.query_pos[query];
  return pos <= query_pos && (tile.window == 0 || query_pos - pos < tile.window);
}

/// One online-softmax step: the rows of a block join a query's running maximum, sum and output.
void attend_block(const AttendTile& tile, const KvBlockView& block, const float* keys, const float* values,
                  int32_t query, QueryState& state) {
  float scores[kMaxBlockRows];
  float block_max = kMinusInf;
  for (int32_t r = 0; r < block.n_rows; ++r) {
    scores[r] = kMinusInf;
    if (!is_visible(tile, block, r, query)) continue;
    float score =
        tile.scale * dot(tile.queries + query * tile.query_stride, keys + r * tile.key_width, tile.key_width);
    if (tile.softcap > 0.0f) score = tile.softcap * std::tanh(score / tile.softcap);
    scores[r] = score + (block.bias != nullptr ? block.bias[r] : 0.0f);
    block_max = std::max(block_max, scores[r]);
  }
  if (block_max == kMinusInf) return;
  const float new_max = std::max(state.max, block_max);
  const float factor = std::exp(state.max - new_max);
  float* out = tile.out + query * tile.out_stride;
  state.max = new_max;
  state.sum *= factor;
  for (int32_t i = 0; i < tile.value_width; ++i) out[i] *= factor;
  for (int32_t r = 0; r < block.n_rows; ++r) {
    const float weight = std::exp(scores[r] - new_max);
    state.sum += weight;
    axpy(weight, values + r * tile.value_width, out, tile.value_width);
  }
}

void attend(const AttendTile& tile) {
  float* keys = tile.scratch;
  float* values = keys + kMaxBlockRows * tile.key_width;
  QueryState* states = reinterpret_cast<QueryState*>(values + kMaxBlockRows * tile.value_width);
  for (int32_t q = 0; q < tile.n_queries; ++q) {
    states[q] = {kMinusInf, 0.0f};
    std::fill_n(tile.out + q * tile.out_stride, tile.value_width, 0.0f);
  }
  for (const KvBlockView& block : tile.blocks) {
    SH_CHECK(block.n_rows <= kMaxBlockRows, "a block has more rows than attention takes");
    decode_row(tile.key_type, block.keys, int64_t{block.n_rows} * tile.key_width, keys);
    decode_row(tile.value_type, block.values, int64_t{block.n_rows} * tile.value_width, values);
    for (int32_t q = block.query_begin; q < block.query_end; ++q)
      attend_block(tile, block, keys, values, q, states[q]);
  }
  for (int32_t q = 0; q < tile.n_queries; ++q) {
    const QueryState& state = states[q];
    float* out = tile.out + q * tile.out_stride;
    if (state.sum > 0.0f)
      for (int32_t i = 0; i < tile.value_width; ++i) out[i] /= state.sum;
    if (tile.lse != nullptr) tile.lse[q] = state.sum > 0.0f ? state.max + std::log(state.sum) : kMinusInf;
  }
}

}  // namespace

extern const KernelSet targets_generic;
const KernelSet targets_generic = {
    .name = "generic",
    .rank = 0,
    .needs = "",
    .supported = supported,
    .weight_kernel = weight_kernel,
    .q8_row_bytes = Q8Row::n_bytes,
    .quantize_q8_part = quantize_q8_part,
    .dot = dot,
    .add = add,
    .axpy = axpy,
    .rms_norm = rms_norm,
    .swiglu = swiglu,
    .exp_sum = exp_sum,
    .max = max_of,
    .rope_adjacent = rope_adjacent,
    .rope_halves = rope_halves,
    .gemm_nt = gemm_nt,
    .gemm_nn = gemm_nn,
    .gemm_tn = gemm_tn,
    .encode_row = encode_row,
    .decode_row = decode_row,
    .attend = attend,
};

}  // namespace sh::kernels
