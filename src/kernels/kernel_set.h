// SPDX-License-Identifier: MIT
// Raw loops behind function pointers: one KernelSet a CPU target, chosen once at start. Kernels know no cache, no
// model and no threads: the caller splits the work. Every kernel handles any length and any alignment of the
// natural element size.
//
// Determinism: a result element is summed in an order that depends only on the inner dimension, never on how many
// rows, columns or queries a call has, so batching does not change a conversation. Different targets may differ in
// the last bits.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>

#include "base/result.h"
#include "tensor/dtype.h"

namespace sh::kernels {

/// Most rows that a KvBlockView may have.
inline constexpr int32_t kMaxBlockRows = 16;
/// Blocks that attention may take in one step of a query's softmax.
inline constexpr int32_t kStepBlocks = 4;

/// How the activations of a matrix product are stored for a weight format.
enum class ActivationForm {
  f32,  // as they are
  q8,   // rounded to 8 bits in groups of 32 by KernelSet::quantize_q8
};

/// out[c * out_stride + r] = Σ_k W[r, k] · x[c, k] for r in [row_begin, row_end), c in [0, n_cols).
struct MatmulArgs {
  const std::byte* weights;  // row 0 of W (packed: its panel); rows of `weight_row_bytes`
  int64_t weight_row_bytes;
  int64_t n_inner;               // k; a multiple of the weight format's block
  int64_t row_begin, row_end;    // output features to compute
  const std::byte* activations;  // n_cols rows of `activation_row_bytes`, in the kernel's ActivationForm
  int64_t activation_row_bytes;
  int64_t n_cols;      // tokens
  float* out;          // indexed by absolute row r
  int64_t out_stride;  // floats from one token to the next
};

struct WeightKernel {
  ActivationForm form;
  void (*matmul)(const MatmulArgs& args);
  /// The same for weights in the layout of tensor/packed.h, with the same bits as result; null where the set reads
  /// the format only as a file has it. Needs: row_begin a multiple of kPackedRows.
  void (*matmul_packed)(const MatmulArgs& args) = nullptr;
};

/// Row-major matrix product of floats, C[m, n] = (accumulate ? C : 0) + alpha · op(A) op(B); strides in floats.
struct GemmArgs {
  int64_t m, n, k;
  const float* a;
  int64_t a_stride;
  const float* b;
  int64_t b_stride;
  float* c;
  int64_t c_stride;
  float alpha = 1.0f;
  bool accumulate = false;
};

/// Rows of one KV head in one block, as attention reads them, and which queries of the tile see the block.
struct KvBlockView {
  const std::byte* keys;    // [n_rows] rows of row_bytes(key_type, key_width)
  const std::byte* values;  // [n_rows] rows of row_bytes(value_type, value_width)
  const float* bias;        // [n_rows] added to the scaled score, or null for zeros; -inf hides a row
  const int32_t* pos;       // [n_rows] positions, or null: row r has position first_pos + r
  int32_t first_pos;
  int32_t n_rows;                  // 1 to kMaxBlockRows
  int32_t query_begin, query_end;  // queries of the tile whose sequence holds this block
  int32_t place;                   // slot place % kStepBlocks of step place / kStepBlocks
};

/// Attention of a tile of queries over the blocks of one KV head, in one pass (running maximum, sum and output).
/// score = softcap(scale · q·k) + bias; visible when pos(row) <= query_pos and, with a window, query_pos -
/// pos(row) < window. A query that sees no row gets out = 0 and lse = -inf.
/// The blocks of a step take one step of the softmax together, so a query's bits depend on the places of its
/// blocks (and on nothing else of the tile). Needs: blocks in the order of their places, each with queries, and of
/// one place at most one for each query.
///
/// Precision: products and sums in f32; rows are decoded to f32. Keys in q8_0, q4_0, q5_0 and iq4_nl may be
/// multiplied as they are with queries rounded to 24 bits of the highest of each 32 elements.
///
/// Source:  Dao et al., FlashAttention, arXiv 2205.14135; bias as in arXiv 2602.16284.
struct AttendTile {
  DType key_type, value_type;
  int32_t key_width, value_width;
  int32_t n_queries;
  const float* queries;  // [n_queries, key_width], unscaled, query_stride floats apart
  int64_t query_stride;
  const int32_t* query_pos;  // [n_queries]
  float scale;
  float softcap;   // 0: none; else softcap · tanh(score / softcap)
  int32_t window;  // 0: none
  std::span<const KvBlockView> blocks;
  float* out;  // [n_queries, value_width], normalised, out_stride floats apart
  int64_t out_stride;
  float* lse;      // [n_queries] log-sum-exp of the visible scores, or null
  float* scratch;  // attend_scratch_floats(...) floats
};

/// One CPU target. One file each in kernels/targets/.
struct KernelSet {
  const char* name;
  int rank;             // the supported set with the highest rank is chosen; below 0: of another processor family
  const char* needs;    // CPU features, for messages
  bool (*supported)();  // asks the CPU and the operating system

  /// The product for a weight format; every DType has one in every set.
  WeightKernel (*weight_kernel)(DType dtype);
  /// Bytes of a row of n activations in q8 form, a multiple of 64. Needs: n a multiple of 32.
  int64_t (*q8_row_bytes)(int64_t n);
  /// Elements [begin, end), which begin at x, of a row of n in q8 form, which begins at out.
  /// Needs: begin and end multiples of 32; out aligned to 4 bytes.
  void (*quantize_q8_part)(const float* x, int64_t begin, int64_t end, int64_t n, std::byte* out);
  void quantize_q8(const float* x, int64_t n, std::byte* out) const { quantize_q8_part(x, 0, n, n, out); }

  float (*dot)(const float* a, const float* b, int64_t n);
  void (*add)(const float* a, const float* b, float* out, int64_t n);
  void (*axpy)(float alpha, const float* x, float* y, int64_t n);  // y += alpha x
  /// y = x / sqrt(mean(x²) + eps) · weight; weight may be null (1), y may be x.
  void (*rms_norm)(const float* x, const float* weight, float eps, float* y, int64_t n);
  /// y = silu(gate) · up; y may be gate.
  void (*swiglu)(const float* gate, const float* up, float* y, int64_t n);
  /// x[i] = exp(x[i] - shift), returns the sum. Inputs of -inf give 0.
  float (*exp_sum)(float* x, float shift, int64_t n);
  float (*max)(const float* x, int64_t n);  // -inf for n = 0
  /// Rotates n_pairs pairs in place: (x[2i], x[2i+1]) for adjacent, (x[i], x[i + n_pairs]) for halves.
  void (*rope_adjacent)(float* x, const float* cos, const float* sin, int64_t n_pairs);
  void (*rope_halves)(float* x, const float* cos, const float* sin, int64_t n_pairs);

  void (*gemm_nt)(const GemmArgs& args);  // A [m, k], B [n, k]
  void (*gemm_nn)(const GemmArgs& args);  // A [m, k], B [k, n]
  void (*gemm_tn)(const GemmArgs& args);  // A [k, m], B [k, n]

  /// Rows of the KV cache: n elements of f32 to `dtype` and back. Needs: n a multiple of the format's block.
  void (*encode_row)(DType dtype, const float* x, int64_t n, std::byte* out);
  void (*decode_row)(DType dtype, const std::byte* row, int64_t n, float* out);
  void (*attend)(const AttendTile& tile);
};

/// Floats of scratch that attend() needs for a tile of these sizes, in any set.
int64_t attend_scratch_floats(int32_t n_queries, int32_t key_width, int32_t value_width);

/// The sets compiled in, best first.
std::span<const KernelSet* const> kernel_sets();
/// The set to run on: `forced` (SHORTHAND_KERNELS) if given, else the best that this CPU supports.
/// Errors: not_found for an unknown name, unsupported for a set that this CPU lacks; both name the choices.
Result<const KernelSet*> choose_kernels(std::string_view forced);
/// Why it was chosen, in one line for the start-up message.
std::string describe_choice(const KernelSet& chosen, std::string_view forced);

/// Encodings that a KV cache may have (the ones encode_row is fast for).
bool is_kv_dtype(DType dtype);
/// "f32, f16, ...": the names of all of them.
std::string kv_dtype_names();

}  // namespace sh::kernels
