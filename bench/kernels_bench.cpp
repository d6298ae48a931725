// SPDX-License-Identifier: MIT
// The kernels that a token's time goes to: weight products for one and for many columns, attention for one and for
// many queries, the float products of the compaction solvers. SHORTHAND_KERNELS picks the set; read the figures
// against machine_bench.
#include <benchmark/benchmark.h>

#include <cmath>
#include <cstring>
#include <string>
#include <vector>

#include "base/aligned.h"
#include "base/env.h"
#include "base/rng.h"
#include "kernels/kernel_set.h"
#include "tensor/dtype.h"
#include "tensor/packed.h"

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

/// One product of [n_rows, n_inner] weights with n_cols columns; threads take equal parts of the rows.
void matmul(benchmark::State& state, DType dtype, bool is_packed, int64_t n_rows, int64_t n_inner, int64_t n_cols) {
  static AlignedBuffer<std::byte> weights, activations;
  static AlignedBuffer<float> out;
  const WeightKernel kernel = active_set().weight_kernel(dtype);
  const int64_t x_bytes = kernel.form == ActivationForm::f32 ? n_inner * 4 : active_set().q8_row_bytes(n_inner);
  if (state.thread_index() == 0) {
    weights = random_rows(dtype, n_rows * n_inner);
    if (is_packed) {
      AlignedBuffer<std::byte> packed(static_cast<size_t>(packed_bytes(dtype, n_rows, n_inner)));
      const int64_t bytes = row_bytes(dtype, n_inner);
      for (int64_t row = 0; row < n_rows; row += kPackedRows)
        pack_panel(dtype, weights.data() + row * bytes, kPackedRows, n_inner, packed.data() + row * bytes);
      weights = std::move(packed);
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
}

/// Attention of n_queries queries of one KV head over `depth` rows. Decode: all queries stand after them, a new
/// head each time. Prefill: the queries are the last positions of one head.
void attend(benchmark::State& state, DType dtype, int32_t width, int32_t n_queries, int32_t depth, bool has_bias,
            bool is_prefill) {
  const int64_t bytes = row_bytes(dtype, width);
  const int32_t n_heads =
      is_prefill ? 1 : std::max(1, (192 << 20) / static_cast<int32_t>(2 * bytes * depth));  // beyond the caches
  const int64_t n_rows = int64_t{depth} * n_heads;
  const AlignedBuffer<std::byte> keys = random_rows(dtype, n_rows * width),
                                 values = random_rows(dtype, n_rows * width);
  const AlignedBuffer<std::byte> queries = random_rows(DType::f32, n_queries * width);
  std::vector<float> bias(static_cast<size_t>(depth), 0.5f), out(static_cast<size_t>(n_queries * width));
  std::vector<float> lse(static_cast<size_t>(n_queries));
  AlignedBuffer<float> scratch(static_cast<size_t>(attend_scratch_floats(n_queries, width, width)));
  std::vector<int32_t> query_pos;
  for (int32_t q = 0; q < n_queries; ++q) query_pos.push_back(is_prefill ? depth - n_queries + q : depth);
  int32_t head = 0;
  std::vector<KvBlockView> blocks;
  for (auto _ : state) {
    blocks.clear();
    for (int32_t row = 0; row < depth; row += kMaxBlockRows) {
      const int64_t at = (int64_t{head} * depth + row) * bytes;
      blocks.push_back({keys.data() + at, values.data() + at, has_bias ? bias.data() + row : nullptr, nullptr, row,
                        kMaxBlockRows, 0, n_queries, row / kMaxBlockRows});
    }
    active_set().attend({.key_type = dtype,
                         .value_type = dtype,
                         .key_width = width,
                         .value_width = width,
                         .n_queries = n_queries,
                         .queries = as_floats(queries),
                         .query_stride = width,
                         .query_pos = query_pos.data(),
                         .scale = 1.0f / std::sqrt(static_cast<float>(width)),
                         .softcap = 0.0f,
                         .window = 0,
                         .blocks = blocks,
                         .out = out.data(),
                         .out_stride = width,
                         .lse = lse.data(),
                         .scratch = scratch.data()});
    head = (head + 1) % n_heads;
    benchmark::ClobberMemory();
  }
  state.SetBytesProcessed(state.iterations() * 2 * bytes * depth);
  state.counters["GFLOP/s"] = benchmark::Counter(
      static_cast<double>(state.iterations()) * n_queries * depth * width * 4e-9, benchmark::Counter::kIsRate);
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
        benchmark::RegisterBenchmark(("decode/" + name).c_str(),
                                     [=](benchmark::State& s) { matmul(s, dtype, is_packed, 32768, 4096, 1); })
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
  for (DType dtype : {DType::f32, DType::f16, DType::bf16, DType::q8_0, DType::q4_0})
    for (bool has_bias : {false, true}) {
      const std::string tail = std::string(tensor_format(dtype).name) + (has_bias ? "/bias" : "/plain");
      for (int32_t group : {1, 2, 4, 8})
        benchmark::RegisterBenchmark(
            ("attend_decode/" + std::to_string(group) + "/" + tail).c_str(),
            [=](benchmark::State& s) { attend(s, dtype, 128, group, 16384, has_bias, false); });
      for (int32_t width : {64, 128})
        benchmark::RegisterBenchmark(
            ("attend_prefill/64/" + std::string(width == 128 ? "" : "narrow/") + tail).c_str(),
            [=](benchmark::State& s) { attend(s, dtype, width, 64, 4096, has_bias, true); });
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
