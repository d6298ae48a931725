// SPDX-License-Identifier: MIT
// The kernels that a token's time goes to: weight products for one and for many columns, attention for one and for
// many queries, the float products of the compaction solvers. SHORTHAND_KERNELS picks the set; read the figures
// against machine_bench (scripts/roofline_table.py does).
#include <benchmark/benchmark.h>

#include <cmath>
#include <cstring>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "base/aligned.h"
#include "base/env.h"
#include "base/rng.h"
#include "kernels/kernel_set.h"
#include "tensor/dtype.h"
#include "tensor/packed.h"
#include "tools/bandwidth.h"

namespace sh::kernels {
namespace {

const KernelSet& active_set() {
  static const KernelSet* set = choose_kernels(env::kernels().value_or("")).value();
  return *set;
}

/// Encoded random numbers: a stretch of 4096 elements, repeated. Speed does not depend on the values.
AlignedBuffer<std::byte> random_rows(DType dtype, int64_t n_elements) {
  Rng rng(1);
  std::vector<float> x(4096);
  for (float& v : x) v = static_cast<float>(rng.next_normal());
  std::vector<std::byte> stretch(static_cast<size_t>(row_bytes(dtype, 4096)));
  tensor_format(dtype).quantize(x.data(), 4096, stretch.data());
  AlignedBuffer<std::byte> rows(static_cast<size_t>(row_bytes(dtype, (n_elements + 4095) / 4096 * 4096)));
  for (size_t at = 0; at < rows.n(); at += stretch.size())
    std::memcpy(rows.data() + at, stretch.data(), stretch.size());
  return rows;
}

const float* as_floats(const AlignedBuffer<std::byte>& buffer) {
  return reinterpret_cast<const float*>(buffer.data());
}

/// Bytes that no cache holds.
int64_t beyond_caches() {
  static const int64_t n_bytes = tools::bandwidth_buffer_bytes();
  return n_bytes;
}

/// Rows of n_inner weights that together are beyond the caches; whole panels for two threads.
int64_t rows_beyond_caches(DType dtype, int64_t n_inner) {
  const int64_t step = 2 * kPackedRows;
  return (beyond_caches() / row_bytes(dtype, n_inner) + step - 1) / step * step;
}

/// One product of [n_rows, n_inner] weights with n_cols columns; threads take equal parts of the rows.
void matmul(benchmark::State& state, DType dtype, bool is_packed, int64_t n_rows, int64_t n_inner, int64_t n_cols) {
  static AlignedBuffer<std::byte> weights, activations;
  static AlignedBuffer<float> out;
  static std::tuple<DType, bool, int64_t, int64_t> held;  // what `weights` are: the library calls again to find
                                                          // how often to run, and they take longest
  const WeightKernel kernel = active_set().weight_kernel(dtype);
  const int64_t x_bytes = kernel.form == ActivationForm::f32 ? n_inner * 4 : active_set().q8_row_bytes(n_inner);
  if (state.thread_index() == 0) {
    const auto wanted = std::make_tuple(dtype, is_packed, n_rows, n_inner);
    if (std::exchange(held, wanted) != wanted) {
      weights = random_rows(dtype, n_rows * n_inner);
      if (is_packed) {
        AlignedBuffer<std::byte> packed(static_cast<size_t>(packed_bytes(dtype, n_rows, n_inner)));
        const int64_t bytes = row_bytes(dtype, n_inner);
        for (int64_t row = 0; row < n_rows; row += kPackedRows)
          pack_panel(dtype, weights.data() + row * bytes, kPackedRows, n_inner, packed.data() + row * bytes);
        weights = std::move(packed);
      }
    }
    const AlignedBuffer<std::byte> x = random_rows(DType::f32, n_cols * n_inner);
    activations = AlignedBuffer<std::byte>(static_cast<size_t>(n_cols * x_bytes));
    for (int64_t c = 0; c < n_cols; ++c) {
      std::byte* row = activations.data() + c * x_bytes;
      if (kernel.form == ActivationForm::f32)
        std::memcpy(row, as_floats(x) + c * n_inner, static_cast<size_t>(x_bytes));
      else
        active_set().quantize_q8(as_floats(x) + c * n_inner, n_inner, row);
    }
    out = AlignedBuffer<float>(static_cast<size_t>(n_rows * n_cols));
  }
  const auto product = is_packed ? kernel.matmul_packed : kernel.matmul;
  const int64_t part = n_rows / state.threads();
  for (auto _ : state) {
    product({.weights = weights.data(),
                   .weight_row_bytes = row_bytes(dtype, n_inner),
                   .n_inner = n_inner,
                   .row_begin = part * state.thread_index(),
                   .row_end = part * (state.thread_index() + 1),
                   .activations = activations.data(),
                   .activation_row_bytes = x_bytes,
                   .n_cols = n_cols,
                   .out = out.data(),
                   .out_stride = n_rows});
    benchmark::ClobberMemory();
  }
  state.SetBytesProcessed(state.iterations() * part * row_bytes(dtype, n_inner));
  state.counters["GFLOP/s"] = benchmark::Counter(
      static_cast<double>(state.iterations() * part * n_inner * n_cols) * 2e-9, benchmark::Counter::kIsRate);
  state.SetLabel(kernel.form == ActivationForm::f32 ? "multiply-adds" : "byte products");
}

struct AttendShape {
  DType dtype;
  int32_t n_rows, n_queries, width = 128;
  bool has_bias = false;
  /// The queries are the last positions of one head; else all stand behind its rows, and each run takes the next
  /// head.
  bool is_prefill = false;
};

/// Attention over one KV head, in the tiles that ops/attend takes for a group of one.
void attend(benchmark::State& state, const AttendShape& shape) {
  constexpr int32_t kTileQueries = 128;
  const auto [dtype, n_rows, n_queries, width, has_bias, is_prefill] = shape;
  const int64_t bytes = row_bytes(dtype, width), head_bytes = bytes * n_rows;
  const int64_t n_heads = is_prefill ? 1 : std::max<int64_t>(1, beyond_caches() / (2 * head_bytes));
  const AlignedBuffer<std::byte> keys = random_rows(dtype, n_heads * n_rows * width),
                                 values = random_rows(dtype, n_heads * n_rows * width);
  const AlignedBuffer<std::byte> queries = random_rows(DType::f32, n_queries * width);
  std::vector<float> bias(static_cast<size_t>(n_rows), 0.5f), out(static_cast<size_t>(n_queries * width));
  std::vector<float> lse(static_cast<size_t>(n_queries));
  AlignedBuffer<float> scratch(static_cast<size_t>(attend_scratch_floats(kTileQueries, width, width)));
  std::vector<int32_t> query_pos;
  double n_pairs = 0;  // of queries and the rows that they see
  for (int32_t q = 0; q < n_queries; ++q) {
    query_pos.push_back(is_prefill ? n_rows - n_queries + q : n_rows);
    n_pairs += std::min(n_rows, query_pos.back() + 1);
  }
  int64_t head = 0;
  std::vector<KvBlockView> blocks;
  for (auto _ : state) {
    for (int32_t q = 0; q < n_queries; q += kTileQueries) {
      const int32_t n_tile = std::min(kTileQueries, n_queries - q);
      const int32_t row_end = std::min(n_rows, query_pos[static_cast<size_t>(q + n_tile - 1)] + 1);
      blocks.clear();
      for (int32_t row = 0; row < row_end; row += kMaxBlockRows) {
        const int64_t at = head * head_bytes + row * bytes;
        blocks.push_back({keys.data() + at, values.data() + at, has_bias ? bias.data() + row : nullptr, nullptr,
                          row, kMaxBlockRows, 0, n_tile, row / kMaxBlockRows});
      }
      active_set().attend({.key_type = dtype,
                           .value_type = dtype,
                           .key_width = width,
                           .value_width = width,
                           .n_queries = n_tile,
                           .queries = as_floats(queries) + q * width,
                           .query_stride = width,
                           .query_pos = query_pos.data() + q,
                           .scale = 1.0f / std::sqrt(static_cast<float>(width)),
                           .softcap = 0.0f,
                           .window = 0,
                           .blocks = blocks,
                           .out = out.data() + q * width,
                           .out_stride = width,
                           .lse = lse.data() + q,
                           .scratch = scratch.data()});
    }
    head = (head + 1) % n_heads;
    benchmark::ClobberMemory();
  }
  state.SetBytesProcessed(state.iterations() * 2 * head_bytes);
  state.counters["GFLOP/s"] = benchmark::Counter(static_cast<double>(state.iterations()) * n_pairs * width * 4e-9,
                                                 benchmark::Counter::kIsRate);
}

/// "attend_decode/q8_0/rows:4096/queries:4/bias"; narrow heads say their width.
void register_attend(const AttendShape& shape) {
  std::string name = shape.is_prefill ? "attend_prefill/" : "attend_decode/";
  name += tensor_format(shape.dtype).name;
  name += "/rows:" + std::to_string(shape.n_rows) + "/queries:" + std::to_string(shape.n_queries);
  if (shape.width != 128) name += "/width:" + std::to_string(shape.width);
  if (shape.has_bias) name += "/bias";
  benchmark::RegisterBenchmark(name.c_str(), [=](benchmark::State& s) { attend(s, shape); });
}

void gemm(benchmark::State& state, void (*product)(const GemmArgs&), int64_t m, int64_t n, int64_t k,
          int64_t a_stride, int64_t b_stride) {
  const AlignedBuffer<std::byte> a = random_rows(DType::f32, m * k), b = random_rows(DType::f32, n * k);
  AlignedBuffer<float> c(static_cast<size_t>(m * n));
  for (auto _ : state) {
    product({.m = m,
             .n = n,
             .k = k,
             .a = as_floats(a),
             .a_stride = a_stride,
             .b = as_floats(b),
             .b_stride = b_stride,
             .c = c.data(),
             .c_stride = n});
    benchmark::ClobberMemory();
  }
  state.counters["GFLOP/s"] =
      benchmark::Counter(static_cast<double>(state.iterations() * m * n * k) * 2e-9, benchmark::Counter::kIsRate);
}

void register_all() {
  for (const TensorFormat* format : tensor_formats())
    for (bool is_packed : {false, true}) {
      const DType dtype = format->dtype;
      if (is_packed && active_set().weight_kernel(dtype).matmul_packed == nullptr) continue;
      const std::string name = std::string(format->name) + (is_packed ? "/packed" : "");
      for (int threads : {1, 2})
        benchmark::RegisterBenchmark(
            ("decode/" + name).c_str(),
            [=](benchmark::State& s) { matmul(s, dtype, is_packed, rows_beyond_caches(dtype, 4096), 4096, 1); })
            ->Threads(threads)
            ->UseRealTime();
      // Weights that stay in the second cache: what the arithmetic takes where memory is no hindrance.
      benchmark::RegisterBenchmark(("cached/" + name).c_str(),
                                   [=](benchmark::State& s) { matmul(s, dtype, is_packed, 64, 4096, 1); });
      for (int64_t n_cols : {2, 4, 8})
        benchmark::RegisterBenchmark(
            ("decode" + std::to_string(n_cols) + "/" + name).c_str(),
            [=](benchmark::State& s) { matmul(s, dtype, is_packed, 16384, 4096, n_cols); });
      benchmark::RegisterBenchmark(("prefill/" + name).c_str(),
                                   [=](benchmark::State& s) { matmul(s, dtype, is_packed, 1024, 4096, 512); });
    }
  for (bool has_bias : {false, true}) {
    for (DType dtype : {DType::f16, DType::q8_0, DType::q4_0}) {
      for (int32_t n_rows : {4096, 8192, 16384, 65536}) {
        register_attend({.dtype = dtype, .n_rows = n_rows, .n_queries = 4, .has_bias = has_bias});
        register_attend(
            {.dtype = dtype, .n_rows = n_rows, .n_queries = 512, .has_bias = has_bias, .is_prefill = true});
      }
      for (int32_t n_queries : {1, 2, 8})
        register_attend({.dtype = dtype, .n_rows = 16384, .n_queries = n_queries, .has_bias = has_bias});
      register_attend({.dtype = dtype,
                       .n_rows = 4096,
                       .n_queries = 512,
                       .width = 64,
                       .has_bias = has_bias,
                       .is_prefill = true});
    }
    for (DType dtype : {DType::f32, DType::bf16}) {
      register_attend({.dtype = dtype, .n_rows = 16384, .n_queries = 4, .has_bias = has_bias});
      register_attend(
          {.dtype = dtype, .n_rows = 4096, .n_queries = 512, .has_bias = has_bias, .is_prefill = true});
    }
  }
  benchmark::RegisterBenchmark("gemm_nt/4096x1024x64",
                               [](benchmark::State& s) { gemm(s, active_set().gemm_nt, 4096, 1024, 64, 64, 64); });
  benchmark::RegisterBenchmark("gemm_nt/1024x1024x1024", [](benchmark::State& s) {
    gemm(s, active_set().gemm_nt, 1024, 1024, 1024, 1024, 1024);
  });
  benchmark::RegisterBenchmark("gemm_nn/1024x1024x1024", [](benchmark::State& s) {
    gemm(s, active_set().gemm_nn, 1024, 1024, 1024, 1024, 1024);
  });
  benchmark::RegisterBenchmark("gemm_tn/512x512x4096", [](benchmark::State& s) {
    gemm(s, active_set().gemm_tn, 512, 512, 4096, 512, 512);
  });
}

[[maybe_unused]] const bool is_registered = (register_all(), true);

}  // namespace
}  // namespace sh::kernels
